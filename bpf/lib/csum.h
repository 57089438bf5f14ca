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

/* One router hop. RFC 1624: the TTL is the upper byte of its word. */
static __always_inline void decrement_ttl(struct ipv4 *ip)
{
	u32 check = ip->check + be16(0x0100);

	ip->check = check + (check >= 0xffff);
	ip->ttl--;
}
