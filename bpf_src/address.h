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

/* ebpf/maps/filters.py computes the same. */
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

/* May this address have frontends, or flows to frontends that are gone? `kind` is 0 for any address
 * of a service, 1 for a ClusterIP: those refuse the ports that nobody serves. */
INLINE bool maybe_service(const ip_addr *address, u16 kind)
{
	u32 bit = filter_hash(address, kind) >> (32 - SERVICE_FILTER_BITS);
	u32 word = bit >> 6;
	u64 *bits = service_filter.lookup(&word);

	return bits && (*bits >> (bit & 63)) & 1;
}

/* May this be a backend, so that flows come back from it, or a frontend that is no ClusterIP? */
INLINE bool maybe_endpoint(const ip_addr *address, u16 port)
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

/* A source port that only flows with a changed one use? Network byte order. */
INLINE bool is_own_port(const struct config *c, u16 port)
{
	return (u16)(ntohs(port) - c->port_min) <= (u16)(c->port_max - c->port_min);
}

INLINE bool in_range(const struct cidr *range, const ip_addr *address)
{
#if FAMILY == 4
	return (*address & range->mask.w[3]) == range->net.w[3];
#else
	return !(((address->w[0] & range->mask.w[0]) ^ range->net.w[0]) |
		 ((address->w[1] & range->mask.w[1]) ^ range->net.w[1]) |
		 ((address->w[2] & range->mask.w[2]) ^ range->net.w[2]) |
		 ((address->w[3] & range->mask.w[3]) ^ range->net.w[3]));
#endif
}

#if FAMILY == 4
#define SERVICE_CIDRS(c) (c)->cidr4
#define SERVICE_CIDR_COUNT(c) (c)->cidr_count4
#define POD_CIDRS(c) (c)->pod_cidr4
#define POD_CIDR_COUNT(c) (c)->pod_cidr_count4
#define NODE_ADDRESS(c) (&(c)->node4)
#else
#define SERVICE_CIDRS(c) (c)->cidr6
#define SERVICE_CIDR_COUNT(c) (c)->cidr_count6
#define POD_CIDRS(c) (c)->pod_cidr6
#define POD_CIDR_COUNT(c) (c)->pod_cidr_count6
#define NODE_ADDRESS(c) (&(c)->node6)
#endif

/* Inside a range that only services have addresses in? */
INLINE bool in_service_range(const struct config *c, const ip_addr *address)
{
#pragma unroll
	for (u32 i = 0; i < MAX_SERVICE_CIDRS; i++) {
		if (i >= SERVICE_CIDR_COUNT(c))
			return false;
		if (in_range(&SERVICE_CIDRS(c)[i], address))
			return true;
	}
	return false;
}

INLINE bool in_pod_range(const struct config *c, const ip_addr *address)
{
#pragma unroll
	for (u32 i = 0; i < MAX_POD_CIDRS; i++) {
		if (i >= POD_CIDR_COUNT(c))
			return false;
		if (in_range(&POD_CIDRS(c)[i], address))
			return true;
	}
	return false;
}
