/* SPDX-License-Identifier: Apache-2.0 */
/*
 * from_uplink: TC ingress of the uplink. Every packet for the tunnel's port
 * and for this node has its sender checked, whatever becomes of it. One of an
 * admitted flow is handed to the pod; any other is noted and left to the
 * stack. Packets that are not the tunnel's are not touched and not counted.
 */
#include "flow.h"
#include "lib/local.h"
#include "lib/vxlan.h"

#define ETHERTYPE_VLAN be16(0x8100)
#define ETHERTYPE_QINQ be16(0x88a8)
#define PACKET_HOST 0
#define PACKET_OTHERHOST 3

/* From the UDP header on, wherever that starts. */
struct tunnel_headers {
	struct udp udp;
	struct vxlan vxlan;
	struct ethernet ethernet;
	struct ipv4 ip;
} __attribute__((packed, aligned(4)));

/* All that the fast path reads; a shorter packet is read to its end. */
#define PARSED (sizeof(struct vxlan_headers) + sizeof(struct tcp))

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
 * Whether outer may send packets of inner_src. UNDECIDED: yes, and *peer is
 * the lease's, or NULL where the node speaks for itself.
 */
static __always_inline enum verdict
judge_sender(const struct config *config, __be32 outer, __be16 inner_type,
	     __be32 inner_src, const struct peer **peer)
{
	const struct peer *owner;

	if (inner_type == ETHERTYPE_IPV4) {
		owner = peer_of(config, inner_src);
		if (owner && (owner->node == outer ||
			      owner->previous_node == outer)) {
			*peer = owner;
			return UNDECIDED;
		}
	}
	if (!nodes.lookup(&outer))
		return VERDICT_UNKNOWN_NODE;
	/* A tag could hide an IPv4 packet that the stack would still take. */
	if (inner_type == ETHERTYPE_VLAN || inner_type == ETHERTYPE_QINQ)
		return VERDICT_HIDDEN_SOURCE;
	if (inner_type != ETHERTYPE_IPV4)
		return VERDICT_NOT_IPV4;
	if (inner_src == outer)
		return VERDICT_NODE;
	/* peer_index has as many entries as the network has subnets. */
	return subnet_index(config, inner_src) < config->subnets ?
		       VERDICT_FOREIGN_SOURCE :
		       VERDICT_OUTSIDE_SOURCE;
}

static __always_inline enum verdict
judge_tunnel(const struct config *config, const struct vxlan *vxlan)
{
	if (vxlan->flags != VXLAN_FLAGS)
		return VERDICT_TUNNEL_FLAGS;
	if (vxlan->vni != config->vni)
		return VERDICT_OTHER_VNI;
	return UNDECIDED;
}

/*
 * A packet with outer options, a first fragment, one to another address of
 * ours, or one whose headers cannot be had in one piece: the sender is checked
 * through copies, and the stack has it if the check allows.
 */
static __always_inline enum verdict
judge_unusual(struct __sk_buff *skb, const struct config *config,
	      const struct peer **peer)
{
	struct tunnel_headers headers;
	u32 offset = sizeof(struct ethernet);
	enum verdict verdict;
	struct ipv4 ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return VERDICT_UNRELATED;
	/* Later fragments lead nowhere without the first. */
	if (ip.protocol != IPPROTO_UDP || ip.fragment & IPV4_OFFSET)
		return VERDICT_UNRELATED;
	offset += (ip.version_ihl & 0xf) * 4;
	if (bpf_skb_load_bytes(skb, offset, &headers.udp, sizeof(headers.udp)))
		return VERDICT_UNRELATED;
	if (headers.udp.dst != config->port)
		return VERDICT_UNRELATED;
	if (ip.dst != config->node && !is_local(skb, ip.src, ip.dst))
		return VERDICT_UNRELATED;
	if (bpf_skb_load_bytes(skb, offset, &headers, sizeof(headers))) {
		if (!nodes.lookup(&ip.src))
			return VERDICT_UNKNOWN_NODE;
		/* RFC 1858: a fragment too short to be judged. */
		return ip.fragment & IPV4_FRAGMENT ? VERDICT_HIDDEN_SOURCE :
						     VERDICT_TRUNCATED;
	}
	verdict = judge_tunnel(config, &headers.vxlan);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = judge_sender(config, ip.src, headers.ethernet.type,
			       headers.ip.src, peer);
	if (verdict != UNDECIDED)
		return verdict;
	if (ip.fragment & IPV4_FRAGMENT)
		return VERDICT_FRAGMENT;
	return ip.version_ihl != IPV4_PLAIN ? VERDICT_IP_OPTIONS :
	       ip.dst != config->node       ? VERDICT_OTHER_ADDRESS :
					      VERDICT_TRUNCATED;
}

/*
 * Looked up once a jiffy and flow: what was sent to a pod is lost anyway in the
 * moment in which it goes, and none with its address can be up so soon.
 */
static __always_inline bool is_port_alive(struct flow *flow)
{
	u32 port = flow->ingress_port, now = bpf_jiffies64();

	if (flow->port_alive == now)
		return true;
	if (!pod_ports.lookup(&port))
		return false;
	flow->port_alive = now;
	return true;
}

