/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both programs of the uplink ask about a packet from the wire: whether
 * its sender may send it, and whether its flow is admitted. Never decides what
 * to do with a packet.
 */
#pragma once
#include "flow.h"

/*
 * The source address, 02:4b:45:52:53:59, of a frame that wire took the tunnel's
 * headers off, sender and flow checked. Not metadata of XDP (data_meta): many
 * drivers have none. No frame from outside has this address, for wire drops it.
 */
#define WIRE_MAC_0 be16(0x024b)
#define WIRE_MAC_1 be16(0x4552)
#define WIRE_MAC_2 be16(0x5359)

static __always_inline bool is_from_wire(const struct ethernet *ethernet)
{
	const __be16 *src = (const void *)ethernet->src;

	return src[2] == WIRE_MAC_2 && src[1] == WIRE_MAC_1 &&
	       src[0] == WIRE_MAC_0;
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

/*
 * Frames are padded to 60 bytes; one that had a VLAN tag may be to 64. The IP
 * layer of whoever gets it cuts that off.
 */
#define PADDED 64

/* Whether a frame is as long as the packet without a tunnel in it says. */
static __always_inline bool plain_length_agrees(u32 frame_len, u16 packet_len)
{
	u32 length = packet_len + sizeof(struct ethernet);

	return frame_len == length ||
	       (frame_len > length && frame_len <= PADDED);
}

static __always_inline bool is_forged(enum verdict verdict)
{
	return verdict >= VERDICT_UNKNOWN_NODE && verdict != UNDECIDED;
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

/* FAST: *found is set. */
static __always_inline enum verdict
judge_ingress_flow(const struct config *config, struct flow_key *key,
		   const struct packet *packet, struct flow **found)
{
	struct flow *flow = flows.lookup(key);
	enum verdict verdict;

	if (!flow)
		return VERDICT_NOT_ADMITTED;
	verdict = admitted(config, flow, flow->ingress_kind, packet);
	if (verdict != VERDICT_FAST)
		return verdict;
	*found = flow;
	return is_port_alive(flow) ? VERDICT_FAST : VERDICT_PORT_GONE;
}
