/* Two CPUs and a table that is always full or nearly so: flows are opened, found, changed and ended
 * at random, and what is found is judged at once. Compiled by stress.py together with bpf_src. */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "cpu.h"
#include "cells.h"
#include "account.h"
#include "claim.h"
#include "ending.h"

/* Flows KEYS .. KEYS + LASTING - 1 are always there, used, and opened once more in vain. Their table
 * has room for all. */
#ifndef LASTING
#define LASTING 0
#endif

/* As if an interrupt had come here. */
#ifndef LINGER
#define LINGER
#endif

struct thread {
	__u64 rng;
	__u64 opened;
	__u64 ended;
	__u64 lost_end; /* somebody else ended it, or the flow is another by now */
	__u64 full;
	__u64 taken;
	__u64 hits;
	__u64 misses;
	__u64 stale;	  /* what was read is not of the flow that was found */
	__u64 wrong;	  /* ... and that was not noticed */
	__u64 duplicates; /* two live cells of one tuple */
	__u64 apart;	  /* a ring that leads elsewhere */
	__u64 lost;	  /* a flow that lasts was not found */
	__u64 changed;
	__u32 places[RING_CELLS];
};

/* A cell as it has to be. Written by Python: cell `i` of flow `n` is at 4 * n + i. Its backend says
 * which flow it is of, since two flows may want one tuple. */
struct wanted {
	struct flow_key key;
	ip_addr addr;
	ip_addr client;
	__u16 port;
	__u16 client_port;
	__u32 kind;
	__u32 cells; /* of the flow */
};

BPF_F_TABLE("array", u32, struct thread, threads, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct wanted, wanted, 1, BPF_F_MMAPABLE);

INLINE bool differ(const ip_addr *one, const ip_addr *two)
{
#if FAMILY == 6
	return one->w[3] != two->w[3] || one->w[0] != two->w[0];
#else
	return *one != *two;
#endif
}

INLINE u32 roll(struct thread *t)
{
	t->rng = t->rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return t->rng >> 33;
}

INLINE struct wanted *get_wanted(u32 n, u32 which)
{
	u32 index = RING_CELLS * n + which;

	return wanted.lookup(&index);
}

INLINE bool reserve_ring(struct thread *t, u32 n, u32 count, u32 generation)
{
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < count; i++) {
		struct wanted *w = get_wanted(n, i);
		struct flow_key key;
		ip_addr client;
		u32 place;

		if (!w)
			return false;
		key = w->key;
		client = w->client;
		place = reserve_cell(&key, &client, w->kind, generation);
		if (!IS_PLACE(place)) {
			t->full += place == CELL_FULL;
			t->taken += place == CELL_TAKEN;
			for (u32 j = 0; j < RING_CELLS && j < i; j++)
				abandon_cell(t->places[j]);
			return false;
		}
		t->places[i & (RING_CELLS - 1)] = place;
	}
	return true;
}

INLINE void open_one(struct thread *t, u32 n, u32 count)
{
	/* Generations come again after some million flows, which takes seconds here. Nobody has this
	 * one, so who opens in vain is never taken for the flow that lasts. */
	u32 generation = n < KEYS ? new_generation() : ~0u, beat = roll(t) & 0xff;

	if (!reserve_ring(t, n, count, generation))
		return;
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < count; i++) {
		struct wanted *w = get_wanted(n, i);
		ip_addr addr;

		if (!w)
			return;
		addr = w->addr;
		fill_cell(t->places[i & (RING_CELLS - 1)], &addr, w->port, w->client_port, 1 + n,
			  1 + (n >> 2), t->places[(i + 1 < count ? i + 1 : 0) & (RING_CELLS - 1)],
			  beat);
	}
	if (count == RING_CELLS) {
		publish_cell(t->places[3], STATE_SYN);
		publish_cell(t->places[2], STATE_SYN);
	}
	publish_cell(t->places[1], STATE_SYN);
	publish_cell(t->places[0], STATE_SYN);
	count_opened(1 + n, 1 + (n >> 2));
	t->opened++;
}

