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
#endif
