/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib/tunnel.h for VXLAN (RFC 7348), as the kernel's own device does it with
 * udpcsum off, DF clear, TOS 0 and ECN copied. No maps.
 *
 * Each lib/tunnel_*.h says by the same names what differs from one tunnel to
 * another; the loader pastes one of them where lib/tunnel.h is included, so
 * that no program asks at run time. The outer Ethernet and IPv4 headers are
 * common to all, and so is the inner packet, which is IPv4.
 */
#pragma once
#include "csum.h"
#include "parse.h"

/* From the end of the outer IPv4 header to that of the inner one. */
struct tunnel_body {
	struct udp udp;
	struct vxlan vxlan;
	struct ethernet inner_ethernet;
	struct ipv4 inner_ip;
} __attribute__((packed, aligned(2)));

/* Between the outer Ethernet header, which exists, and the inner packet. */
#define TUNNEL_ROOM \
	(sizeof(struct ipv4) + offsetof(struct tunnel_body, inner_ip))
_Static_assert(TUNNEL_ROOM == 50, "RFC 7348 over IPv4");

/* Bytes of the body that tell whether a packet is the tunnel's. */
#define TUNNEL_HEAD sizeof(struct udp)

/* Which bits of the inner TOS go outside. */
#define TUNNEL_ECN ECN_MASK

/* What each end takes from the inner TTL: the router's hop. */
#define TUNNEL_HOPS 1

/* Bytes in front of the IPv4 header at the hooks of the overlay device. */
#define TUNNEL_LINK sizeof(struct ethernet)

/*
 * ENCAP_L2_ETH: names the inner protocol as drivers with VXLAN offload expect
 * it (5.13). ENCAP_L4: the GSO type is that of a UDP tunnel (5.2).
 */
#define TUNNEL_ENCAP \
	(BPF_F_ADJ_ROOM_ENCAP_L4_UDP | \
	 BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethernet)) | \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/*
 * The receiving side counts a UDP header as one verified level, also with
 * checksum zero.
 */
#define TUNNEL_CSUM_LEVELS 1

/*
 * Whether UDP segments that are still one packet (UDP_SEGMENT of a pod, or
 * merged by a NIC) may go in and come out. Taking the headers off leaves the
 * mark of a UDP tunnel on such a packet, and the pod that has to segment it
 * loses it (6.18; TCP is not segmented by who receives it). The kernel's
 * own device removes the mark.
 */
#define TUNNEL_SENDS_DATAGRAMS 1
#define TUNNEL_TAKES_DATAGRAMS 0

static __always_inline bool tunnel_is_protocol(u8 protocol)
{
	return protocol == IPPROTO_UDP;
}

/* Reads the first TUNNEL_HEAD bytes only. */
static __always_inline bool tunnel_is_addressed(const struct config *config,
						const struct tunnel_body *body)
{
	return body->udp.dst == config->port;
}

/* UNDECIDED: the body is what its head promised. */
static __always_inline enum verdict
tunnel_judge(const struct config *config, const struct tunnel_body *body)
{
	if (body->vxlan.flags != VXLAN_FLAGS)
		return VERDICT_TUNNEL_FLAGS;
	if (body->vxlan.vni != config->vni)
		return VERDICT_OTHER_VNI;
	return UNDECIDED;
}

/* EtherType of the inner packet. */
static __always_inline __be16 tunnel_inner_type(const struct tunnel_body *body)
{
	return body->inner_ethernet.type;
}

/* Whether the overlay device would take the inner packet. */
static __always_inline bool
tunnel_is_for_device(const struct config *config,
		     const struct tunnel_body *body)
{
	return same_mac(body->inner_ethernet.dst, config->vtep_mac);
}

/* Whether a packet in the overlay device goes to the peer's. */
static __always_inline bool tunnel_leads_to(const struct peer *peer,
					    const void *packet)
{
	const struct ethernet *ethernet = packet;

	return same_mac(peer->vtep_mac, ethernet->dst);
}

static __always_inline bool
tunnel_length_is_right(const struct tunnel_body *body, u16 inner_len)
{
	return body->udp.len ==
	       be16((u16)(inner_len + TUNNEL_ROOM - sizeof(struct ipv4)));
}

/*
 * The kernel's udp_flow_src_port(): the same port as the slow path's, so that
 * a flow keeps its receive queue when it changes paths. Kept in the flow: a
 * datagram of an unconnected socket is hashed in 200 ns.
 */
static __always_inline __be16 tunnel_source_port(struct __sk_buff *skb,
						 const struct config *config,
						 struct flow *flow)
{
	u32 hash;

	if (!flow->source_port) {
		hash = bpf_get_hash_recalc(skb);
		hash ^= hash << 16;
		flow->source_port =
			be16((u16)(config->source_port +
				   ((u64)hash * config->source_ports >> 32)));
	}
	return flow->source_port;
}

/*
 * Sets what the template cannot know. The inner header is there up to its
 * addresses, with the TTL that it leaves with. Returns what this adds to the
 * sum of the outer IPv4 header.
 */
static __always_inline u32 tunnel_fill(struct ipv4 *outer,
				       struct tunnel_body *body,
				       __be16 source_port)
{
	body->udp.src = source_port;
	body->udp.len = be16((u16)(host16(body->inner_ip.total_len) +
				   TUNNEL_ROOM - sizeof(struct ipv4)));
	return 0;
}
