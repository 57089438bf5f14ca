/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both sides of a pod port, the host end of a pod's veth.
 *
 * from_pod: TC ingress, every packet that a pod sends. Carries a packet of an
 * admitted flow to the peer's node, in the tunnel or, if that is direct, as it
 * is; notes any other and leaves it to the stack.
 * to_pod: TC egress, every packet that the stack delivers to a pod. Never
 * changes or drops one.
 */
#include "flow.h"
#include "lib/rewrite.h"
#include "lib/routes.h"
#include "report.h"
#include "send.h"

/* The first fragment alone holds the ports; without it nothing arrives. */
static __always_inline bool speaks_tunnel(struct __sk_buff *skb,
					  const struct config *config,
					  const struct ipv4 *ip)
{
	u32 offset = sizeof(struct ethernet) + (ip->version_ihl & 0xf) * 4;
	__be32 src = ip->src, dst = ip->dst;
	struct tunnel_body body;

	if (!tunnel_is_protocol(ip->protocol) || ip->fragment & IPV4_OFFSET)
		return false;
	if (TUNNEL_HEAD &&
	    bpf_skb_load_bytes(skb, offset, &body, TUNNEL_HEAD))
		return false;
	if (!tunnel_is_addressed(config, &body))
		return false;
	return dst == config->node || nodes.lookup(&dst) ||
	       is_local(skb, src, dst);
}

/* The pod's own packets show which port it is at: half of an endpoint. */
static __always_inline void note_sender(const struct config *config,
					__be32 pod, const u8 *mac, u32 port)
{
	struct endpoint *endpoint;

	if (config->admission != ADMISSION_DIRECT)
		return;
	endpoint = endpoints.lookup(&pod);
	if (endpoint && endpoint->sent_port != port &&
	    same_mac(endpoint->pod_mac, mac))
		endpoint->sent_port = port;
}

/* Whether it gets to the peer: hops, lengths, MTU. */
static __always_inline enum verdict
judge_egress_size(const struct __sk_buff *skb, const struct config *config,
		  const struct peer *peer, const struct packet *packet)
{
	u32 room = peer->direct ? 0 : TUNNEL_ROOM;

	if (packet->ttl <= (peer->direct ? 1 : TUNNEL_HOPS))
		return VERDICT_TTL;
	if (packet->total_len + sizeof(struct ethernet) != skb->len ||
	    packet->total_len + room > 0xffff)
		return VERDICT_LENGTH;
	return fits(skb, packet, config->mtu) ? UNDECIDED : VERDICT_TOO_BIG;
}

static __always_inline bool must_be_segmented(const struct __sk_buff *skb,
					      const struct peer *peer,
					      const struct packet *packet)
{
	return !TUNNEL_SENDS_DATAGRAMS && !peer->direct && skb->gso_size &&
	       packet->protocol == IPPROTO_UDP;
}

/* FAST: *flow is set. */
static __always_inline enum verdict
judge_egress_flow(const struct __sk_buff *skb, const struct config *config,
		  struct flow_key *key, const struct packet *packet,
		  struct flow **flow)
{
	const struct ethernet *ethernet = (void *)(long)skb->data;
	enum verdict verdict;

	*flow = flows.lookup(key);
	if (!*flow)
		return VERDICT_NOT_ADMITTED;
	verdict = admitted(config, *flow, (*flow)->egress_kind, packet);
	/*
	 * The source address is this port's and this MAC's, and the frame is
	 * for the gateway, not for a neighbour on the bridge.
	 */
	if (verdict == VERDICT_FAST &&
	    ((void *)(ethernet + 1) > (void *)(long)skb->data_end ||
	     (*flow)->egress_port != skb->ifindex ||
	     !same_mac((*flow)->pod_mac, ethernet->src) ||
	     !same_mac((*flow)->gateway_mac, ethernet->dst)))
		return VERDICT_OTHER_PORT;
	return verdict;
}

/* FAST: *peer and *flow are set, and nothing has been written. */
static __always_inline enum verdict judge_sent(struct __sk_buff *skb,
					       const struct config *config,
					       const struct peer **peer,
					       struct flow **flow)
{
	const struct ethernet *ethernet = (void *)(long)skb->data;
	const struct ipv4 *ip = (const void *)(ethernet + 1);
	const void *end = (void *)(long)skb->data_end;
	struct packet packet = {};
	struct flow_key key;
	enum verdict verdict;

