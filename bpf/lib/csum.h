/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Internet checksum (RFC 1071) over headers that are mostly known in
 * advance. Sums are of 16-bit words as they lie in memory, so no byte order
 * conversion is needed. No maps.
 */
#pragma once
#include "../netfmt.h"

static __always_inline __sum16 csum_fold(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Whether the header, without options, sums up to what it must. */
static __always_inline bool csum_is_right(const struct ipv4 *ip)
{
	const u16 *words = (const void *)ip;
	u32 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / sizeof(*words)); i++)
		sum += words[i];
	return !csum_fold(sum);
}

/* One router hop. RFC 1624: the TTL is the upper byte of its word. */
static __always_inline void decrement_ttl(struct ipv4 *ip)
{
	u32 check = ip->check + be16(0x0100);

	ip->check = check + (check >= 0xffff);
	ip->ttl--;
}
