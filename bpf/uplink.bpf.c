/* SPDX-License-Identifier: Apache-2.0 */
/*
 * from_uplink: TC ingress of the uplink. Every packet of the tunnel's for this
 * node has its sender checked, whatever becomes of it. One of an admitted flow
 * is handed to the pod; any other is noted and left to the stack. Where that
 * is a user-space proxy, what can be taken out of the tunnel here enters the
 * stack by the proxy's device, and only the rest by its socket.
 *
 * A packet from a direct peer's pod comes without a tunnel, and so without an
 * outer source: nothing in it shows which node sent it, as in any routed
 * network, and no sender is checked. Else the same is done with it.
 *
 * A packet that wire (wire.bpf.c) took the tunnel's headers off is judged once
 * more, since flows end at any moment. One that is not fast after all goes into
 * the stack by the overlay device, as the kernel's own tunnel would have it.
 *
 * Packets that are none of these are not touched and not counted.
 */
#include "receive.h"
#include "lib/rewrite.h"
#include "lib/routes.h"
#include "report.h"

#define PACKET_HOST 0
#define PACKET_OTHERHOST 3

/* What is known of a packet from the wire. */
struct arrival {
	const struct peer *peer; /* of the source; NULL: a node for itself */
	struct flow *flow;       /* where it is fast */
	bool plain;              /* without a tunnel's headers */
	bool opened;             /* since wire took them off */
	bool whole;              /* the proxy's device could take it */
	u32 length;              /* of the inner packet, in bytes */
};

/* All that the fast path reads; a shorter packet is read to its end. */
#define PARSED (sizeof(struct tunnel_headers) + sizeof(struct tcp))

/*
 * Some drivers leave all but the Ethernet header in fragments. Never on a GSO
 * packet: a partial pull corrupts fragment lists before 6.16, and GRO has made
 * its headers linear.
 */
static __always_inline void pull_headers(struct __sk_buff *skb)
{
	long linear = (long)skb->data_end - (long)skb->data;
	u32 want = skb->len < PARSED ? skb->len : PARSED;

	if (linear < want && !skb->gso_size)
		bpf_skb_pull_data(skb, want);
}

/*
 * A packet with outer options, a first fragment, one to another address of
 * ours, or one whose headers cannot be had in one piece: the sender is checked
 * through copies, and the stack has it if the check allows.
 */
static __always_inline enum verdict
judge_unusual(struct __sk_buff *skb, const struct config *config,
	      struct arrival *arrival)
{
	struct tunnel_body body __attribute__((aligned(4)));
	u32 offset = sizeof(struct ethernet);
	enum verdict verdict;
	struct ipv4 ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return VERDICT_UNRELATED;
	/* Later fragments lead nowhere without the first. */
	if (!tunnel_is_protocol(ip.protocol) || ip.fragment & IPV4_OFFSET)
		return VERDICT_UNRELATED;
	offset += (ip.version_ihl & 0xf) * 4;
	if (TUNNEL_HEAD &&
	    bpf_skb_load_bytes(skb, offset, &body, TUNNEL_HEAD))
		return VERDICT_UNRELATED;
	if (!tunnel_is_addressed(config, &body))
		return VERDICT_UNRELATED;
	if (ip.dst != config->node && !is_local(skb, ip.src, ip.dst))
		return VERDICT_UNRELATED;
	if (bpf_skb_load_bytes(skb, offset, &body, sizeof(body))) {
		if (!nodes.lookup(&ip.src))
			return VERDICT_UNKNOWN_NODE;
		/* RFC 1858: a fragment too short to be judged. */
		return ip.fragment & IPV4_FRAGMENT ? VERDICT_HIDDEN_SOURCE :
						     VERDICT_TRUNCATED;
	}
	verdict = tunnel_judge(config, &body);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = judge_sender(config, ip.src, tunnel_inner_type(&body),
			       body.inner_ip.src, &arrival->peer);
	if (verdict != UNDECIDED)
		return verdict;
	if (ip.fragment & IPV4_FRAGMENT)
		return VERDICT_FRAGMENT;
	return ip.version_ihl != IPV4_PLAIN ? VERDICT_IP_OPTIONS :
	       ip.dst != config->node       ? VERDICT_OTHER_ADDRESS :
					      VERDICT_TRUNCATED;
}

