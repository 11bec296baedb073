/* What the agent says of the node: settings and ranges of addresses. */
#pragma once

#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"

INLINE struct config *get_config(void)
{
	u32 zero = 0;

	return config.lookup(&zero);
}

/* A source port that only flows with a changed one use? Network byte order. */
INLINE bool is_own_port(const struct config *c, u16 port)
{
	return (u16)(ntohs(port) - c->port_min) <= (u16)(c->node_port_max - c->port_min);
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
