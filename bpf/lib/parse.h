/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From bytes to the facts that decisions are made of. Reads only, linear data
 * only; says why a packet can never be fast. No maps.
 */
#pragma once
#include "csum.h"
#include "../verdict.h"

/* Of the IPv4 packet that a pod sends or receives. */
struct packet {
	__be32 src;
	__be32 dst;
	struct ports ports;
	u8 protocol;
	u8 tos;
	u8 ttl;
	u8 tcp_flags; /* 0 for UDP */
	u16 total_len;
	u16 header_len; /* IPv4 and TCP or UDP */
};

/*
 * Reads the packet at ip. UNDECIDED: all of *packet is set, and it is whole,
 * unfragmented TCP or UDP, with nothing in its headers for which the stack
 * would drop it: the header checksum (ip_rcv), the lengths and the flags
 * (conntrack's INVALID).
 */
static __always_inline enum verdict
parse_packet(const struct ipv4 *ip, const void *end, struct packet *packet)
{
	const struct udp *udp = (const void *)(ip + 1);
	const struct tcp *tcp = (const void *)(ip + 1);

	if ((const void *)(udp + 1) > end)
		return VERDICT_TRUNCATED;
	if (ip->version_ihl != IPV4_PLAIN)
		return VERDICT_IP_OPTIONS;
	if (ip->fragment & IPV4_FRAGMENT)
		return VERDICT_FRAGMENT;
	packet->src = ip->src;
	packet->dst = ip->dst;
	packet->ports.src = udp->src;
	packet->ports.dst = udp->dst;
	packet->protocol = ip->protocol;
	packet->tos = ip->tos;
	packet->ttl = ip->ttl;
	packet->total_len = host16(ip->total_len);
	if (!csum_is_right(ip))
		return VERDICT_MALFORMED;
	if (ip->protocol == IPPROTO_UDP) {
		u16 len = host16(udp->len);

		packet->tcp_flags = 0;
		packet->header_len = sizeof(*ip) + sizeof(*udp);
		return len >= sizeof(*udp) &&
				       len + sizeof(*ip) <= packet->total_len ?
			       UNDECIDED :
			       VERDICT_MALFORMED;
	}
	if (ip->protocol != IPPROTO_TCP)
		return VERDICT_PROTOCOL;
	if ((const void *)(tcp + 1) > end)
		return VERDICT_TRUNCATED;
	packet->tcp_flags = tcp->flags;
	packet->header_len = sizeof(*ip) + (tcp->offset >> 4) * 4;
	if (tcp->offset >> 4 < TCP_SHORTEST / 4 ||
	    packet->header_len > packet->total_len ||
	    !(tcp->flags & (TCP_ACK | TCP_CONTROL)))
		return VERDICT_MALFORMED;
	return UNDECIDED;
}

/*
 * Whether the packet fits mtu, or each segment of a GSO packet does: the
 * stack's own rule (skb_gso_validate_network_len), not skb->len.
 */
static __always_inline bool fits(const struct __sk_buff *skb,
				 const struct packet *packet, u32 mtu)
{
	/* gso_size: kernel 5.7 */
	if (skb->gso_size)
		return packet->header_len + skb->gso_size <= mtu;
	return packet->total_len <= mtu;
}

/* Of a packet that has nothing in front to say what it is. */
static __always_inline __be16 ethertype_of(const struct ipv4 *ip)
{
	return ip->version_ihl >> 4 == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6;
}

static __always_inline bool same_mac(const u8 *a, const u8 *b)
{
	const u16 *x = (const void *)a, *y = (const void *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}