/* Live cells of this tuple in a bucket, but for those of the flow itself: where it moves, there may
 * be two for a moment. */
INLINE u32 twins_in(struct table *own, u32 bucket, const struct flow_key *key, u64 head)
{
	u32 found = 0;

	ROLLED
	for (u32 i = 0; i < CELLS_PER_BUCKET; i++) {
		struct found at;

		if (!get_cell_in(true, own->bank | (bucket * CELLS_PER_BUCKET + i), &at) ||
		    same_generation(at.head, head) || HEAD_STATE(at.head) < STATE_LIVE ||
		    !has_key(at.cell, at.head, key))
			continue;
		ORDERED;
		found += LOAD(&at.cell->head) == at.head;
	}
	return found;
}

INLINE u32 twins(const struct flow_key *key, u64 head)
{
	struct table *own = get_table();
	u32 one, two, found;
	u64 hash;

	if (!own)
		return 0;
	hash = hash_key(key, own);
	one = first_bucket(hash, own->buckets);
	two = second_bucket(hash, own->buckets);
	found = twins_in(own, one, key, head);
	return one == two ? found : found + twins_in(own, two, key, head);
}

/* Is what was found as it has to be, and alone? */
INLINE void judge(struct thread *t, const struct found *f, const struct flow_key *key, u32 which)
{
	ip_addr addr = f->cell->addr;
	u16 port = f->cell->port, client_port = f->cell->client_port;
	u32 backend = f->state->backend, service = f->state->service;
	struct wanted *w = get_wanted(backend - 1, which);

	if (!unchanged(f)) {
		t->stale++;
		return;
	}
	t->hits++;
	if (!w || differ(&w->addr, &addr) || w->port != port || w->client_port != client_port ||
	    service != 1 + ((backend - 1) >> 2) || w->kind != HEAD_KIND(f->head) ||
	    w->key.sport != key->sport || w->key.dport != key->dport)
		t->wrong++;
	if (twins(key, f->head) && LOAD(&f->cell->head) == f->head)
		t->duplicates++;
	if (which & 1)
		f->state->packets++;
}

/* From SYN to where flows stay, and out of it, so that some can be evicted and some not. */
INLINE void change_one(struct thread *t, const struct found *found)
{
	struct found forward;
	u32 state;

	LINGER;
	LINGER;
	LINGER;
	LINGER;
	if (!find_forward(found, &forward)) {
		t->lost_end++;
		return;
	}
	if (HEAD_KIND(forward.head) & (CELL_REPLY | CELL_SIDE) ||
	    !same_generation(forward.head, found->head))
		t->apart++;
	state = HEAD_STATE(forward.head);
	t->changed += set_state(&forward, state,
				state == STATE_ESTABLISHED ? STATE_RESET : STATE_ESTABLISHED);
}

PROGRAM(stress)
{
	u32 cpu = bpf_get_smp_processor_id(), x, n, op, which;
	struct thread *t = threads.lookup(&cpu);
	struct wanted *w;
	struct flow_key key;
	struct found found;

	if (!t)
		return 0;
	x = roll(t);
	n = x & (KEYS - 1);
	op = x >> 8 & 31;
	which = x >> 16 & 3;
#if LASTING
	if (x >> 25 & 1) {
		n = KEYS + (x >> 26 & (LASTING - 1));
		op = op < 16 ? 0 : 16 | (op & 15);
	}
#endif
	w = get_wanted(n, 0);
	if (!w)
		return 0;
	if (op < 11) {
		open_one(t, n, w->cells);
		return 0;
	}
	which &= w->cells - 1;
	w = get_wanted(n, which);
	if (!w)
		return 0;
	key = w->key;
	if (!find_cell(&key, &found)) {
		t->misses++;
		t->lost += n >= KEYS;
		return 0;
	}
	if (x >> 24 & 1) {
		LINGER;
		LINGER;
	}
	if (op < 16) {
		if (end_flow(&found, END_CLOSED))
			t->ended++;
		else
			t->lost_end++;
	} else if (op < 18) {
		change_one(t, &found);
	} else {
		judge(t, &found, &key, which);
	}
	return 0;
}
