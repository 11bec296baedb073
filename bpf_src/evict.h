/* The table of flows: who gives way when there is no room.
 *
 * What is over first; if nothing is, flows of a source that holds more than its share; then what
 * nobody has answered; then the longest unseen. Established connections never. Who holds more than
 * all that could go gets no room. docs/datapath.md tells what floods come to. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "hash.h"
#include "cpu.h"
#include "cells.h"
#include "account.h"
#include "ending.h"

/* How many cells of a bucket are used before who holds more than twice its share gets no more. */
#define GREEDY_LIMIT 6

/* 1 if a < b, else 0, for numbers below 2^63; without a branch, each of which would double what the
 * verifier has to follow. */
#define BELOW(a, b) ((u64)((s64)(a) - (s64)(b)) >> 63)

/* How far beyond its share a source is: 0 within; then one for each doubling. */
INLINE u32 greed_of(const struct holder *source, const struct table *t)
{
	u64 *held = held_by(source, t);
	s64 count, share = t->share;

	if (!held || !share)
		return 0;
	count = LOAD(held);
	return BELOW(share, count) + BELOW(2 * share, count) + BELOW(4 * share, count) +
	       BELOW(8 * share, count);
}

INLINE u32 room_for(u32 greed)
{
	return greed >= 2 ? GREEDY_LIMIT : CELLS_PER_BUCKET;
}

/* The higher, the sooner a flow gives way: an age, and above it what counts more. */
#define RANK_UNPROVEN_SHIFT 32
#define RANK_GREED_SHIFT 33

/* Both directions are asked: this cell, and the next of its ring. */
INLINE u64 rank_of(const struct found *own, const struct found *next, const struct table *t,
		   u32 beat)
{
	u32 state = HEAD_STATE(own->head);
	u64 packets = own->state->packets, other_packets = next->state->packets;
	s64 age = (s32)(beat - own->state->seen), other_age = (s32)(beat - next->state->seen);
	/* A datagram flow is one that was answered, and then used again. */
	u64 unproven = BELOW(state, STATE_SYN + 1) | BELOW(packets, 1) | BELOW(other_packets, 1) |
		       BELOW(packets + other_packets, 3);
	struct holder holder;

	age += (other_age - age) & -BELOW(other_age, age);
	age &= BELOW(age, 0) - 1;
	get_holder(&holder, own->cell, HEAD_KIND(own->head));
	return age | unproven << RANK_UNPROVEN_SHIFT |
	       (u64)greed_of(&holder, t) << RANK_GREED_SHIFT;
}

/* Unseen for so many beats (4 to 40 s), what is unproven has had its answer, or gets none: it gives
 * way to anybody. */
#define STALE_BEATS 16

INLINE bool is_stale(u64 rank)
{
	return rank >> RANK_UNPROVEN_SHIFT & 1 && (u32)rank >= STALE_BEATS;
}

#define NO_VICTIM 0xffffffff

struct victim {
	u64 rank;
	u32 place;
	u32 generation;
};

/* The same number, of which the verifier knows nothing: it would follow each way that comparisons
 * of what it knows could go, a million of them. */
INLINE u64 forgotten(struct cpu *own, u64 number)
{
	*(volatile u64 *)&own->scratch = number;
	return *(volatile u64 *)&own->scratch;
}

INLINE void take_if_worse(struct victim *worst, u64 rank, const struct found *at)
{
	if (rank >= worst->rank) {
		worst->rank = rank;
		worst->place = at->place;
		worst->generation = HEAD_GENERATION(at->head);
	}
}

/* Of what is closed, the longest unseen in the direction whose cell this is: both were seen about
 * when it ended. A bucket's cells lie side by side, while the others of their rings are anywhere,
 * and where many connections are short this is the way of each new one. */
INLINE void rank_closed(u32 bucket, struct cpu *cpu, u32 beat, struct victim *worst)
{
	ROLLED
	for (u32 i = 0; i < CELLS_PER_BUCKET; i++) {
		struct found at;
		s64 age;

		if (!get_cell_in(true, bucket * CELLS_PER_BUCKET + i, &at))
			return;
		if (!is_closed(at.head))
			continue;
		age = (s32)(beat - at.state->seen);
		take_if_worse(worst, forgotten(cpu, age & (BELOW(age, 0) - 1)), &at);
	}
}

INLINE void rank_bucket(u32 bucket, const struct table *t, struct cpu *cpu, u32 beat,
			struct victim *worst)
{
	ROLLED
	for (u32 i = 0; i < CELLS_PER_BUCKET; i++) {
		struct found at, next;
		u64 rank;

		if (!get_cell_in(true, bucket * CELLS_PER_BUCKET + i, &at))
			return;
		if (HEAD_STATE(at.head) < STATE_LIVE || !is_evictable(at.head))
			continue;
		if (!get_cell_in(true, next_place(at.state), &next))
			return;
		rank = forgotten(cpu, rank_of(&at, &next, t, beat));
		take_if_worse(worst, rank, &at);
	}
}

INLINE bool evict_worst(const struct table *t, u64 hash, u32 greed)
{
	u32 beat = bpf_jiffies64() >> BEAT_SHIFT;
	struct cpu *cpu = this_cpu();
	struct victim worst = {.place = NO_VICTIM};
	struct found at, forward;

	if (!cpu)
		return false;
	worst.rank = forgotten(cpu, 0);
	rank_closed(first_bucket(hash, t->buckets), cpu, beat, &worst);
	rank_closed(second_bucket(hash, t->buckets), cpu, beat, &worst);
	if (worst.place == NO_VICTIM) {
		rank_bucket(first_bucket(hash, t->buckets), t, cpu, beat, &worst);
		rank_bucket(second_bucket(hash, t->buckets), t, cpu, beat, &worst);
		if (worst.rank >> RANK_GREED_SHIFT < greed && !is_stale(worst.rank))
			return false;
	}
	if (worst.place == NO_VICTIM || !get_cell_in(true, worst.place | t->bank, &at) ||
	    HEAD_GENERATION(at.head) != worst.generation)
		return false;
	if (!find_own_forward(&at, &forward) || !mark_dead(&forward, END_EVICTED))
		return false;
	uncount(&forward);
	free_ring(true, &forward, END_EVICTED);
	return true;
}

/* Makes room in one of a tuple's buckets, for somebody of this greed. */
INLINE bool evict(struct table *t, u64 hash, u32 greed)
{
	bool done = evict_worst(t, hash, greed);

	__sync_fetch_and_add(done ? &t->evicted : &t->refused, 1);
	return done;
}
