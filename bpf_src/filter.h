/* The two filters that spare other traffic its hash lookups. */
#pragma once

#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"

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
