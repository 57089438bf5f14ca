/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wire formats: Ethernet (IEEE 802.3), VLAN tags (802.1Q), IPv4 (RFC 791), TCP
 * (RFC 9293), UDP (RFC 768), VXLAN (RFC 7348). Multi-byte fields are in network
 * byte order; constants are converted at compile time, packets never. Only what
 * a program reads or writes has a name. No maps, no functions with effects.
 */
#pragma once

#define be16(x) ((__be16)__builtin_bswap16(x))
#define be32(x) ((__be32)__builtin_bswap32(x))
#define host16(x) ((u16)__builtin_bswap16(x))
#define host32(x) ((u32)__builtin_bswap32(x))
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "byte order conversions assume a little-endian machine"
#endif

#define ETHERTYPE_IPV4 be16(0x0800)
#define ETHERTYPE_IPV6 be16(0x86dd)
#define ETHERTYPE_VLAN be16(0x8100)
#define ETHERTYPE_QINQ be16(0x88a8)
#define IPPROTO_IPIP 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

/* Version 4, header of five words: no options. */
#define IPV4_PLAIN 0x45
#define IPV4_DONT_FRAGMENT be16(0x4000)
#define IPV4_FRAGMENT be16(0x3fff) /* more-fragments flag or an offset */
#define IPV4_OFFSET be16(0x1fff)
#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

#define TCP_SHORTEST 20
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define TCP_CONTROL (TCP_FIN | TCP_SYN | TCP_RST)

/* Only the I flag, reserved bits zero. */
#define VXLAN_FLAGS be32(0x08000000)

struct ethernet {
	u8 dst[6];
	u8 src[6];
	__be16 type;
} __attribute__((packed));

/* IEEE 802.1Q, behind an Ethernet header that has a VLAN's type. */
struct vlan {
	__be16 tag;
	__be16 type;
} __attribute__((packed));

struct ipv4 {
	u8 version_ihl;
	u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 fragment;
	u8 ttl;
	u8 protocol;
	__sum16 check;
	__be32 src;
	__be32 dst;
} __attribute__((packed, aligned(2)));

/* The ports stand first in TCP and in UDP. */
struct ports {
	__be16 src;
	__be16 dst;
} __attribute__((packed, aligned(2)));

struct udp {
	__be16 src;
	__be16 dst;
	__be16 len;
	__sum16 check;
} __attribute__((packed, aligned(2)));

struct tcp {
	__be16 src;
	__be16 dst;
	__be32 seq;
	__be32 ack;
	u8 offset; /* data offset in words, upper four bits */
	u8 flags;
} __attribute__((packed, aligned(2)));

struct vxlan {
	__be32 flags;
	__be32 vni; /* upper 24 bits; the lower eight are reserved */
} __attribute__((packed, aligned(2)));
