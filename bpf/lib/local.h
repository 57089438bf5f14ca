/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the node itself would take a packet. Asks the routing table (235 ns),
 * so only for packets to the tunnel's port that are not to the node's address.
 * No maps.
 */
#pragma once
#include "../netfmt.h"

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
