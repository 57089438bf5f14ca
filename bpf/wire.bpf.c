/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire: XDP on the uplink, before the kernel has made a packet of a frame.
 * Drops the tunnel packets that from_uplink would drop for their sender, and
 * passes everything else on as it is, unusual packets for from_uplink to judge.
 *
 * Where cfg says so, it takes the tunnel's headers off packets of admitted
 * flows, so that GRO merges what was inside; from_uplink, behind it, knows them
 * by their Ethernet source address and judges them once more. And it hands
 * packets of direct peers to those pods whose device takes frames.
 *
 * Headers have to be in the first buffer of a frame, as every driver has them.
 */
#include "receive.h"
#include "lib/rewrite.h"
#include "watch.h"

/*
 * The IPv4 header of a frame, NULL if there is none. One VLAN tag: what
 * from_uplink sees through as well.
 */
static __always_inline const struct ipv4 *
find_ipv4(const struct ethernet *ethernet, const void *end, bool *tagged)
{
	const struct vlan *vlan = (const void *)(ethernet + 1);
	const struct ipv4 *ip = (const void *)vlan;
	__be16 type;

	if ((const void *)(ip + 1) > end)
		return NULL;
	type = ethernet->type;
	*tagged = type == ETHERTYPE_VLAN || type == ETHERTYPE_QINQ;
	if (*tagged) {
		type = vlan->type;
		ip = (const void *)(vlan + 1);
		if ((const void *)(ip + 1) > end)
			return NULL;
	}
	return type == ETHERTYPE_IPV4 ? ip : NULL;
}

/*
 * UNRELATED: not the tunnel's, or from_uplink's to judge. UNDECIDED: a tunnel
 * packet of *peer's.
 */
static __always_inline enum verdict judge_outer(const struct config *config,
						const struct ipv4 *ip,
						const void *end,
						const struct peer **peer)
{
	const struct tunnel_body *body = (const void *)(ip + 1);
	__be32 node = ip->src;

	if (!tunnel_is_protocol(ip->protocol) || ip->dst != config->node ||
	    ip->version_ihl != IPV4_PLAIN || ip->fragment & IPV4_FRAGMENT ||
	    (const void *)body + TUNNEL_HEAD > end ||
	    !tunnel_is_addressed(config, body))
		return VERDICT_UNRELATED;
	if ((const void *)(body + 1) > end)
		return nodes.lookup(&node) ? VERDICT_UNRELATED :
					     VERDICT_UNKNOWN_NODE;
	if (tunnel_judge(config, body) != UNDECIDED)
		return VERDICT_UNRELATED;
	return judge_sender(config, node, tunnel_inner_type(body),
			    body->inner_ip.src, peer);
}

/* As judge_outer(). Forged: it is to be dropped. */
static __always_inline enum verdict
judge_frame(const struct config *config, const struct ethernet *ethernet,
	    const struct ipv4 *ip, const void *end, const struct peer **peer)
{
	enum verdict verdict;

	/* Whatever the sender check is: from_uplink would believe it. */
	if (is_from_wire(ethernet))
		return VERDICT_HIDDEN_SOURCE;
	verdict = judge_outer(config, ip, end, peer);
	return is_forged(verdict) && config->spoof != SPOOF_DROP ?
		       VERDICT_UNRELATED :
		       verdict;
}

/*
 * Whether a packet for a pod is one of an admitted flow now, and ordinary:
 * nothing of it concerns the stack. hops: that this node takes.
 */
static __always_inline bool is_fast(const struct config *config,
				    const struct ipv4 *ip, const void *end,
				    int hops, struct flow **flow)
{
	struct packet packet = {};
	struct flow_key key;

	if (config->admission == ADMISSION_OFF || !is_own_pod(config, ip->dst))
		return false;
	if (parse_packet(ip, end, &packet) != UNDECIDED)
		return false;
	if (packet.tcp_flags & TCP_CONTROL || packet.ttl <= hops ||
	    packet.total_len > config->pod_mtu)
		return false;
	packet.ttl -= hops - 1;
	ingress_key(&key, &packet);
	return judge_ingress_flow(config, &key, &packet, flow) == VERDICT_FAST;
}

/*
 * Whether from_uplink would take the headers off for the flow, too. The length
 * of the frame is from_uplink's to compare: a frame may be in several buffers.
 */
static __always_inline bool may_open(const struct config *config,
				     const struct ipv4 *ip, const void *end,
				     const struct peer *peer)
{
	const struct tunnel_body *body = (const void *)(ip + 1);
	struct flow *flow;
	u16 length;

	if ((const void *)(body + 1) > end || peer->direct ||
	    !tunnel_is_for_device(config, body) ||
	    congestion_matters(ip->tos, body->inner_ip.tos))
		return false;
	length = host16(body->inner_ip.total_len);
	return ip->total_len == be16((u16)(length + TUNNEL_ROOM)) &&
	       tunnel_length_is_right(body, length) &&
	       is_fast(config, &body->inner_ip, end, TUNNEL_HOPS, &flow);
}

/*
 * Whether a frame is for this node by its Ethernet address. A device in
 * promiscuous mode shows others, too: those are no concern of pods.
 */
static __always_inline bool is_for_us(const struct config *config,
				      const struct ethernet *ethernet)
{
	return same_mac(ethernet->dst, config->uplink_mac);
}

