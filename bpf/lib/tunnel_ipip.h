/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib/tunnel.h for IP in IP (RFC 2003), as the kernel's own device does it with
 * ttl inherit and nopmtudisc: TTL and DF outside are those inside. There is no
 * port: every packet of protocol 4 for this node is the overlay's. What the
 * names are is said in lib/tunnel_vxlan.h. No maps.
 */
#pragma once
#include "csum.h"
#include "parse.h"

struct tunnel_body {
	struct ipv4 inner_ip;
} __attribute__((packed, aligned(2)));

#include "l3tunnel.h"

#define TUNNEL_ROOM sizeof(struct ipv4)
#define TUNNEL_HEAD 0
#define TUNNEL_ECN ECN_MASK
#define TUNNEL_HOPS 1

#define TUNNEL_ENCAP 0
#define TUNNEL_CSUM_LEVELS 0
#define TUNNEL_SENDS_DATAGRAMS 1
#define TUNNEL_TAKES_DATAGRAMS 1

static __always_inline bool tunnel_is_protocol(u8 protocol)
{
	return protocol == IPPROTO_IPIP;
}

static __always_inline bool tunnel_is_addressed(const struct config *config,
						const struct tunnel_body *body)
{
	return true;
}

static __always_inline bool
tunnel_length_is_right(const struct tunnel_body *body, u16 inner_len)
{
	return true;
}

static __always_inline u32 tunnel_fill(struct ipv4 *outer,
				       struct tunnel_body *body,
				       __be16 source_port)
{
	outer->ttl = body->inner_ip.ttl;
	outer->fragment = body->inner_ip.fragment & IPV4_DONT_FRAGMENT;
	/* The TTL is the first byte of its word in memory. */
	return outer->ttl + outer->fragment;
}