	if (skb->protocol != ETHERTYPE_IPV4)
		return VERDICT_UNRELATED;
	if ((const void *)(ip + 1) > end)
		return VERDICT_TRUNCATED;
	*peer = peer_of(config, ip->dst);
	if (!*peer)
		return speaks_tunnel(skb, config, ip) ? VERDICT_POD_TUNNEL :
							VERDICT_UNRELATED;
	if (config->admission == ADMISSION_OFF)
		return VERDICT_ADMISSION_OFF;
	if (skb->vlan_present)
		return VERDICT_VLAN;
	verdict = parse_packet(ip, end, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	egress_key(&key, &packet);
	if (packet.tcp_flags & TCP_CONTROL) {
		verdict = judge_control(config, &key, &packet);
		if (verdict != UNDECIDED) {
			if (answers_open(&packet))
				sight(config, &key, &packet, EGRESS,
				      skb->ifindex);
			note_sender(config, packet.src, ethernet->src,
				    skb->ifindex);
			return verdict;
		}
	}
	verdict = judge_egress_size(skb, config, *peer, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = must_be_segmented(skb, *peer, &packet) ?
			  VERDICT_DATAGRAMS :
			  judge_egress_flow(skb, config, &key, &packet, flow);
	if (verdict != VERDICT_FAST) {
		sight(config, &key, &packet, EGRESS, skb->ifindex);
		note_sender(config, packet.src, ethernet->src, skb->ifindex);
	}
	return verdict;
}

/* One hop on, with the headers that lead to the peer. False: refused. */
static __always_inline bool rewrite(struct __sk_buff *skb,
				    const struct config *config,
				    const struct peer *peer, struct flow *flow,
				    u16 id)
{
	if (peer->direct)
		return plain_push(skb);
	return tunnel_push(skb, peer, tunnel_source_port(skb, config, flow),
			   id);
}

/* Not fast: dropped if it is a tunnel packet of a pod's, else the stack's. */
static __always_inline int leave_sent(struct __sk_buff *skb,
				      const struct config *config,
				      enum verdict verdict)
{
	bool tunnelled = verdict == VERDICT_POD_TUNNEL;
	bool dropped = tunnelled && config && config->spoof == SPOOF_DROP;

	count_verdict(PROGRAM_FROM_POD, verdict);
	report(skb, PROGRAM_FROM_POD, verdict, dropped, sizeof(struct ethernet),
	       tunnelled);
	return dropped ? DROP : TO_STACK;
}

int from_pod(struct __sk_buff *skb)
{
	const struct config *config = configuration();
	const struct peer *peer = NULL;
	struct flow *flow = NULL;
	struct traffic *traffic;
	enum verdict verdict;
	u32 segments, length;

	verdict = config ? judge_sent(skb, config, &peer, &flow) :
			   VERDICT_UNCONFIGURED;
	if (verdict != VERDICT_FAST || !config || !peer || !flow)
		return leave_sent(skb, config, verdict);

	/* Before the push, which leaves them to be counted again. */
	segments = skb->gso_segs;
	length = skb->len - sizeof(struct ethernet);
	traffic = traffic_of(peer);
	if (!rewrite(skb, config, peer, flow, next_id(traffic)))
		return leave_sent(skb, config, VERDICT_ROOM);
	if (traffic)
		count_traffic(&traffic->fast_sent_packets,
			      &traffic->fast_sent_bytes, segments, length);
	count_verdict(PROGRAM_FROM_POD, VERDICT_FAST);
	return send_to(config, peer);
}

/*
 * Where the stack delivers a pod's packets: the other half of an endpoint. A
 * bridge floods a frame whose port it does not know to every port, so this
 * half alone proves nothing.
 */
static __always_inline void note_receiver(const struct config *config,
					  __be32 pod,
					  const struct ethernet *ethernet,
					  u32 port)
{
	struct endpoint fresh = { .delivered_port = port };
	const struct endpoint *known;

	if (config->admission != ADMISSION_DIRECT ||
	    !is_own_pod(config, pod) || ethernet->dst[0] & 1)
		return;
	known = endpoints.lookup(&pod);
	if (known && known->delivered_port == port &&
	    same_mac(known->pod_mac, ethernet->dst) &&
	    same_mac(known->gateway_mac, ethernet->src))
		return;
	__builtin_memcpy(fresh.pod_mac, ethernet->dst, 6);
	__builtin_memcpy(fresh.gateway_mac, ethernet->src, 6);
	endpoints.update(&pod, &fresh);
}

static __always_inline enum verdict
judge_delivered(struct __sk_buff *skb, const struct config *config)
{
	const struct ethernet *ethernet = (void *)(long)skb->data;
	const struct ipv4 *ip = (const void *)(ethernet + 1);
	const void *end = (void *)(long)skb->data_end;
	u32 port = skb->ifindex, no_port;
	struct packet packet = {};
	struct flow_key key;
	enum verdict verdict;

	if (skb->protocol != ETHERTYPE_IPV4)
		return VERDICT_UNRELATED;
	if ((const void *)(ip + 1) > end)
		return VERDICT_TRUNCATED;
	if (config->admission == ADMISSION_OFF)
		return VERDICT_ADMISSION_OFF;
	note_receiver(config, ip->dst, ethernet, port);
	if (!peer_of(config, ip->src))
		return VERDICT_UNRELATED;
	verdict = parse_packet(ip, end, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	ingress_key(&key, &packet);
	if (packet.tcp_flags & TCP_CONTROL) {
		forget(&key);
		if (!answers_open(&packet))
			return VERDICT_CONTROL;
	}
	if (!pod_ports.lookup(&port))
		return VERDICT_PORT_GONE;
	verdict = witnessed(config, &key, &packet, INGRESS, &no_port);
	if (verdict == VERDICT_WITNESSED)
		stamp_ingress(config, &key, &packet, port, ethernet);
	return verdict;
}

int to_pod(struct __sk_buff *skb)
{
	const struct config *config = configuration();
	enum verdict verdict = config ? judge_delivered(skb, config) :
					VERDICT_UNCONFIGURED;

	count_verdict(PROGRAM_TO_POD, verdict);
	report(skb, PROGRAM_TO_POD, verdict, false, sizeof(struct ethernet),
	       false);
	return TO_STACK;
}
