/* Exact counts: live flows by backend and by service, cells by whoever holds them. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "hash.h"
#include "maps.h"
#include "cells.h"

/* A flow that is over has its tuples, and is nobody's connection any more. */
INLINE bool is_over(u32 state)
{
	return state == STATE_RESET || state == STATE_TIME_WAIT;
}

/* Those of flows that go straight to an endpoint, and of notes, are nobody's. */
INLINE void add_live(u32 backend, u32 service, u64 count)
{
	u32 id = backend & BACKEND_ID_MASK;
	u64 *live = backend_live.lookup(&id);
	struct service_counters *c = service_counters.lookup(&service);

	if (!id)
		return;
	if (live)
		__sync_fetch_and_add(live, count);
	if (c)
		__sync_fetch_and_add(&c->live, count);
}

/* By whoever published the forward cell. */
INLINE void count_opened(u32 backend, u32 service)
{
	struct service_counters *c = service_counters.lookup(&service);

	add_live(backend, service, 1);
	if (c)
		__sync_fetch_and_add(&c->connections, 1);
}

/* What a flow carried, once it has ended. */
INLINE void count_traffic(u32 service, u64 packets_in, u64 bytes_in, u64 packets_out, u64 bytes_out)
{
	struct service_counters *c = service_counters.lookup(&service);

	if (!c)
		return;
	__sync_fetch_and_add(&c->packets_in, packets_in);
	__sync_fetch_and_add(&c->bytes_in, bytes_in);
	__sync_fetch_and_add(&c->packets_out, packets_out);
	__sync_fetch_and_add(&c->bytes_out, bytes_out);
}

/* An address as words. */
struct holder {
#if FAMILY == 6
	u64 words[2];
#else
	u32 words[1];
#endif
};

/* How many cells a source holds; sources that share a counter count together. */
INLINE u64 *held_by(const struct holder *holder, const struct table *t)
{
#if FAMILY == 6
	u64 hash = NH(holder->words[0], t->secret[3]) + NH(holder->words[1], t->secret[4]);
#else
	u64 hash = holder->words[0] ^ t->secret[0];
#endif
	u32 index;

	hash = (hash ^ hash >> 32) * (t->secret[1] | 1);
	index = hash >> (64 - HOLDER_BITS);
	return HELD.lookup(&index);
}

/* Whose flow a cell belongs to, the client: where its address stands is told by the kind. */
INLINE void get_holder(struct holder *holder, const struct cell *cell, u32 kind)
{
	u64 is_reply = kind & CELL_REPLY, is_side = (kind & CELL_SIDE) / CELL_SIDE;
	u64 reply = -(is_reply & ~is_side), masquerading = -(is_side & ~is_reply);
	u64 source = ~(masquerading | reply);

#if FAMILY == 6
	const u64 *src = (const u64 *)&cell->src, *dst = (const u64 *)&cell->dst;
	const u64 *addr = (const u64 *)&cell->addr;

	holder->words[0] = (src[0] & source) | (dst[0] & reply) | (addr[0] & masquerading);
	holder->words[1] = (src[1] & source) | (dst[1] & reply) | (addr[1] & masquerading);
#else
	holder->words[0] =
	    (cell->key.src & source) | (cell->key.dst & reply) | (cell->addr & masquerading);
#endif
}

/* Cells of the flow whose forward cell, or lone cell, is of this kind. */
INLINE u64 cells_of(u32 kind)
{
	if (kind & (CELL_NOTE | CELL_FRAGMENT | CELL_DSR))
		return 1;
	return kind & CELL_MASQUERADED ? 4 : 2;
}

/* What a flow's or a lone cell's holder has by it: `count` times its cells. */
INLINE void add_held(const struct cell *forward, u32 kind, s64 count)
{
	const struct table *t = get_table();
	struct holder holder;
	u64 *held;

	if (!t)
		return;
	get_holder(&holder, forward, kind);
	held = held_by(&holder, t);
	if (held)
		__sync_fetch_and_add(held, count * (s64)cells_of(kind));
}
