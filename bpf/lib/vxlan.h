/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VXLAN header put on and taken off an skb, as the kernel's own device
 * would with udpcsum off, DF clear, TOS 0 and ECN copied. No maps. Everything
 * that differs for another tunnel is in this file.
 */
#pragma once
#include "csum.h"
#include "parse.h"

struct vxlan_headers {
	struct ethernet ethernet;
	struct ipv4 ip;
	struct udp udp;
	struct vxlan vxlan;
	struct ethernet inner_ethernet;
	struct ipv4 inner_ip;
} __attribute__((packed, aligned(2)));

/* Between the outer Ethernet header, which exists, and the inner packet. */
#define TUNNEL_ROOM \
	(offsetof(struct vxlan_headers, inner_ip) - sizeof(struct ethernet))
#define TUNNEL_TEMPLATE offsetof(struct vxlan_headers, inner_ip)
_Static_assert(TUNNEL_ROOM == 50, "RFC 7348 over IPv4");
_Static_assert(TUNNEL_TEMPLATE == sizeof(((struct peer *)0)->template),
	       "the template is all headers in front of the inner packet");

/*
 * ENCAP_L3, ENCAP_L4: sets the GSO type, so that a super-packet crosses whole
 * and is segmented inside the tunnel header (5.2). ENCAP_L2_ETH: names the
 * inner protocol as drivers with VXLAN offload expect it (5.13). FIXED_GSO:
 * pods' MTU already leaves the room, so the segment size stays. NO_CSUM_RESET:
 * the inner checksum state stays as true as it was.
 */
#define TUNNEL_PUSH_FLAGS \
	(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | \
	 BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethernet)) | \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_FIXED_GSO | \
	 BPF_F_ADJ_ROOM_NO_CSUM_RESET)
#define TUNNEL_POP_FLAGS \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)

/*
 * The kernel's udp_flow_src_port(): the same port as the slow path's, so that
 * a flow keeps its receive queue when it changes paths.
 */
static __always_inline __be16 tunnel_source_port(struct __sk_buff *skb,
						 const struct config *config)
{
	u32 hash = bpf_get_hash_recalc(skb);

	hash ^= hash << 16;
	return be16((u16)(config->source_port +
			  ((u64)hash * config->source_ports >> 32)));
}

/* RFC 6040 as the kernel's INET_ECN_encapsulate: CE does not go outside. */
static __always_inline u8 outer_ecn(u8 inner_tos)
{
	u8 ecn = inner_tos & ECN_MASK;

	return ecn == ECN_CE ? ECN_ECT0 : ecn;
}

/* Whether taking the outer header off would have to change the inner ECN. */
static __always_inline bool congestion_matters(u8 outer_tos, u8 inner_tos)
{
	u8 outer = outer_tos & ECN_MASK, inner = inner_tos & ECN_MASK;

	return outer == ECN_CE || (outer == ECN_ECT1 && inner != ECN_ECT1);
}

/* The inner header up to its addresses, which stay as they are. */
#define REWRITTEN offsetof(struct ipv4, src)

/*
 * Puts the headers on and takes one hop from the inner TTL. All is prepared
 * before the first change; false: the kernel refused (a packet that is a
 * tunnel's already, GSO of another kind) and the packet is as it was.
 *
 * bpf_skb_store_bytes and not direct writes: those make the kernel unshare
 * the head of every packet that enters the program, written or not.
 */
static __always_inline bool tunnel_push(struct __sk_buff *skb,
					const struct peer *peer,
					__be16 source_port, u16 id)
{
	const struct ethernet *ethernet = (void *)(long)skb->data;
	const struct ipv4 *inner = (const void *)(ethernet + 1);
	struct vxlan_headers headers __attribute__((aligned(8)));
	__be16 outer_len;
	u8 tos;

	if ((const void *)(inner + 1) > (void *)(long)skb->data_end)
		return false;
	outer_len = be16((u16)(host16(inner->total_len) + TUNNEL_ROOM));
	tos = outer_ecn(inner->tos);
	__builtin_memcpy(&headers, peer->template, TUNNEL_TEMPLATE);
	__builtin_memcpy(&headers.inner_ip, inner, REWRITTEN);
	headers.ip.tos = tos;
	headers.ip.total_len = outer_len;
	headers.ip.id = be16(id);
	/* TOS is the second byte of its word in memory. */
	headers.ip.check =
		csum_fold(peer->partial_sum + (tos << 8) + outer_len +
			  be16(id));
	headers.udp.src = source_port;
	headers.udp.len = be16((u16)(host16(inner->total_len) + TUNNEL_ROOM -
				     sizeof(struct ipv4)));
	decrement_ttl(&headers.inner_ip);

	if (bpf_skb_adjust_room(skb, TUNNEL_ROOM, BPF_ADJ_ROOM_MAC,
				TUNNEL_PUSH_FLAGS))
		return false;
	/* Cannot fail: what the call above made room for is writable. */
	bpf_skb_store_bytes(skb, 0, &headers, TUNNEL_TEMPLATE + REWRITTEN, 0);
	return true;
}

/*
 * Takes the headers off, puts the Ethernet header of an admitted flow in front
 * and takes one hop from the TTL. False: refused, and the packet is as it was.
 */
static __always_inline bool tunnel_pop(struct __sk_buff *skb,
				       const struct flow *flow)
{
	const struct vxlan_headers *headers = (void *)(long)skb->data;
	struct {
		struct ethernet ethernet;
		struct ipv4 ip;
	} __attribute__((packed, aligned(2))) front, *into;

	if ((const void *)(headers + 1) > (void *)(long)skb->data_end)
		return false;
	__builtin_memcpy(front.ethernet.dst, flow->pod_mac, 6);
	__builtin_memcpy(front.ethernet.src, flow->gateway_mac, 6);
	front.ethernet.type = ETHERTYPE_IPV4;
	__builtin_memcpy(&front.ip, &headers->inner_ip, REWRITTEN);
	decrement_ttl(&front.ip);

	if (bpf_skb_adjust_room(skb, -(s32)TUNNEL_ROOM, BPF_ADJ_ROOM_MAC,
				TUNNEL_POP_FLAGS))
		return false;
	/*
	 * The receiving side counts a UDP header as one verified level, also
	 * with checksum zero; that level is gone now (5.8).
	 */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	/*
	 * A direct write, unlike on the way out: what comes from a NIC is not
	 * shared, so that the kernel's copy before the program costs nothing.
	 */
	into = (void *)(long)skb->data;
	if ((void *)into + sizeof(front) > (void *)(long)skb->data_end)
		return true; /* never: it was linear before */
	__builtin_memcpy(into, &front, sizeof(struct ethernet) + REWRITTEN);
	return true;
}
