/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What udp and ipip have in common as lib/tunnel.h: between the outer header
 * and the inner packet nothing says more than that there is one, and the
 * overlay device has no link header. Pasted behind their struct tunnel_body.
 * No maps.
 */
#pragma once

/* A tunnel or TUN device: IPv4 comes first. */
#define TUNNEL_LINK 0

/* Any payload is an inner packet; from any port, as flannel takes it. */
static __always_inline enum verdict
tunnel_judge(const struct config *config, const struct tunnel_body *body)
{
	return UNDECIDED;
}

static __always_inline __be16 tunnel_inner_type(const struct tunnel_body *body)
{
	return ethertype_of(&body->inner_ip);
}

static __always_inline bool
tunnel_is_for_device(const struct config *config,
		     const struct tunnel_body *body)
{
	return true;
}

/* Nothing in the packet says: what is routed there goes to the lease's node. */
static __always_inline bool tunnel_leads_to(const struct peer *peer,
					    const void *packet)
{
	return true;
}

/* The template has it, if there is one at all. */
static __always_inline __be16 tunnel_source_port(struct __sk_buff *skb,
						 const struct config *config,
						 struct flow *flow)
{
	return 0;
}
