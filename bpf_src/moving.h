/* The table of flows: how it grows. A program of the generation that opens flows in the new bank
 * moves those of the other one, ring by ring, while packets use them.
 *
 * Nobody else can claim a tuple that lives in the old bank, so the new cells need no look around.
 * The forward cell's head passes the truth on, by one compare-and-swap: before it the old ring is
 * the flow, after it the new one. The old cells stay, with HEAD_MOVED and a link to the new ones,
 * until nobody can be at them any more (ebpf/growth.py waits for that); then what packets still
 * wrote to them is carried over. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "hash.h"
#include "cells.h"
#include "account.h"
#include "claim.h"
#include "ending.h"
#include "evict.h"

/* What packets write into a cell's state, in one word with `link`. */
INLINE void link_to_twin(struct cell_state *state, u32 place)
{
	u64 *word = (u64 *)&state->link, old = LOAD(word);

	/* Flags and `seen` are stored beside it all the time. */
	ROLLED
	for (u32 i = 0; i < STATE_TRIES; i++) {
		u64 new = (old & ~(u64)LINK_PLACE_MASK) | place, was;

		was = __sync_val_compare_and_swap(word, old, new);
		if (was == old)
			return;
		old = was;
	}
}

INLINE void get_key(struct flow_key *key, const struct cell *cell, u64 head)
{
#if FAMILY == 6
	__builtin_memset(key, 0, sizeof(*key));
	key->src = cell->src;
	key->dst = cell->dst;
	key->sport = cell->sport;
	key->dport = cell->dport;
	key->proto = HEAD_PROTO(head);
#else
	*key = cell->key;
#endif
}

/* A copy of a cell in the own bank, BUSY: its place, or CELL_FULL, now at least. `next` is the
 * copy's. */
INLINE u32 copy_cell(struct table *t, const struct found *old)
{
	struct flow_key key;
	struct found copy;
	u32 place;
	u64 hash;

	get_key(&key, old->cell, old->head);
	hash = hash_key(&key, t);
	place = take_place(t, hash, CELLS_PER_BUCKET);
	if (place == CELL_FULL && evict(t, hash, 0))
		place = take_place(t, hash, CELLS_PER_BUCKET);
	if (!IS_PLACE(place) || !get_cell_in(true, place, &copy))
		return CELL_FULL;
	write_key(copy.cell, &key, old->head);
	copy.cell->addr = old->cell->addr;
	copy.cell->port = old->cell->port;
	copy.cell->client_port = old->cell->client_port;
	*copy.state = *old->state;
	return place;
}

/* Passes the truth on: the state that the new forward cell is to have, or 0 if the flow has ended.
 */
INLINE u32 pass_on(const struct found *forward)
{
	u64 head = forward->head;

	ROLLED
	for (u32 i = 0; i < STATE_TRIES; i++) {
		u64 was;

		if (!same_generation(head, forward->head) || HEAD_STATE(head) < STATE_LIVE ||
		    head & HEAD_MOVED)
			return 0;
		was = __sync_val_compare_and_swap(&forward->cell->head, head, head | HEAD_MOVED);
		if (was == head)
			return HEAD_STATE(head);
		head = was;
	}
	return 0;
}

/* Of an old cell that is not the forward one: it only hints. */
INLINE void mark_moved(const struct found *old)
{
	u64 head = old->head;

	ROLLED
	for (u32 i = 0; i < STATE_TRIES; i++) {
		u64 was = __sync_val_compare_and_swap(&old->cell->head, head, head | HEAD_MOVED);

		if (was == head || !same_generation(was, old->head))
			return;
		head = was;
	}
}

/* Sends who is at an old cell to its copy. */
INLINE void leave_cell(u32 old_place, u32 place, bool forward)
{
	struct found old;

	if (!get_cell_in(false, old_place, &old))
		return;
	link_to_twin(old.state, place);
	if (!forward)
		mark_moved(&old);
}

INLINE void link_copy(u32 place, u32 next)
{
	struct found copy;

	if (get_cell_in(true, place, &copy))
		copy.state->link = (copy.state->link & ~LINK_PLACE_MASK) | next;
}

