/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib/tunnel.h for flannel's udp backend: the payload of a datagram is the
 * inner packet, with nothing in between; DF set, checksum zero, one port for
 * both ends of every flow. What the names are is said in lib/tunnel_vxlan.h.
 * No maps.
 */
#pragma once
#include "csum.h"
#include "parse.h"

struct tunnel_body {
	struct udp udp;
	struct ipv4 inner_ip;
} __attribute__((packed, aligned(2)));

#include "l3tunnel.h"

#define TUNNEL_ROOM \
	(sizeof(struct ipv4) + offsetof(struct tunnel_body, inner_ip))
_Static_assert(TUNNEL_ROOM == 28, "IPv4 in UDP");
#define TUNNEL_HEAD sizeof(struct udp)

/*
 * Nothing of the inner ECN goes outside: flannel does not look at the outer
 * header, so a mark would be lost instead of a packet (RFC 6040 section 4.1).
 */
#define TUNNEL_ECN 0

/* The router's hop, and one that flannel's proxy takes at each end. */
#define TUNNEL_HOPS 2

#define TUNNEL_ENCAP BPF_F_ADJ_ROOM_ENCAP_L4_UDP
#define TUNNEL_CSUM_LEVELS 1

/*
 * As with VXLAN, see there; but nobody at the other end removes the mark, and
 * between nodes that are joined by a veth it would get there: segmented first.
 */
#define TUNNEL_SENDS_DATAGRAMS 0
#define TUNNEL_TAKES_DATAGRAMS 0

static __always_inline bool tunnel_is_protocol(u8 protocol)
{
	return protocol == IPPROTO_UDP;
}

static __always_inline bool tunnel_is_addressed(const struct config *config,
						const struct tunnel_body *body)
{
	return body->udp.dst == config->port;
}

static __always_inline bool
tunnel_length_is_right(const struct tunnel_body *body, u16 inner_len)
{
	return body->udp.len == be16((u16)(inner_len + sizeof(struct udp)));
}

static __always_inline u32 tunnel_fill(struct ipv4 *outer,
				       struct tunnel_body *body,
				       __be16 source_port)
{
	body->udp.len = be16((u16)(host16(body->inner_ip.total_len) +
				   sizeof(struct udp)));
	return 0;
}
