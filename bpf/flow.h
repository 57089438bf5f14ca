/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission: a flow is fast, in either direction, only while both directions
 * were seen to cross the whole stack unchanged, recently, in this generation,
 * at one and the same pod port. Never decides what to do with a packet, only
 * whether its flow is admitted.
 *
 *	from_pod / from_uplink	sight()		the packet enters the stack
 *	to_overlay / to_pod	witnessed()	it comes out as it went in
 *	from_pod / from_uplink	admitted()	both directions hold
 */
#pragma once
#include "lib/parse.h"

#define STAMP_BITS 48
#define STAMP_JIFFIES ((1ULL << STAMP_BITS) - 1)

static __always_inline const struct config *configuration(void)
{
	u32 zero = 0;
	const struct config *config = cfg.lookup(&zero);

	return config && config->node ? config : NULL;
}

/* Outside the network the difference wraps and is beyond any index. */
static __always_inline u32 subnet_index(const struct config *config,
					__be32 address)
{
	return (host32(address) - config->network) >> config->subnet_shift;
}

/* The peer that serves a pod address; NULL for our own and for nobody's. */
static __always_inline const struct peer *
peer_of(const struct config *config, __be32 address)
{
	u32 index = subnet_index(config, address);
	const u32 *slot = peer_index.lookup(&index);
	u32 number;

	if (!slot)
		return NULL;
	number = *(const volatile u32 *)slot;
	return number ? peers.lookup(&number) : NULL;
}

static __always_inline bool is_own_pod(const struct config *config,
				       __be32 address)
{
	return subnet_index(config, address) == config->own_subnet;
}

static __always_inline void egress_key(struct flow_key *key,
				       const struct packet *packet)
{
	key->local = packet->src;
	key->remote = packet->dst;
	key->local_port = packet->ports.src;
	key->remote_port = packet->ports.dst;
	key->protocol = packet->protocol;
	key->direction = 0;
	key->reserved = 0;
}

static __always_inline void ingress_key(struct flow_key *key,
					const struct packet *packet)
{
	key->local = packet->dst;
	key->remote = packet->src;
	key->local_port = packet->ports.dst;
	key->remote_port = packet->ports.src;
	key->protocol = packet->protocol;
	key->direction = 0;
	key->reserved = 0;
}

/* jiffies, since a clock read costs 30 ns and this nothing (5.5) */
static __always_inline u64 stamp_now(u16 generation)
{
	return (u64)generation << STAMP_BITS |
	       (bpf_jiffies64() & STAMP_JIFFIES);
}

/* What rules look at besides addresses and ports; ECN changes by packet. */
static __always_inline u16 kind_of(u8 tos, u8 ttl)
{
	return (tos & ~ECN_MASK) << 8 | ttl;
}

/* kind is the witnessed one of the packet's direction. */
static __always_inline enum verdict admitted(const struct config *config,
					     const struct flow *flow, u16 kind,
					     const struct packet *packet)
{
	u64 egress = flow->egress, ingress = flow->ingress, now;

	if (!egress || !ingress)
		return VERDICT_NOT_ADMITTED;
	/*
	 * conntrack has never seen a direct connection and would call its end
	 * INVALID: it ends as it began, unless the stack carried it since.
	 */
	if (flow->direct && packet->tcp_flags & TCP_CONTROL &&
	    flow->egress_port == flow->ingress_port)
		return VERDICT_FAST;
	if (egress >> STAMP_BITS != config->generation ||
	    ingress >> STAMP_BITS != config->generation)
		return VERDICT_FLUSHED;
	if (flow->egress_port != flow->ingress_port)
		return VERDICT_OTHER_PORT;
	if (flow->direct)
		return VERDICT_FAST;
	if (kind != kind_of(packet->tos, packet->ttl))
		return VERDICT_OTHER_KIND;
	now = stamp_now(config->generation);
	/* Another CPU may have stamped after this one read the clock. */
	if ((s64)(now - egress) > (s64)config->max_age ||
	    (s64)(now - ingress) > (s64)config->max_age)
		return VERDICT_STALE;
	return VERDICT_FAST;
}

