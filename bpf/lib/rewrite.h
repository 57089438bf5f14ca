/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that is ever written into a packet: the tunnel's headers put on and
 * taken off, or a router's hop alone. Each function prepares everything before
 * its first change, which is the one that can be refused: then the packet is
 * as it was. No maps.
 */
#pragma once
#include "csum.h"
#include "parse.h"
#include "tunnel.h"

struct tunnel_headers {
	struct ethernet ethernet;
	struct ipv4 ip;
	struct tunnel_body body;
} __attribute__((packed, aligned(2)));

/* All headers in front of the inner packet, as a peer's slot has them. */
#define TUNNEL_TEMPLATE (sizeof(struct ethernet) + TUNNEL_ROOM)
_Static_assert(TUNNEL_TEMPLATE <= sizeof(((struct peer *)0)->template),
	       "the template has room for all headers");

/*
 * ENCAP_L3 and what the tunnel adds: sets the GSO type, so that a super-packet
 * crosses whole and is segmented inside the tunnel header. FIXED_GSO: pods'
 * MTU already leaves the room, so the segment size stays. NO_CSUM_RESET: the
 * inner checksum state stays as true as it was.
 */
#define TUNNEL_PUSH_FLAGS \
	(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | TUNNEL_ENCAP | TUNNEL_POP_FLAGS)
#define TUNNEL_POP_FLAGS \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)

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

static __always_inline void take_hops(struct ipv4 *ip, int hops)
{
#pragma unroll
	for (int i = 0; i < hops; i++)
		decrement_ttl(ip);
}

/* By words: the JIT takes unaligned ones, and the headers promise only twos. */
static __always_inline void copy_template(void *to, const struct peer *peer)
{
	const void *from = peer->template;
	u64 *words = to;
	u16 *rest;
	u32 i;

#pragma unroll
	for (i = 0; i < TUNNEL_TEMPLATE / sizeof(*words); i++)
		words[i] = peer->template[i];
	rest = to + i * sizeof(*words);
	from += i * sizeof(*words);
#pragma unroll
	for (i = 0; i < TUNNEL_TEMPLATE % sizeof(*words) / sizeof(*rest); i++)
		rest[i] = ((const u16 *)from)[i];
}

/* All of them, in front of an inner packet whose hops are taken. */
static __always_inline void tunnel_write(struct tunnel_headers *headers,
					 const struct peer *peer, int hops,
					 __be16 source_port, u16 id)
{
	struct ipv4 *inner = &headers->body.inner_ip;
	u32 sum = peer->partial_sum;

	copy_template(headers, peer);
	take_hops(inner, hops);
	headers->ip.tos = outer_ecn(inner->tos) & TUNNEL_ECN;
	headers->ip.total_len =
		be16((u16)(host16(inner->total_len) + TUNNEL_ROOM));
	headers->ip.id = be16(id);
	sum += tunnel_fill(&headers->ip, &headers->body, source_port);
	/* TOS is the second byte of its word in memory. */
	headers->ip.check = csum_fold(sum + (headers->ip.tos << 8) +
				      headers->ip.total_len + headers->ip.id);
}

/*
 * Puts the headers on and takes the hops of a whole end of the tunnel from the
 * inner TTL. False: the kernel refused (a packet that is a tunnel's already,
 * GSO of another kind).
 *
 * A direct write saves the 40 ns of bpf_skb_store_bytes. The kernel then makes
 * the head of every packet writable before the program, which costs a copy only
 * where somebody else may read it: TCP's own clones share nothing but the data.
 */
static __always_inline bool tunnel_push(struct __sk_buff *skb,
					const struct peer *peer,
					__be16 source_port, u16 id)
{
	struct tunnel_headers *headers;

	if (!TUNNEL_ROOM ||
	    bpf_skb_adjust_room(skb, TUNNEL_ROOM, BPF_ADJ_ROOM_MAC,
				TUNNEL_PUSH_FLAGS))
		return false;
	headers = (void *)(long)skb->data;
	/* Always: the call made room in front of what was read before. */
	if ((void *)(headers + 1) <= (void *)(long)skb->data_end)
		tunnel_write(headers, peer, TUNNEL_HOPS, source_port, id);
	return true;
}

enum pushed {
	PUSH_DONE,
	PUSH_REFUSED,
	PUSH_BROKEN, /* no memory, half way: it can only be dropped */
};

/*
 * The same for a packet without an Ethernet header, which gets one, that a
 * router has taken its hop from.
 */
