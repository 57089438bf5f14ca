/* SPDX-License-Identifier: Apache-2.0 */
/*
 * to_overlay: TC egress of the overlay device, every packet that the stack
 * sends to a peer: witness of the egress direction. Never changes or drops
 * one.
 */
#include "flow.h"

static __always_inline enum verdict
judge_routed(struct __sk_buff *skb, const struct config *config)
{
	const struct ethernet *ethernet = (void *)(long)skb->data;
	const struct ipv4 *ip = (const void *)(ethernet + 1);
	const void *end = (void *)(long)skb->data_end;
	struct packet packet = {};
	const struct peer *peer;
	struct traffic *traffic;
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
	/* By policy routing or a foreign neighbour entry. */
	if (!same_mac(peer->vtep_mac, ethernet->dst))
		return VERDICT_OTHER_GATEWAY;
	traffic = traffic_of(peer);
	if (traffic)
		count_traffic(&traffic->slow_sent_packets,
			      &traffic->slow_sent_bytes, skb->gso_segs,
			      skb->len - sizeof(*ethernet));
	if (config->admission == ADMISSION_OFF)
		return VERDICT_ADMISSION_OFF;
	verdict = parse_packet(ip, end, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	egress_key(&key, &packet);
	if (packet.tcp_flags & TCP_CONTROL) {
		forget(&key);
		if (!answers_open(&packet))
			return VERDICT_CONTROL;
	}
	verdict = witnessed(config, &key, &packet, EGRESS, &port);
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
