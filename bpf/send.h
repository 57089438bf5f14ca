/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way out of the uplink, for a packet that is ready for the wire but for
 * its Ethernet header. Never rewrites one.
 */
#pragma once
#include "lib/routes.h"
#include "maps.h"

/* bcc 0.26 declares it with three parameters (kernel 5.10: four). */
static long (*redirect_neigh)(u32 ifindex, struct bpf_redir_neigh *params,
			      int length, u64 flags) = (void *)152;

/*
 * An outer packet may be fragmented, so its identification must not repeat
 * soon (RFC 6864). The packets sent to this peer by this CPU so far, segments
 * of GSO packets included, spaced by CPU; a random number costs 60 ns.
 */
static __always_inline u16 next_id(const struct traffic *traffic)
{
	u16 spread = bpf_get_smp_processor_id() * 0x9e37;

	return traffic ? traffic->fast_sent_packets +
				 traffic->slow_sent_packets + spread :
			 spread;
}

/* Returns what the program is to return. The kernel finds the MAC address. */
static __always_inline long send_to(const struct config *config,
				    const struct peer *peer)
{
	struct bpf_redir_neigh nexthop = {
		.nh_family = FAMILY_INET,
		.ipv4_nh = peer->nexthop,
	};

	return redirect_neigh(config->uplink, nexthop.ipv4_nh ? &nexthop : NULL,
			      nexthop.ipv4_nh ? sizeof(nexthop) : 0, 0);
}

/*
 * The same for a packet that the stack has routed, to the tunnel's device. It
 * still has that route, and where the neighbour must be asked for first, the
 * kernel would go by it once there is an answer: out of the uplink, without an
 * Ethernet header. Without a next hop from us it takes the uplink's route.
 */
static __always_inline long send_routed(const struct config *config)
{
	return redirect_neigh(config->uplink, NULL, 0, 0);
}