/* What the outer headers say of an inner packet of this length. */
static __always_inline bool
lengths_agree(const struct __sk_buff *skb, const struct tunnel_headers *headers,
	      u16 inner_len)
{
	return skb->len == inner_len + TUNNEL_TEMPLATE &&
	       headers->ip.total_len == be16((u16)(inner_len + TUNNEL_ROOM)) &&
	       tunnel_length_is_right(&headers->body, inner_len);
}

/*
 * Datagrams in one packet have to be taken apart for the pod's socket, and
 * bpf_skb_adjust_room leaves it marked as a UDP tunnel's (gso_type,
 * skb->encapsulation): the kernel then drops it, uncounted. TCP takes such a
 * packet whole.
 */
static __always_inline bool is_datagrams(const struct __sk_buff *skb,
					 u8 protocol)
{
	return !TUNNEL_TAKES_DATAGRAMS && skb->gso_size &&
	       protocol == IPPROTO_UDP;
}

/* Whether it is for a pod of ours, on the way that its sender has. */
static __always_inline enum verdict
judge_way(const struct __sk_buff *skb, const struct config *config,
	  const struct ipv4 *ip, const struct tunnel_headers *headers,
	  const struct peer *peer)
{
	if (skb->pkt_type != PACKET_HOST)
		return VERDICT_NOT_HOST;
	if (skb->vlan_present)
		return VERDICT_VLAN;
	if (headers && !tunnel_is_for_device(config, &headers->body))
		return VERDICT_OTHER_VTEP;
	if (!is_own_pod(config, ip->dst))
		return VERDICT_NOT_POD;
	/* No witness for the other way: not even noted. */
	return headers && peer->direct ? VERDICT_TUNNELLED : UNDECIDED;
}

static __always_inline enum verdict
judge_ingress_size(const struct __sk_buff *skb, const struct config *config,
		   const struct tunnel_headers *headers,
		   const struct packet *packet)
{
	if (headers ? !lengths_agree(skb, headers, packet->total_len) :
		      !plain_length_agrees(skb->len, packet->total_len))
		return VERDICT_LENGTH;
	return fits(skb, packet, config->pod_mtu) ? UNDECIDED : VERDICT_TOO_BIG;
}

/*
 * The sender has been checked. headers: NULL where there is no tunnel. FAST:
 * arrival->flow is set.
 */
static __always_inline enum verdict
judge_inner(struct __sk_buff *skb, const struct config *config,
	    const struct ipv4 *ip, const struct tunnel_headers *headers,
	    struct arrival *arrival)
{
	const void *end = (void *)(long)skb->data_end;
	int extra_hops = headers || arrival->opened ? TUNNEL_HOPS - 1 : 0;
	struct packet packet = {};
	struct flow_key key;
	enum verdict verdict;

