/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a TC program tells of a packet that it is done with. Reads copies, for
 * a packet of any shape. Never on the fast path, never writes.
 */
#pragma once
#include "lib/tunnel.h"
#include "watch.h"

/* The packet that the ports belong to; offset is where its header ends. */
static __always_inline void describe_packet(struct __sk_buff *skb, u32 offset,
					    const struct ipv4 *ip,
					    struct event *event)
{
	struct ports ports;

	event->src = ip->src;
	event->dst = ip->dst;
	event->protocol = ip->protocol;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return;
	if (ip->fragment & IPV4_OFFSET ||
	    bpf_skb_load_bytes(skb, offset, &ports, sizeof(ports)))
		return;
	event->src_port = ports.src;
	event->dst_port = ports.dst;
}

/* offset: of the IPv4 header, which is the tunnel's if tunnelled. */
static __always_inline void describe(struct __sk_buff *skb, u32 offset,
				     bool tunnelled, struct event *event)
{
	struct tunnel_body body;
	struct ipv4 ip;

	if (skb->protocol != ETHERTYPE_IPV4 ||
	    bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return;
	offset += (ip.version_ihl & 0xf) * 4;
	if (!tunnelled) {
		describe_packet(skb, offset, &ip, event);
		return;
	}
	event->outer_src = ip.src;
	event->outer_dst = ip.dst;
	if (bpf_skb_load_bytes(skb, offset, &body, sizeof(body)) ||
	    tunnel_inner_type(&body) != ETHERTYPE_IPV4)
		return;
	offset += offsetof(struct tunnel_body, inner_ip) +
		  (body.inner_ip.version_ihl & 0xf) * 4;
	describe_packet(skb, offset, &body.inner_ip, event);
}

/*
 * Beside count_verdict, with the same program and verdict; dropped: the packet
 * ends here. offset, tunnelled: see describe.
 */
static __always_inline void report(struct __sk_buff *skb, enum program program,
				   enum verdict verdict, bool dropped,
				   u32 offset, bool tunnelled)
{
	const struct watch *watch = watch_of(verdict, dropped);
	struct event event = {
		.length = skb->len,
		.ifindex = skb->ifindex,
		.program = program,
		.verdict = verdict,
		.dropped = dropped,
	};

	if (!watch)
		return;
	describe(skb, offset, tunnelled, &event);
	tell(watch, &event);
}
