/* From an address and port to a service, and from a service to one of its backends. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "algorithm.h"
#include "beat.h"

struct choice {
	ip_addr addr;
	__u16 port;
	__u16 client_port; /* what the backend sees, if not the client's own */
	__u32 backend;	   /* id | generation << 24 */
	__u32 service;
	__u32 kind;  /* enum cell_kind, of the flow to make */
	__u32 local; /* on this node */
	__u32 dsr;   /* its service's packets from outside go there whole, see dsr.h */
};

INLINE bool uses_local_set(const struct service *s, const struct request *r)
{
	if (r->frontend_flags & FRONTEND_CLUSTER_IP)
		return s->flags & SERVICE_INTERNAL_LOCAL;
	return r->outside && s->flags & SERVICE_EXTERNAL_LOCAL;
}

/* loadBalancerSourceRanges: is the client in any of the service's ranges? */
INLINE bool in_source_ranges(const struct request *r)
{
	struct source_range key = {.prefix_length = 32 + 128, .service = r->service};

	key.client = r->client;
	return source_ranges.lookup(&key);
}

INLINE bool current(const struct backend *b, u32 reference)
{
	return b->flags & BACKEND_SERVING && b->generation == reference >> BACKEND_GENERATION_SHIFT;
}

INLINE void take_backend(struct choice *choice, const struct backend *b, u32 reference, u32 service)
{
	narrow(&choice->addr, &b->addr);
	choice->port = b->port;
	choice->backend = reference;
	choice->service = service;
	choice->local = b->flags & BACKEND_LOCAL;
}

#ifndef TRACE
/* The backend this client had, if it may still use it. */
INLINE bool affine_backend(const struct service *s, struct affinity_key *key, bool local,
			   struct choice *choice)
{
	u32 beat = now(), id;
	struct affinity *had = affinity.lookup(key);
	struct backend *b;

	if (!had || is_older(beat, had->seen, s->affinity))
		return false;
	id = had->backend & BACKEND_ID_MASK;
	b = backends.lookup(&id);
	if (!b || !current(b, had->backend) || b->service != key->service ||
	    b->flags & BACKEND_CLOSED ||
	    !(b->flags & (local ? BACKEND_IN_LOCAL : BACKEND_IN_CLUSTER)))
		return false;
	had->seen = beat;
	take_backend(choice, b, had->backend, key->service);
	return true;
}

INLINE void remember_affinity(struct affinity_key *key, u32 reference)
{
	struct affinity value = {.backend = reference, .seen = now()};

	affinity.update(key, &value);
}
#endif

/* In place of a reason: the choice takes more than fits into the program of those who take any
 * endpoint. */
#define CHOICE_ELSEWHERE (-1)

/* One backend of the set that the request may use, by the service's algorithm; with affinity the
 * one the client had. 0 or the reason why there is none. Without `algorithms` only for services
 * that take any. */
INLINE int choose_backend(const struct request *r, bool algorithms, struct choice *choice)
{
	u32 service = r->service, length, id, reference;
	struct affinity_key key = {.service = service};
	struct service *s = services.lookup(&service);
	struct backend *b;
	bool local;
	u64 region;
	int reason;

	if (!s)
		return REASON_INTERNAL;
	if (r->frontend_flags & FRONTEND_SOURCE_RANGES && !in_source_ranges(r))
		return REASON_SOURCE_RANGE;
	choice->dsr = s->flags & SERVICE_DSR;
	local = uses_local_set(s, r);
	region = *(volatile u64 *)(local ? &s->local : &s->cluster);
	length = region >> REGION_LENGTH_SHIFT & REGION_LENGTH_MASK;
	if (!length)
		return region & REGION_DROP ? REASON_NO_LOCAL_ENDPOINT : REASON_NO_ENDPOINT;
	key.client = r->client;
#ifndef TRACE
	if (s->flags & SERVICE_AFFINITY && affine_backend(s, &key, local, choice))
		return 0;
#endif
	if (s->flags & SERVICE_CHOOSES) {
		if (!algorithms)
			return CHOICE_ELSEWHERE;
		if (region & REGION_CLOSED)
			return REASON_NO_ENDPOINT;
		reason = choose_by_algorithm(s, r, local, region, length, &id);
		if (reason)
			return reason;
	} else if (!any_endpoint(region, length, &id)) {
		return REASON_INTERNAL;
	}
	b = backends.lookup(&id);
	if (!b)
		return REASON_INTERNAL;
	reference = id | (u32)b->generation << BACKEND_GENERATION_SHIFT;
	take_backend(choice, b, reference, service);
#ifndef TRACE
	if (s->flags & SERVICE_AFFINITY)
		remember_affinity(&key, reference);
#endif
	return 0;
}

/* Is TCP in mid-stream, which nobody here knows, carried on by who the service's table names? That
 * is whom another node named, which it had before and which is gone. */
INLINE bool picks_up(u32 service)
{
	struct service *s = services.lookup(&service);

	return s && s->flags & SERVICE_PICKS_UP;
}

/* May the backend of a flow of this service still carry it? */
INLINE bool still_serving(u32 reference, u32 service)
{
	u32 id = reference & BACKEND_ID_MASK;
	struct backend *b = backends.lookup(&id);

	return b && current(b, reference) && b->service == service;
}