static __always_inline enum pushed tunnel_push_bare(struct __sk_buff *skb,
						    const struct peer *peer,
						    u16 id)
{
	struct tunnel_headers *headers;

	/* First what may be refused without harm; MAC: nothing is in front. */
	if (!TUNNEL_ROOM ||
	    bpf_skb_adjust_room(skb, TUNNEL_ROOM, BPF_ADJ_ROOM_MAC,
				TUNNEL_PUSH_FLAGS))
		return PUSH_REFUSED;
	if (bpf_skb_change_head(skb, sizeof(struct ethernet), 0))
		return PUSH_BROKEN;
	headers = (void *)(long)skb->data;
	if ((void *)(headers + 1) > (void *)(long)skb->data_end)
		return PUSH_BROKEN;
	tunnel_write(headers, peer, TUNNEL_HOPS - 1, 0, id);
	return PUSH_DONE;
}

/* The headers of a packet without a tunnel. */
struct front {
	struct ethernet ethernet;
	struct ipv4 ip;
} __attribute__((packed, aligned(2)));

/*
 * What tells a packet that this node sends fast to a direct peer from one that
 * its stack sends, at the uplink's egress, where both pass. A pod that manages
 * to set it itself keeps its own packets from being witnesses.
 */
#define SENT_FAST 0x4b52

/* Takes a hop from a packet that leaves without a tunnel. False: refused. */
static __always_inline bool plain_push(struct __sk_buff *skb)
{
	struct front *front = (void *)(long)skb->data;

	if ((void *)(front + 1) > (void *)(long)skb->data_end)
		return false;
	take_hops(&front->ip, 1);
	skb->tc_index = SENT_FAST;
	return true;
}

/* What the stack would put in front of a packet to the pod, less its hops. */
static __always_inline void write_front(struct front *front,
					const struct flow *flow, int hops)
{
	void *ethernet = &front->ethernet;
	const void *macs = flow->pod_mac;

	/* Both addresses lie in the flow as they do in the header. */
	_Static_assert(offsetof(struct flow, pod_mac) % 8 == 0 &&
			       offsetof(struct flow, gateway_mac) ==
				       offsetof(struct flow, pod_mac) + 6,
		       "copied as a word and a half");
	*(u64 *)ethernet = *(const u64 *)macs;
	*(u32 *)(ethernet + 8) = *(const u32 *)(macs + 8);
	front->ethernet.type = ETHERTYPE_IPV4;
	take_hops(&front->ip, hops);
}

static __always_inline bool take_room(struct __sk_buff *skb)
{
	if (bpf_skb_adjust_room(skb, -(s32)TUNNEL_ROOM, BPF_ADJ_ROOM_MAC,
				TUNNEL_POP_FLAGS))
		return false;
	if (TUNNEL_CSUM_LEVELS) /* that level is gone now (5.8) */
		bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return true;
}

/*
 * Takes the headers off, puts the Ethernet header of an admitted flow in front
 * and takes the hops of a whole end of the tunnel from the TTL. False: refused.
 * A direct write: what comes from a NIC is not shared, so that the kernel's
 * copy before the program costs nothing.
 */
static __always_inline bool tunnel_pop(struct __sk_buff *skb,
				       const struct flow *flow)
{
	struct front *front;

	if (!take_room(skb))
		return false;
	front = (void *)(long)skb->data;
	/* Always: all of it was linear before. */
	if ((void *)(front + 1) <= (void *)(long)skb->data_end)
		write_front(front, flow, TUNNEL_HOPS);
	return true;
}

/*
 * Takes the headers off for a router that will take its hop; of the Ethernet
 * header nothing is right but its length. False: refused.
 */
static __always_inline bool tunnel_strip(struct __sk_buff *skb)
{
	struct front *front;

	if (!take_room(skb))
		return false;
	front = (void *)(long)skb->data;
	/* Always: all of it was linear before. */
	if ((void *)(front + 1) <= (void *)(long)skb->data_end)
		take_hops(&front->ip, TUNNEL_HOPS - 1);
	return true;
}

/*
 * tunnel_pop() for a packet without the tunnel's headers: one that a direct
 * peer sent, with one hop to take, or one that wire took them off.
 */
static __always_inline bool plain_pop(struct __sk_buff *skb,
				      const struct flow *flow, int hops)
{
	struct front *front = (void *)(long)skb->data;

	if ((void *)(front + 1) > (void *)(long)skb->data_end)
		return false;
	write_front(front, flow, hops);
	return true;
}

/*
 * tunnel_strip() for a packet that wire took the headers off; with the Ethernet
 * header that the overlay device wants, if it has one at all.
 */
static __always_inline bool plain_strip(struct __sk_buff *skb,
					const struct config *config)
{
	struct front *front = (void *)(long)skb->data;

	if ((void *)(front + 1) > (void *)(long)skb->data_end)
		return false;
	if (TUNNEL_LINK)
		__builtin_memcpy(front->ethernet.dst, config->vtep_mac, 6);
	take_hops(&front->ip, TUNNEL_HOPS - 1);
	return true;
}