/* In loops that the verifier follows, an index is masked. */
#define AT(ring, i) (&(ring)->cells[(i) & (RING_CELLS - 1)])

/* Copies a ring's cells; false if there is no room, or the flow has ended. */
INLINE bool copy_ring(struct table *t, struct listed_ring *ring)
{
	u32 place = ring->cells[0].place, first = place;

	ROLLED
	for (u32 i = 0; i < RING_CELLS; i++) {
		struct found old;
		u32 copy;

		if (!get_cell_in(false, place, &old) ||
		    HEAD_GENERATION(old.head) != ring->generation ||
		    HEAD_STATE(old.head) < STATE_LIVE)
			return false;
		copy = copy_cell(t, &old);
		if (copy == CELL_FULL)
			return false;
		AT(ring, i)->place = place;
		AT(ring, i)->copy = copy;
		AT(ring, i)->packets = old.state->packets;
		AT(ring, i)->bytes = old.state->bytes;
		ring->count = i + 1;
		place = next_place(old.state);
		if (place == first)
			return true;
	}
	return false;
}

INLINE void link_ring(struct listed_ring *ring)
{
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < ring->count; i++)
		link_copy(AT(ring, i)->copy, AT(ring, i + 1 < ring->count ? i + 1 : 0)->copy);
}

INLINE void abandon_copies(struct listed_ring *ring)
{
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < ring->count; i++)
		abandon_cell(AT(ring, i)->copy);
	ring->count = 0;
}

/* Moves the flow whose forward cell, or lone cell, is at ring->cells[0]. True if it is done. */
INLINE bool move_ring(struct table *t, struct listed_ring *ring)
{
	struct found forward;
	u32 state = 0;

	ring->count = 0;
	if (!get_cell_in(false, ring->cells[0].place, &forward) ||
	    HEAD_GENERATION(forward.head) != ring->generation)
		return false;
	if (copy_ring(t, ring)) {
		link_ring(ring);
		ORDERED;
		state = pass_on(&forward);
	}
	if (!state) {
		abandon_copies(ring);
		return false;
	}
	/* Before the copies are found, and can end: what is left of them is no flow then. */
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < ring->count; i++)
		leave_cell(AT(ring, i)->place, AT(ring, i)->copy, i == 0);
	ORDERED;
	ROLLED
	for (u32 i = RING_CELLS; i > 0; i--) {
		struct cell *copy = cell_at(true, AT(ring, i - 1)->copy);

		if (i <= ring->count && copy)
			copy->head = IN_STATE(copy->head, state);
	}
	return true;
}

/* What packets wrote to an old cell since it was copied belongs to the new one, or, if the flow has
 * ended since, to its service. Then the old cell is free. */
INLINE void carry_cell(const struct listed_ring *ring, const struct listed_old *was)
{
	u32 packets, flags;
	struct found old, twin;
	u64 bytes;

	if (!get_cell_in(false, was->place, &old) || !(old.head & HEAD_MOVED) ||
	    HEAD_GENERATION(old.head) != ring->generation)
		return;
	packets = old.state->packets - was->packets;
	bytes = old.state->bytes - was->bytes;
	flags = old.state->link & ~LINK_PLACE_MASK;
	if (!get_cell_in(true, next_place(old.state), &twin))
		return;
	if (same_generation(twin.head, old.head) && HEAD_STATE(twin.head) >= STATE_LIVE) {
		__sync_fetch_and_add(&twin.state->packets, packets);
		__sync_fetch_and_add(&twin.state->bytes, bytes);
		__sync_fetch_and_or((u64 *)&twin.state->link, (u64)flags);
		if ((s32)(old.state->seen - twin.state->seen) > 0)
			twin.state->seen = old.state->seen;
	} else if (!(HEAD_KIND(old.head) & CELL_SIDE) && old.state->backend & BACKEND_ID_MASK) {
		bool reply = HEAD_KIND(old.head) & CELL_REPLY;

		count_traffic(old.state->service, reply ? 0 : packets, reply ? 0 : bytes,
			      reply ? packets : 0, reply ? bytes : 0);
	}
	free_cell(false, old.cell, old.place, old.head);
}