/* Takes the tunnel's headers off, and marks the frame. */
static __always_inline int open_frame(struct xdp_md *xdp)
{
	struct ethernet *ethernet = (void *)(long)xdp->data;
	__be16 *words;
	__be16 dst[3];

	if ((void *)(ethernet + 1) > (void *)(long)xdp->data_end)
		return XDP_PASS;
	__builtin_memcpy(dst, ethernet->dst, sizeof(dst));
	if (bpf_xdp_adjust_head(xdp, TUNNEL_ROOM))
		return XDP_PASS;
	words = (void *)(long)xdp->data;
	if ((void *)words + sizeof(*ethernet) > (void *)(long)xdp->data_end)
		return XDP_ABORTED; /* never: the inner packet is there */
	__builtin_memcpy(words, dst, sizeof(dst));
	words[3] = WIRE_MAC_0;
	words[4] = WIRE_MAC_1;
	words[5] = WIRE_MAC_2;
	words[6] = ETHERTYPE_IPV4;
	count_verdict(PROGRAM_WIRE, VERDICT_DECAPSULATED);
	return XDP_PASS;
}

/*
 * A direct peer's packet into the pod's own device, if that takes frames and
 * the packet is all of the frame.
 */
static __always_inline int hand_to_pod(struct xdp_md *xdp,
				       const struct config *config)
{
	struct front *front = (void *)(long)xdp->data;
	const void *end = (void *)(long)xdp->data_end;
	const struct peer *peer;
	struct traffic *traffic;
	struct flow *flow;
	u16 length;
	u32 port;

	if ((void *)(front + 1) > end || !is_own_pod(config, front->ip.dst))
		return XDP_PASS;
	peer = peer_of(config, front->ip.src);
	if (!peer || !peer->direct || !is_fast(config, &front->ip, end, 1, &flow))
		return XDP_PASS;
	length = host16(front->ip.total_len);
	port = flow->ingress_port;
	if (!plain_length_agrees(xdp->data_end - xdp->data, length) ||
	    !redirect_ports.lookup(&port))
		return XDP_PASS;
	write_front(front, flow, 1);
	traffic = traffic_of(peer);
	if (traffic)
		count_traffic(&traffic->fast_received_packets,
			      &traffic->fast_received_bytes, 0, length);
	count_verdict(PROGRAM_WIRE, VERDICT_FAST);
	return bpf_redirect(port, 0);
}

/* The packet inside, as far as the frame shows one. */
static __always_inline void describe_inner(const struct ipv4 *outer,
					   const void *end, struct event *event)
{
	const struct tunnel_body *body = (const void *)(outer + 1);
	const struct ipv4 *ip = &body->inner_ip;
	const struct ports *ports = (const void *)(ip + 1);

	if ((const void *)(body + 1) > end ||
	    tunnel_inner_type(body) != ETHERTYPE_IPV4)
		return;
	event->src = ip->src;
	event->dst = ip->dst;
	event->protocol = ip->protocol;
	if (ip->version_ihl != IPV4_PLAIN || ip->fragment & IPV4_OFFSET ||
	    (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP) ||
	    (const void *)(ports + 1) > end)
		return;
	event->src_port = ports->src;
	event->dst_port = ports->dst;
}

/* Every drop of this program: counted, and told to who watches. */
static __always_inline int refuse(const struct xdp_md *xdp,
				  const struct ipv4 *ip, enum verdict verdict)
{
	const struct watch *watch = watch_of(verdict, true);
	struct event event = {
		.outer_src = ip->src,
		.outer_dst = ip->dst,
		.length = xdp->data_end - xdp->data,
		.ifindex = xdp->ingress_ifindex,
		.program = PROGRAM_WIRE,
		.verdict = verdict,
		.dropped = 1,
	};

	count_verdict(PROGRAM_WIRE, verdict);
	if (watch) {
		/* A frame with our mark has no packet inside. */
		if (verdict != VERDICT_HIDDEN_SOURCE)
			describe_inner(ip, (void *)(long)xdp->data_end, &event);
		tell(watch, &event);
	}
	return XDP_DROP;
}

int wire(struct xdp_md *xdp)
{
	const struct ethernet *ethernet = (void *)(long)xdp->data;
	const void *end = (void *)(long)xdp->data_end;
	const struct config *config = configuration();
	const struct peer *peer = NULL;
	const struct ipv4 *ip;
	enum verdict verdict;
	bool tagged = false;

	if (!config)
		return XDP_PASS;
	ip = find_ipv4(ethernet, end, &tagged);
	if (!ip)
		return XDP_PASS;
	verdict = judge_frame(config, ethernet, ip, end, &peer);
	if (is_forged(verdict))
		return refuse(xdp, ip, verdict);
	if (tagged || !is_for_us(config, ethernet))
		return XDP_PASS;
	if (verdict == UNDECIDED)
		return config->wire & WIRE_DECAPSULATES &&
				       may_open(config, ip, end, peer) ?
			       open_frame(xdp) :
			       XDP_PASS;
	return verdict == VERDICT_UNRELATED && config->wire & WIRE_REDIRECTS ?
		       hand_to_pod(xdp, config) :
		       XDP_PASS;
}
