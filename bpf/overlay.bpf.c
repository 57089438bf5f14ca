/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the stack's packets to peers leave it: witnesses of the egress
 * direction.
 *
 * to_overlay: TC egress of the overlay device, for peers behind the tunnel.
 * Where that is a TUN device with a proxy behind it, puts each packet that it
 * can into the tunnel itself, whatever it is; what it leaves on the device is
 * the proxy's: no peer, no hop left, too long. Else changes and drops none.
 * to_uplink: TC egress of the uplink, for direct peers. Everything else that
 * the node sends passes here, too: it is let go at once, and not counted.
 * Changes and drops none.
 */
#include "flow.h"
#include "lib/rewrite.h"
#include "lib/routes.h"
#include "report.h"
#include "send.h"

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

/* Whose pod it is for is in *peer, also where there is no witness. */
static __always_inline enum verdict judge_routed(struct __sk_buff *skb,
						 const struct config *config,
						 const struct peer **peer)
{
	const void *packet_start = (void *)(long)skb->data;
	const struct ipv4 *ip = packet_start + TUNNEL_LINK;
	const void *end = (void *)(long)skb->data_end;
	struct packet packet = {};
	struct flow_key key;
	enum verdict verdict;
	u32 port = 0;

	if (skb->protocol != ETHERTYPE_IPV4)
		return VERDICT_UNRELATED;
	if ((const void *)(ip + 1) > end)
		return VERDICT_TRUNCATED;
	*peer = peer_of(config, ip->dst);
	if (!*peer)
		return VERDICT_UNRELATED;
	/* By policy routing or a foreign neighbour entry. */
	if (!tunnel_leads_to(*peer, packet_start))
		return VERDICT_OTHER_GATEWAY;
	count_sent(*peer, skb, skb->len - TUNNEL_LINK);
	/* Before a route follows its peer: no witness of the way that it has. */
	if ((*peer)->direct)
		return VERDICT_OTHER_GATEWAY;
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

/*
 * Whether a packet can be put into the tunnel by its addresses alone, be it
 * ICMP, a fragment or whatever. The stack has seen to it that every segment of
 * a GSO packet fits the device.
 */
static __always_inline bool is_carriable(const struct __sk_buff *skb,
					 const struct config *config)
{
	const struct ipv4 *ip = (void *)(long)skb->data;
	u32 length;

	if ((const void *)(ip + 1) > (void *)(long)skb->data_end)
		return false;
	if (!TUNNEL_SENDS_DATAGRAMS && skb->gso_size &&
	    ip->protocol == IPPROTO_UDP)
		return false;
	length = host16(ip->total_len);
	return ip->version_ihl >= IPV4_PLAIN && ip->version_ihl >> 4 == 4 &&
	       ip->ttl >= TUNNEL_HOPS && length == skb->len &&
	       length + TUNNEL_ROOM <= 0xffff &&
	       (skb->gso_size || length <= config->mtu);
}

/*
 * Does at the device what its proxy would, and counts: the identification is
 * that of the first of the packets which have been counted.
 */
static __always_inline int carry(struct __sk_buff *skb,
				 const struct config *config,
				 const struct peer *peer, enum verdict verdict)
{
	u16 segments = skb->gso_segs ? skb->gso_segs : 1;
	enum pushed pushed = PUSH_REFUSED;

	report(skb, PROGRAM_TO_OVERLAY, verdict, false, 0, false);
	if (is_carriable(skb, config))
		pushed = tunnel_push_bare(skb, peer,
					  next_id(traffic_of(peer)) - segments);
	if (pushed == PUSH_BROKEN) {
		verdict = VERDICT_ROOM;
		report(skb, PROGRAM_TO_OVERLAY, verdict, true, TUNNEL_ROOM,
		       false);
	}
	count_verdict(PROGRAM_TO_OVERLAY, verdict);
	return pushed == PUSH_DONE   ? send_routed(config) :
	       pushed == PUSH_BROKEN ? DROP :
				       TO_STACK;
}

int to_overlay(struct __sk_buff *skb)
{
	const struct config *config = configuration();
	const struct peer *peer = NULL;
	enum verdict verdict;

	verdict = config ? judge_routed(skb, config, &peer) :
			   VERDICT_UNCONFIGURED;
	if (!TUNNEL_LINK && config && peer && skb->ifindex == config->carrier)
		return carry(skb, config, peer, verdict);
	count_verdict(PROGRAM_TO_OVERLAY, verdict);
	report(skb, PROGRAM_TO_OVERLAY, verdict, false, TUNNEL_LINK, false);
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
	if (verdict == VERDICT_UNRELATED)
		return TO_STACK;
	count_verdict(PROGRAM_TO_UPLINK, verdict);
	report(skb, PROGRAM_TO_UPLINK, verdict, false, sizeof(struct ethernet),
	       false);
	return TO_STACK;
}