/* A connection that opens or closes is judged anew, by the stack. */
static __always_inline void forget(struct flow_key *key)
{
	struct flow *flow = flows.lookup(key);

	if (flow) {
		flow->egress = 0;
		flow->ingress = 0;
		flow->direct = 0;
	}
}

static __always_inline u64 fact_of(u16 generation, u8 tos, u8 ttl)
{
	return bpf_jiffies64() << 32 | (u32)generation << 16 | tos << 8 | ttl;
}

/* Notes a packet that goes into the stack; key is left as it was. */
static __always_inline void sight(const struct config *config,
				  struct flow_key *key,
				  const struct packet *packet,
				  enum direction direction, u32 port)
{
	struct sighting sighting = {
		.fact = fact_of(config->generation, packet->tos, packet->ttl),
		.port = port,
	};
	struct sighting *known;

	key->direction = direction;
	known = sightings.lookup(key);
	if (known) {
		/* In place: an LRU update takes and frees an element. */
		known->port = port;
		known->fact = sighting.fact;
	} else {
		sightings.update(key, &sighting);
	}
	key->direction = 0;
}

/*
 * Whether the packet that leaves the stack came in as it is, one hop ago.
 * WITNESSED: *port is the pod port that it came in by, if it did by one.
 */
static __always_inline enum verdict witnessed(const struct config *config,
					      struct flow_key *key,
					      const struct packet *packet,
					      enum direction direction,
					      u32 *port)
{
	const struct sighting *sighting;
	u64 fact;

	key->direction = direction;
	sighting = sightings.lookup(key);
	key->direction = 0;
	if (!sighting)
		return VERDICT_UNSEEN;
	fact = sighting->fact;
	*port = sighting->port;
	if ((u32)bpf_jiffies64() - (u32)(fact >> 32) > config->witness_window)
		return VERDICT_UNSEEN;
	/* Seen under rules that were flushed since: no witness of today's. */
	if ((u16)(fact >> 16) != config->generation)
		return VERDICT_FLUSHED;
	if ((u16)fact != (u16)(packet->tos << 8 | (u8)(packet->ttl + 1)))
		return VERDICT_CHANGED;
	return VERDICT_WITNESSED;
}

/* packet has left the stack: it came in with one hop more to live. */
static __always_inline void stamp_egress(const struct config *config,
					 struct flow_key *key,
					 const struct packet *packet, u32 port)
{
	u16 kind = kind_of(packet->tos, packet->ttl + 1);
	struct flow fresh = {}, *flow = flows.lookup(key);
	u64 stamp = stamp_now(config->generation);

	if (flow) {
		/* What the stack carries again is re-validated by it, too. */
		flow->direct = 0;
		flow->egress_port = port;
		/* TCP changes its hash to leave a broken path: follow. */
		flow->source_port = 0;
		flow->egress_kind = kind;
		flow->egress = stamp;
		return;
	}
	fresh.egress_kind = kind;
	fresh.egress_port = port;
	fresh.egress = stamp;
	flows.update(key, &fresh);
}

static __always_inline void stamp_ingress(const struct config *config,
					  struct flow_key *key,
					  const struct packet *packet, u32 port,
					  const struct ethernet *header)
{
	u16 kind = kind_of(packet->tos, packet->ttl + 1);
	struct flow fresh = {}, *flow = flows.lookup(key);
	u64 stamp = stamp_now(config->generation);

	if (flow) {
		if (!same_mac(flow->pod_mac, header->dst))
			__builtin_memcpy(flow->pod_mac, header->dst, 6);
		if (!same_mac(flow->gateway_mac, header->src))
			__builtin_memcpy(flow->gateway_mac, header->src, 6);
		flow->direct = 0;
		flow->ingress_port = port;
		flow->ingress_kind = kind;
		flow->ingress = stamp;
		return;
	}
	__builtin_memcpy(fresh.pod_mac, header->dst, 6);
	__builtin_memcpy(fresh.gateway_mac, header->src, 6);
	fresh.ingress_kind = kind;
	fresh.ingress_port = port;
	fresh.ingress = stamp;
	flows.update(key, &fresh);
}

