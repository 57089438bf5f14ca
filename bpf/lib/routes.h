/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What only the routing table knows: whether the node itself would take a
 * packet, and by which Ethernet address a node on the link is reached. Asking
 * costs 235 ns, so never for a fast packet. No maps.
 */
#pragma once
#include "parse.h"

#define FAMILY_INET 2

/*
 * The kernel's VXLAN socket listens on every local address, not only on the
 * one that peers use. An interface that does not forward gives everything it
 * keeps to the node.
 */
static __always_inline bool is_local(struct __sk_buff *skb, __be32 src,
				     __be32 dst)
{
	struct bpf_fib_lookup query = {
		.family = FAMILY_INET,
		.ipv4_src = src,
		.ipv4_dst = dst,
		.ifindex = skb->ifindex,
	};
	long answer = bpf_fib_lookup(skb, &query, sizeof(query), 0);

	return answer == BPF_FIB_LKUP_RET_NOT_FWDED ||
	       answer == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/*
 * Whether mac is that of the neighbour node, on the link of skb's device and
 * not behind a gateway. No neighbour entry, no answer: false.
 */
static __always_inline bool is_neighbour(struct __sk_buff *skb, __be32 src,
					 __be32 node, const u8 *mac)
{
	struct bpf_fib_lookup query = {
		.family = FAMILY_INET,
		.ipv4_src = src,
		.ipv4_dst = node,
		.ifindex = skb->ifindex,
	};

	/* On success, ipv4_dst is the next hop. */
	return !bpf_fib_lookup(skb, &query, sizeof(query),
			       BPF_FIB_LOOKUP_OUTPUT) &&
	       query.ifindex == skb->ifindex && query.ipv4_dst == node &&
	       same_mac(query.dmac, mac);
}
