/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib/tunnel.h where every peer is direct: no packet is the tunnel's, and none
 * is ever put into one. What the names are is said in lib/tunnel_vxlan.h. No
 * maps.
 */
#pragma once
#include "csum.h"
#include "parse.h"

struct tunnel_body {
	struct ipv4 inner_ip;
} __attribute__((packed, aligned(2)));

#define TUNNEL_ROOM 0
#define TUNNEL_HEAD 0
#define TUNNEL_ECN ECN_MASK
#define TUNNEL_HOPS 1
#define TUNNEL_LINK sizeof(struct ethernet)
#define TUNNEL_ENCAP 0
#define TUNNEL_CSUM_LEVELS 0
#define TUNNEL_SENDS_DATAGRAMS 1
#define TUNNEL_TAKES_DATAGRAMS 1

static __always_inline bool tunnel_is_protocol(u8 protocol)
{
	return false;
}

static __always_inline bool tunnel_is_addressed(const struct config *config,
						const struct tunnel_body *body)
{
	return false;
}

static __always_inline enum verdict
tunnel_judge(const struct config *config, const struct tunnel_body *body)
{
	return VERDICT_UNRELATED;
}

static __always_inline __be16 tunnel_inner_type(const struct tunnel_body *body)
{
	return ETHERTYPE_IPV4;
}

static __always_inline bool
tunnel_is_for_device(const struct config *config,
		     const struct tunnel_body *body)
{
	return false;
}

static __always_inline bool tunnel_leads_to(const struct peer *peer,
					    const void *packet)
{
	return false;
}

static __always_inline bool
tunnel_length_is_right(const struct tunnel_body *body, u16 inner_len)
{
	return false;
}

static __always_inline __be16 tunnel_source_port(struct __sk_buff *skb,
						 const struct config *config,
						 struct flow *flow)
{
	return 0;
}

static __always_inline u32 tunnel_fill(struct ipv4 *outer,
				       struct tunnel_body *body,
				       __be16 source_port)
{
	return 0;
}
