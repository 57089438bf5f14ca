/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the stack's packets to peers leave it: witnesses of the egress
 * direction. Neither changes or drops a packet.
 *
 * to_overlay: TC egress of the overlay device, for peers behind the tunnel.
 * to_uplink: TC egress of the uplink, for direct peers. Everything else that
 * the node sends passes here, too: it is let go at once, and not counted.
 */
#include "flow.h"
#include "lib/routes.h"
#include "lib/rewrite.h"

/* The packet leaves for its peer: did it come in as it is? */
static __always_inline enum verdict
judge_witness(const struct config *config, const struct packet *packet,
	      struct flow_key *key, u32 *port)
{
	egress_key(key, packet);
	if (packet->tcp_flags & TCP_CONTROL) {
		forget(key);
		if (!answers_open(packet))
			return VERDICT_CONTROL;
	}
	return witnessed(config, key, packet, EGRESS, port);
}

static __always_inline void count_sent(const struct peer *peer,
				       const struct __sk_buff *skb, u32 length)
{
	struct traffic *traffic = traffic_of(peer);

	if (traffic)
		count_traffic(&traffic->slow_sent_packets,
			      &traffic->slow_sent_bytes, skb->gso_segs,
			      length);
}

static __always_inline enum verdict
judge_routed(struct __sk_buff *skb, const struct config *config)
{
	const struct ethernet *ethernet = (void *)(long)skb->data;
	const struct ipv4 *ip = (const void *)(ethernet + 1);
	const void *end = (void *)(long)skb->data_end;
	struct packet packet = {};
	const struct peer *peer;
	struct flow_key key;
	enum verdict verdict;
	u32 port = 0;

	if (skb->protocol != ETHERTYPE_IPV4)
		return VERDICT_UNRELATED;
	if ((const void *)(ip + 1) > end)
		return VERDICT_TRUNCATED;
	peer = peer_of(config, ip->dst);
	if (!peer)
		return VERDICT_UNRELATED;
	/* By policy routing, or before a route follows its peer. */
	if (peer->direct || !same_mac(peer->vtep_mac, ethernet->dst))
		return VERDICT_OTHER_GATEWAY;
	count_sent(peer, skb, skb->len - sizeof(*ethernet));
	if (config->admission == ADMISSION_OFF)
		return VERDICT_ADMISSION_OFF;
	verdict = parse_packet(ip, end, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = judge_witness(config, &packet, &key, &port);
	if (verdict == VERDICT_WITNESSED)
		stamp_egress(config, &key, &packet, port);
	return verdict;
}

int to_overlay(struct __sk_buff *skb)
{
	const struct config *config = configuration();

	count_verdict(PROGRAM_TO_OVERLAY,
		      config ? judge_routed(skb, config) :
			       VERDICT_UNCONFIGURED);
	return TO_STACK;
}

/* UNRELATED: not to a direct peer. */
static __always_inline enum verdict
judge_direct(struct __sk_buff *skb, const struct config *config)
{
	const struct ethernet *ethernet = (void *)(long)skb->data;
	const struct ipv4 *ip = (const void *)(ethernet + 1);
	const void *end = (void *)(long)skb->data_end;
	struct packet packet = {};
	const struct peer *peer;
	struct flow_key key;
	enum verdict verdict;
	u32 port = 0;

	if (skb->protocol != ETHERTYPE_IPV4 || (const void *)(ip + 1) > end)
		return VERDICT_UNRELATED;
	peer = peer_of(config, ip->dst);
	if (!peer || !peer->direct)
		return VERDICT_UNRELATED;
	count_sent(peer, skb, skb->len - sizeof(*ethernet));
	if (config->admission == ADMISSION_OFF)
		return VERDICT_ADMISSION_OFF;
	if (skb->vlan_present)
		return VERDICT_VLAN;
	verdict = parse_packet(ip, end, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = judge_witness(config, &packet, &key, &port);
	if (verdict != VERDICT_WITNESSED)
		return verdict;
	/* Last, since it asks the routing table. */
	if (skb->ifindex != config->uplink ||
	    !is_neighbour(skb, config->node, peer->node, ethernet->dst))
		return VERDICT_OTHER_GATEWAY;
	stamp_egress(config, &key, &packet, port);
	return VERDICT_WITNESSED;
}

int to_uplink(struct __sk_buff *skb)
{
	const struct config *config;
	enum verdict verdict;

	/* By from_pod, which has counted it; never a witness of itself. */
	if (skb->tc_index == SENT_FAST) {
		skb->tc_index = 0;
		return TO_STACK;
	}
	config = configuration();
	if (!config)
		return TO_STACK;
	verdict = judge_direct(skb, config);
	if (verdict != VERDICT_UNRELATED)
		count_verdict(PROGRAM_TO_UPLINK, verdict);
	return TO_STACK;
}
