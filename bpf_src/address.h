/* Addresses of the unit's family: comparing, and to and from the wide form that records have. */
#pragma once

#include "unit.h"
#include "kernel.h"
#include "types.h"

#if FAMILY == 4
INLINE bool same_address(const ip_addr *a, const ip_addr *b)
{
	return *a == *b;
}

INLINE void widen(struct addr *wide, const ip_addr *narrow)
{
	wide->w[0] = 0;
	wide->w[1] = 0;
	wide->w[2] = htonl(0xffff);
	wide->w[3] = *narrow;
}

INLINE void narrow(ip_addr *to, const struct addr *wide)
{
	*to = wide->w[3];
}

INLINE bool is_zero(const ip_addr *a)
{
	return !*a;
}

/* No host's own (RFC 1122, 3.2.1.3): the stack drops what comes from there, and an answer would go
 * to nobody, or to many. */
INLINE bool is_martian_source(const ip_addr *a)
{
	u8 first = ntohl(*a) >> 24;

	return !first || first == 127 || (first & 0xf0) == 224 || *a == 0xffffffff;
}
#else
INLINE bool same_address(const ip_addr *a, const ip_addr *b)
{
	return !((a->w[3] ^ b->w[3]) | (a->w[2] ^ b->w[2]) | (a->w[1] ^ b->w[1]) |
		 (a->w[0] ^ b->w[0]));
}

INLINE void widen(struct addr *wide, const ip_addr *narrow)
{
	*wide = *narrow;
}

INLINE void narrow(ip_addr *to, const struct addr *wide)
{
	*to = *wide;
}

INLINE bool is_zero(const ip_addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* Unspecified, loopback, v4-mapped (never on a wire) and multicast: RFC 4291, 2.5 and 2.7. */
INLINE bool is_martian_source(const ip_addr *a)
{
	if ((ntohl(a->w[0]) >> 24) == 0xff)
		return true;
	if (a->w[0] | a->w[1])
		return false;
	return a->w[2] == htonl(0xffff) || (!a->w[2] && ntohl(a->w[3]) <= 1);
}
#endif
