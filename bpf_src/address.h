/* Addresses of the unit's family, and the two filters that spare other traffic its hash lookups. */
#pragma once

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

/* ebpf/filters.py computes the same. */
INLINE u32 filter_hash(const ip_addr *address, u16 port)
{
	struct addr a;
	u32 h;

	widen(&a, address);
	h = a.w[0] * 0x85ebca6b + a.w[1] * 0xc2b2ae35 + a.w[2] * 0x27d4eb2f + a.w[3] * 0x9e3779b1 +
	    port * 0x165667b1;
	h ^= h >> 15;
	return h * 0x2c1b3c6d;
}

/* May this address have frontends, or flows to frontends that are gone? */
INLINE bool maybe_service(const ip_addr *address)
{
	u32 bit = filter_hash(address, 0) >> (32 - SERVICE_FILTER_BITS);
	u32 word = bit >> 6;
	u64 *bits = service_filter.lookup(&word);

	return bits && (*bits >> (bit & 63)) & 1;
}

/* May flows come back from this address and port? */
INLINE bool maybe_backend(const ip_addr *address, u16 port)
{
	u32 bit = filter_hash(address, port) >> (32 - BACKEND_FILTER_BITS);
	u32 word = bit >> 6;
	u64 *bits = backend_filter.lookup(&word);

	return bits && (*bits >> (bit & 63)) & 1;
}

INLINE struct config *get_config(void)
{
	u32 zero = 0;

	return config.lookup(&zero);
}

INLINE struct table_state *get_table_state(void)
{
	u32 zero = 0;

	return table_state.lookup(&zero);
}

/* Inside a range that only services have addresses in? */
INLINE bool in_service_range(const struct config *c, const ip_addr *address)
{
#if FAMILY == 4
#pragma unroll
	for (u32 i = 0; i < MAX_SERVICE_CIDRS; i++) {
		if (i >= c->cidr_count4)
			return false;
		if ((*address & c->cidr4[i].mask.w[3]) == c->cidr4[i].net.w[3])
			return true;
	}
#else
#pragma unroll
	for (u32 i = 0; i < MAX_SERVICE_CIDRS; i++) {
		const struct cidr *r = &c->cidr6[i];

		if (i >= c->cidr_count6)
			return false;
		if (!(((address->w[0] & r->mask.w[0]) ^ r->net.w[0]) |
		      ((address->w[1] & r->mask.w[1]) ^ r->net.w[1]) |
		      ((address->w[2] & r->mask.w[2]) ^ r->net.w[2]) |
		      ((address->w[3] & r->mask.w[3]) ^ r->net.w[3])))
			return true;
	}
#endif
	return false;
}