	if (config->admission == ADMISSION_OFF)
		return VERDICT_ADMISSION_OFF;
	verdict = judge_way(skb, config, ip, headers, arrival->peer);
	if (verdict == UNDECIDED)
		verdict = parse_packet(ip, end, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	if (packet.ttl <= extra_hops)
		return VERDICT_TTL;
	/* From here on it is what the stack will see of it. */
	packet.ttl -= extra_hops;
	ingress_key(&key, &packet);
	if (packet.tcp_flags & TCP_CONTROL) {
		verdict = judge_control(config, &key, &packet);
		if (verdict != UNDECIDED) {
			if (answers_open(&packet))
				sight(config, &key, &packet, INGRESS, 0);
			return verdict;
		}
	}
	if (packet.ttl == 1)
		return VERDICT_TTL;
	verdict = judge_ingress_size(skb, config, headers, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = headers && congestion_matters(headers->ip.tos, packet.tos) ?
			  VERDICT_CONGESTION :
		  headers && is_datagrams(skb, packet.protocol) ?
			  VERDICT_DATAGRAMS :
			  judge_ingress_flow(config, &key, &packet,
					     &arrival->flow);
	if (verdict != VERDICT_FAST)
		sight(config, &key, &packet, INGRESS, 0);
	return verdict;
}

/*
 * A packet that is not the tunnel's. Of all that the node receives, only what
 * is for its pods is looked at any further.
 */
static __always_inline enum verdict judge_plain(struct __sk_buff *skb,
						const struct config *config,
						const struct ipv4 *ip,
						struct arrival *arrival)
{
	if (!is_own_pod(config, ip->dst))
		return VERDICT_UNRELATED;
	arrival->peer = peer_of(config, ip->src);
	if (!arrival->peer)
		return VERDICT_UNRELATED;
	arrival->plain = true;
	arrival->length = host16(ip->total_len);
	if (!arrival->peer->direct && !arrival->opened)
		return VERDICT_NOT_TUNNELLED;
	return judge_inner(skb, config, ip, NULL, arrival);
}

/*
 * Whether the packet can go on without its outer headers as if the proxy had
 * taken them off. Several datagrams that the NIC merged (rx-udp-gro-forwarding)
 * have one outer length and another inner one.
 */
static __always_inline bool is_whole(const struct __sk_buff *skb,
				     const struct config *config,
				     const struct tunnel_headers *headers)
{
	const struct ipv4 *ip = &headers->body.inner_ip;
	u16 length = host16(ip->total_len);

	return skb->pkt_type == PACKET_HOST && !skb->vlan_present &&
	       ip->version_ihl >= IPV4_PLAIN && ip->version_ihl >> 4 == 4 &&
	       ip->ttl >= TUNNEL_HOPS && lengths_agree(skb, headers, length) &&
	       (skb->gso_size || length <= config->mtu) &&
	       !is_datagrams(skb, ip->protocol) &&
	       !congestion_matters(headers->ip.tos, ip->tos);
}

/* A packet whose IPv4 header is linear. UNRELATED: not the tunnel's. */
static __always_inline enum verdict
judge_tunnelled(struct __sk_buff *skb, const struct config *config,
		const struct tunnel_headers *headers, struct arrival *arrival)
{
	bool odd = headers->ip.version_ihl != IPV4_PLAIN ||
		   headers->ip.fragment & IPV4_FRAGMENT;
	enum verdict verdict;

	if (!tunnel_is_protocol(headers->ip.protocol))
		return VERDICT_UNRELATED;
	if (!odd && !tunnel_is_addressed(config, &headers->body))
		return VERDICT_UNRELATED;
	if (odd || headers->ip.dst != config->node ||
	    (void *)(headers + 1) > (void *)(long)skb->data_end)
		return judge_unusual(skb, config, arrival);
	verdict = tunnel_judge(config, &headers->body);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = judge_sender(config, headers->ip.src,
			       tunnel_inner_type(&headers->body),
			       headers->body.inner_ip.src, &arrival->peer);
	if (verdict == UNDECIDED)
		verdict = judge_inner(skb, config, &headers->body.inner_ip,
				      headers, arrival);
	if (!TUNNEL_LINK && config->carrier && verdict != VERDICT_FAST)
		arrival->whole = is_whole(skb, config, headers);
	return verdict;
}

static __always_inline bool is_opened(const struct __sk_buff *skb,
				      const struct config *config,
				      const struct tunnel_headers *headers)
{
	return TUNNEL_ROOM && config->wire && is_from_wire(&headers->ethernet) &&
	       skb->ifindex == config->uplink;
}

/* UNRELATED: not the overlay's. Else: *arrival is set. */
static __always_inline enum verdict judge_received(struct __sk_buff *skb,
						   const struct config *config,
						   struct arrival *arrival)
{
	const struct tunnel_headers *headers;
	enum verdict verdict;

	pull_headers(skb);
	headers = (void *)(long)skb->data;
	if ((void *)&headers->body + TUNNEL_HEAD > (void *)(long)skb->data_end)
		return judge_unusual(skb, config, arrival);
	arrival->opened = is_opened(skb, config, headers);
	verdict = arrival->opened ?
			  VERDICT_UNRELATED :
			  judge_tunnelled(skb, config, headers, arrival);
	return verdict == VERDICT_UNRELATED ?
		       judge_plain(skb, config, &headers->ip, arrival) :
		       verdict;
}

/* As the pod gets it. False: the kernel refuses, and the packet is as it was. */
static __always_inline bool take_out(struct __sk_buff *skb,
				     const struct arrival *arrival)
{
	return arrival->opened ? plain_pop(skb, arrival->flow, TUNNEL_HOPS) :
	       arrival->plain  ? plain_pop(skb, arrival->flow, 1) :
				 tunnel_pop(skb, arrival->flow);
}

static __always_inline int deliver(struct __sk_buff *skb,
				   const struct arrival *arrival,
				   struct traffic *traffic, u32 segments)
{
	if (traffic)
		count_traffic(&traffic->fast_received_packets,
			      &traffic->fast_received_bytes, segments,
			      arrival->length);
	count_verdict(PROGRAM_FROM_UPLINK, VERDICT_FAST);
	/* redirect_peer clears neither (a pod must not see our mark). */
	skb->mark = 0;
	return bpf_redirect_peer(arrival->flow->ingress_port, 0);
}

/* To the stack, through the proxy's device instead of the proxy. */
static __always_inline int hand_over(struct __sk_buff *skb,
				     const struct config *config)
{
	if (!tunnel_strip(skb))
		return TO_STACK;
	skb->mark = 0;
	return bpf_redirect(config->carrier, BPF_F_INGRESS);
}

/* To the stack, by the overlay device, whose headers are off already. */
static __always_inline int enter_overlay(struct __sk_buff *skb,
					 const struct config *config)
{
	if (!plain_strip(skb, config))
		return TO_STACK;
	skb->mark = 0;
	return bpf_redirect(config->overlay, BPF_F_INGRESS);
}

/* What is not fast: dropped if its sender may not send it, else the stack's. */
static __always_inline int
leave_received(struct __sk_buff *skb, const struct config *config,
	       const struct arrival *arrival, struct traffic *traffic,
	       enum verdict verdict)
{
	bool forged = is_forged(verdict);
	bool dropped = forged && config->spoof == SPOOF_DROP;

	if (forged && config->spoof == SPOOF_OFF)
		return TO_STACK;
	count_verdict(PROGRAM_FROM_UPLINK, verdict);
	report(skb, PROGRAM_FROM_UPLINK, verdict, dropped,
	       sizeof(struct ethernet), !arrival->plain && !arrival->opened);
	if (forged)
		return dropped ? DROP : TO_STACK;
	if (traffic)
		count_traffic(&traffic->slow_received_packets,
			      &traffic->slow_received_bytes, skb->gso_segs,
			      arrival->length);
	return arrival->opened ? enter_overlay(skb, config) :
	       arrival->whole  ? hand_over(skb, config) :
				 TO_STACK;
}

int from_uplink(struct __sk_buff *skb)
{
	const struct config *config = configuration();
	struct arrival arrival = { .length = skb->len - TUNNEL_TEMPLATE };
	struct traffic *traffic = NULL;
	enum verdict verdict;
	u32 segments;

	if (skb->protocol != ETHERTYPE_IPV4 || !config ||
	    skb->pkt_type == PACKET_OTHERHOST)
		return TO_STACK;
	verdict = judge_received(skb, config, &arrival);
	if (verdict == VERDICT_UNRELATED && !arrival.opened)
		return TO_STACK;
	if (arrival.peer)
		traffic = traffic_of(arrival.peer);
	if (verdict == VERDICT_FAST && arrival.flow) {
		/* Before the pop, which leaves them to be counted again. */
		segments = skb->gso_segs;
		if (take_out(skb, &arrival))
			return deliver(skb, &arrival, traffic, segments);
		verdict = VERDICT_ROOM;
	}
	return leave_received(skb, config, &arrival, traffic, verdict);
}