/* The sender has been checked. FAST: *flow is set. */
static __always_inline enum verdict
judge_flow(struct __sk_buff *skb, const struct config *config,
	   const struct vxlan_headers *headers, struct flow **flow)
{
	const void *end = (void *)(long)skb->data_end;
	struct packet packet = {};
	struct flow_key key;
	enum verdict verdict;

	if (config->admission == ADMISSION_OFF)
		return VERDICT_ADMISSION_OFF;
	if (skb->pkt_type != PACKET_HOST)
		return VERDICT_NOT_HOST;
	if (skb->vlan_present)
		return VERDICT_VLAN;
	if (!same_mac(headers->inner_ethernet.dst, config->vtep_mac))
		return VERDICT_OTHER_VTEP;
	if (!is_own_pod(config, headers->inner_ip.dst))
		return VERDICT_NOT_POD;
	verdict = parse_packet(&headers->inner_ip, end, &packet);
	if (verdict != UNDECIDED)
		return verdict;
	ingress_key(&key, &packet);
	if (packet.tcp_flags & TCP_CONTROL) {
		verdict = judge_control(config, &key, &packet);
		if (verdict != UNDECIDED) {
			if (answers_open(&packet))
				sight(config, &key, &packet, INGRESS, 0);
			return verdict;
		}
	}
	if (packet.ttl <= 1)
		return VERDICT_TTL;
	if (packet.total_len + sizeof(*headers) - sizeof(struct ipv4) !=
		    skb->len ||
	    headers->ip.total_len !=
		    be16((u16)(packet.total_len + TUNNEL_ROOM)) ||
	    headers->udp.len != be16((u16)(packet.total_len + TUNNEL_ROOM -
					   sizeof(struct ipv4))))
		return VERDICT_LENGTH;
	if (!fits(skb, &packet, config->pod_mtu))
		return VERDICT_TOO_BIG;
	if (congestion_matters(headers->ip.tos, packet.tos)) {
		sight(config, &key, &packet, INGRESS, 0);
		return VERDICT_CONGESTION;
	}
	/*
	 * Datagrams in one packet have to be taken apart for the pod's socket,
	 * and bpf_skb_adjust_room leaves it marked as a tunnel's (gso_type,
	 * skb->encapsulation): the kernel then drops it, uncounted. TCP takes
	 * such a packet whole.
	 */
	if (skb->gso_size && packet.protocol == IPPROTO_UDP) {
		sight(config, &key, &packet, INGRESS, 0);
		return VERDICT_ROOM;
	}
	*flow = flows.lookup(&key);
	verdict = *flow ? admitted(config, *flow, (*flow)->ingress_kind,
				   &packet) :
			  VERDICT_NOT_ADMITTED;
	if (verdict == VERDICT_FAST) {
		if (is_port_alive(*flow))
			return VERDICT_FAST;
		verdict = VERDICT_PORT_GONE;
	}
	sight(config, &key, &packet, INGRESS, 0);
	return verdict;
}

/* UNRELATED: not the tunnel's. FAST: *peer and *flow are set. */
static __always_inline enum verdict
judge_received(struct __sk_buff *skb, const struct config *config,
	       const struct peer **peer, struct flow **flow)
{
	const struct vxlan_headers *headers;
	enum verdict verdict;
	const void *end;

	pull_headers(skb);
	headers = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if ((const void *)(&headers->udp + 1) > end)
		return judge_unusual(skb, config, peer);
	if (headers->ip.protocol != IPPROTO_UDP)
		return VERDICT_UNRELATED;
	if (headers->ip.version_ihl != IPV4_PLAIN ||
	    headers->ip.fragment & IPV4_FRAGMENT)
		return judge_unusual(skb, config, peer);
	if (headers->udp.dst != config->port)
		return VERDICT_UNRELATED;
	if (headers->ip.dst != config->node ||
	    (const void *)(headers + 1) > end)
		return judge_unusual(skb, config, peer);
	verdict = judge_tunnel(config, &headers->vxlan);
	if (verdict != UNDECIDED)
		return verdict;
	verdict = judge_sender(config, headers->ip.src,
			       headers->inner_ethernet.type,
			       headers->inner_ip.src, peer);
	if (verdict != UNDECIDED)
		return verdict;
	return judge_flow(skb, config, headers, flow);
}

static __always_inline bool is_forged(enum verdict verdict)
{
	return verdict >= VERDICT_UNKNOWN_NODE;
}

int from_uplink(struct __sk_buff *skb)
{
	const struct config *config = configuration();
	const struct peer *peer = NULL;
	struct flow *flow = NULL;
	struct traffic *traffic = NULL;
	enum verdict verdict;

	if (skb->protocol != ETHERTYPE_IPV4 || !config ||
	    skb->pkt_type == PACKET_OTHERHOST)
		return TO_STACK;
	verdict = judge_received(skb, config, &peer, &flow);
	if (verdict == VERDICT_UNRELATED)
		return TO_STACK;
	if (is_forged(verdict)) {
		if (config->spoof != SPOOF_OFF)
			count_verdict(PROGRAM_FROM_UPLINK, verdict);
		return config->spoof == SPOOF_DROP ? DROP : TO_STACK;
	}
	if (peer)
		traffic = traffic_of(peer);
	if (verdict == VERDICT_FAST && flow) {
		u32 port = flow->ingress_port;

		if (traffic)
			count_traffic(&traffic->fast_received_packets,
				      &traffic->fast_received_bytes,
				      skb->gso_segs,
				      skb->len - TUNNEL_TEMPLATE);
		if (!tunnel_pop(skb, flow)) {
			count_verdict(PROGRAM_FROM_UPLINK, VERDICT_ROOM);
			return TO_STACK;
		}
		count_verdict(PROGRAM_FROM_UPLINK, VERDICT_FAST);
		/* redirect_peer clears neither (a pod must not see our mark). */
		skb->mark = 0;
		return bpf_redirect_peer(port, 0);
	}
	if (traffic)
		count_traffic(&traffic->slow_received_packets,
			      &traffic->slow_received_bytes, skb->gso_segs,
			      skb->len - TUNNEL_TEMPLATE);
	count_verdict(PROGRAM_FROM_UPLINK, verdict);
	return TO_STACK;
}