static __always_inline bool opens(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_CONTROL | TCP_ACK)) == TCP_SYN;
}

/*
 * A SYN-ACK takes the stack and clears what was known, as every SYN does, but
 * is a witness of its own direction: with the ACK that follows, which the
 * stack has to see for its connection tracking, both are there and the first
 * data is fast already. The other direction's witness is never a SYN.
 */
static __always_inline bool answers_open(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_CONTROL | TCP_ACK)) ==
	       (TCP_SYN | TCP_ACK);
}

/* The endpoint of a pod, if it is one that both sides of it agree on. */
static __always_inline const struct endpoint *endpoint_of(__be32 address)
{
	const struct endpoint *endpoint = endpoints.lookup(&address);

	if (!endpoint || endpoint->delivered_port != endpoint->sent_port)
		return NULL;
	return endpoint;
}

static __always_inline void admit_direct(const struct config *config,
					 struct flow_key *key,
					 const struct endpoint *endpoint)
{
	u64 stamp = stamp_now(config->generation);
	struct flow flow = {
		.egress = stamp,
		.ingress = stamp,
		.egress_port = endpoint->sent_port,
		.ingress_port = endpoint->sent_port,
		.direct = 1,
	};

	__builtin_memcpy(flow.pod_mac, endpoint->pod_mac, 6);
	__builtin_memcpy(flow.gateway_mac, endpoint->gateway_mac, 6);
	flows.update(key, &flow);
}

/*
 * Of the combinations with SYN, FIN or RST, those that conntrack does not call
 * INVALID whatever the connection (tcp_valid_flags): rules may drop the others.
 */
static __always_inline bool has_valid_flags(const struct packet *packet)
{
	switch (packet->tcp_flags & (TCP_CONTROL | TCP_ACK | TCP_URG)) {
	case TCP_SYN:
	case TCP_SYN | TCP_URG:
	case TCP_SYN | TCP_ACK:
	case TCP_RST:
	case TCP_RST | TCP_ACK:
	case TCP_FIN | TCP_ACK:
	case TCP_FIN | TCP_ACK | TCP_URG:
		return true;
	default:
		return false;
	}
}

/*
 * A TCP SYN, FIN or RST. UNDECIDED: it is as fast as its flow, which is direct.
 * CONTROL: the flow is over, or has yet to be witnessed. MALFORMED: the stack
 * may refuse it, and the flow goes on.
 */
static __always_inline enum verdict
judge_control(const struct config *config, struct flow_key *key,
	      const struct packet *packet)
{
	bool direct = config->admission == ADMISSION_DIRECT;
	const struct endpoint *endpoint;
	const struct flow *flow;

	if (direct && opens(packet)) {
		endpoint = endpoint_of(key->local);
		if (endpoint) {
			admit_direct(config, key, endpoint);
			return UNDECIDED;
		}
	} else if (direct) {
		flow = flows.lookup(key);
		if (flow && flow->direct)
			return has_valid_flags(packet) ? UNDECIDED :
							 VERDICT_MALFORMED;
	}
	forget(key);
	return VERDICT_CONTROL;
}

/* segments: skb->gso_segs, 0 where there is only the packet itself. */
static __always_inline void count_traffic(u64 *packets, u64 *bytes,
					  u32 segments, u32 length)
{
	*packets += segments ? segments : 1;
	*bytes += length;
}

static __always_inline struct traffic *traffic_of(const struct peer *peer)
{
	u32 counter = peer->counter;

	return peer_counters.lookup(&counter);
}
