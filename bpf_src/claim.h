/* The table of flows: taking a tuple for oneself, and making a flow of what one took.
 *
 * Of two CPUs that want one tuple, at most one gets it: whoever claims looks at both buckets
 * afterwards, and the later one of two sees the earlier. A claimed cell is BUSY until it is
 * published or abandoned; nobody else touches it. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "hash.h"
#include "cells.h"
#include "subprogram.h"
#include "account.h"
#include "ending.h"
#include "evict.h"

#define CELL_FULL 0xffffffff  /* no room, not even by eviction */
#define CELL_TAKEN 0xfffffffe /* a live cell has the tuple, or somebody is at it */
#define IS_PLACE(place) ((place) < CELL_TAKEN)
#define CLAIM_TRIES 4
#define NO_PLACE CELL_FULL

/* Of the cells that the control word shows with this tag: has one the tuple, or may it get it? A
 * flow that moves to the other bank is not in its own way. */
INLINE bool is_taken_in(bool own, u32 bank, u32 bucket, u32 tag, const struct flow_key *key,
			u32 generation, u32 mine)
{
	u64 *word = control_at(own, bucket), z;

	/* The other bank of these programs may be none yet, when the next ones' is there. */
	if (!word)
		return own;
	z = LOAD(word) ^ tag * BYTES_ONE;
	z = EVERY_ZERO(z);
	ROLLED
	for (u32 i = 0; i < CELLS_PER_BUCKET && z; i++) {
		u32 place = bank | (bucket * CELLS_PER_BUCKET + WHICH_BYTE(z));
		struct cell *cell;
		u64 head;

		z &= z - 1;
		if (place == mine)
			continue;
		cell = cell_at(own, place);
		if (!cell)
			continue;
		head = LOAD(&cell->head);
		ORDERED;
		if (HEAD_STATE(head) < STATE_BUSY)
			return true;
		if (has_key(cell, head, key) && !(head & HEAD_MOVED) &&
		    HEAD_GENERATION(head) != generation)
			return true;
	}
	return false;
}

INLINE bool is_taken_on(bool own, const struct table *t, u64 hash, const struct flow_key *key,
			u32 generation, u32 mine)
{
	u32 bank = bank_of(own, t), buckets = buckets_of(own, t), tag = tag_of(hash);

	return buckets &&
	       (is_taken_in(own, bank, first_bucket(hash, buckets), tag, key, generation, mine) ||
		is_taken_in(own, bank, second_bucket(hash, buckets), tag, key, generation, mine));
}

/* Looks in both banks: first in that which flows leave, so that one which moves meanwhile is
 * seen. */
INLINE bool is_taken(const struct table *t, u64 hash, const struct flow_key *key, u32 generation,
		     u32 mine)
{
	return is_taken_on(false, t, hash, key, generation, mine) ||
	       is_taken_on(true, t, hash, key, generation, mine);
}

/* Puts the tag into an empty place of the emptier bucket. The place; CELL_FULL; or CELL_TAKEN where
 * others change the bucket all the time, which is no reason to evict anybody: one tries again.
 * `limit`: how many of its cells may be in use afterwards. */
INLINE u32 take_place(const struct table *t, u64 hash, u32 limit)
{
	u32 one = first_bucket(hash, t->buckets), two = second_bucket(hash, t->buckets);
	u64 *first = control_at(true, one), *second = control_at(true, two);

	if (!first || !second)
		return CELL_FULL;
	ROLLED
	for (u32 i = 0; i < CLAIM_TRIES; i++) {
		u64 x = LOAD(first), y = LOAD(second), old = x, taken;
		u32 free = HOW_MANY(EVERY_ZERO(x)), other = HOW_MANY(EVERY_ZERO(y));
		u32 bucket = one, which;

		if (other > free) {
			old = y;
			free = other;
			bucket = two;
		}
		if (free <= CELLS_PER_BUCKET - limit)
			return CELL_FULL;
		which = WHICH_BYTE(LOWEST_ZERO(old));
		taken = old | (u64)tag_of(hash) << which * 8;
		if (bucket == one ? __sync_val_compare_and_swap(first, old, taken) == old
				  : __sync_val_compare_and_swap(second, old, taken) == old)
			return t->bank | (bucket * CELLS_PER_BUCKET + which);
	}
	return CELL_TAKEN;
}

/* A claimed cell's head and key. The key may be read once the head says BUSY. */
INLINE void write_key(struct cell *cell, const struct flow_key *key, u64 head)
{
	cell->head = IN_STATE(head, STATE_CLAIMED);
	ORDERED;
#if FAMILY == 6
	cell->src = key->src;
	cell->dst = key->dst;
	cell->sport = key->sport;
	cell->dport = key->dport;
#else
	cell->key = *key;
#endif
	ORDERED;
	cell->head = IN_STATE(head, STATE_BUSY);
}

struct claim {
	struct flow_key key;
	ip_addr holder;
	__u32 kind;
	__u32 generation;
	__u32 evicting;
	__u32 place; /* what comes of it */
#if FAMILY == 4
	__u32 pad;
#endif
};

/* A place for it; if there is none, a flow that may go makes one. */
INLINE u32 find_place_for(const struct claim *claim, struct table *t, u64 hash)
{
	struct holder client;
	u32 place, greed;

	__builtin_memcpy(&client, &claim->holder, sizeof(client));
	greed = greed_of(&client, t);
	place = take_place(t, hash, room_for(greed));
	if (place != CELL_FULL || !claim->evicting)
		return place;
	/* So that nobody is evicted for nothing; what counts is the look after the claim. */
	if (is_taken_on(true, t, hash, &claim->key, claim->generation, NO_PLACE))
		return CELL_TAKEN;
	if (!evict(t, hash, greed))
		return CELL_FULL;
	place = take_place(t, hash, CELLS_PER_BUCKET);
	return place == CELL_FULL ? CELL_TAKEN : place; /* another CPU has it */
}

INLINE u32 claim_cell(const struct claim *claim)
{
	struct table *t = get_table();
	struct cell *cell;
	u32 place;
	u64 hash;

	if (!t)
		return CELL_FULL;
	hash = hash_key(&claim->key, t);
	place = find_place_for(claim, t, hash);
	if (!IS_PLACE(place))
		return place;
	if (is_taken(t, hash, &claim->key, claim->generation, place)) {
		release(true, place, tag_of(hash));
		return CELL_TAKEN;
	}
	cell = cell_at(true, place);
	if (!cell)
		return CELL_FULL;
	write_key(cell, &claim->key,
		  MAKE_HEAD(0, claim->kind, tag_of(hash), claim->key.proto, claim->generation));
	return place;
}

CALLED(claim, struct claim, SUBPROGRAM_CLAIM);
SIZED(claim, struct claim)
SUBPROGRAM(claim, struct claim)
{
	if (!own)
		return false;
	own->place = claim_cell(own);
	return true;
}

/* Claims a cell for the tuple: its place (IS_PLACE), CELL_FULL or CELL_TAKEN. `holder` is whose
 * flow it will be, the client's address: one that holds much already gets no more once the table
 * fills. */
INLINE u32 reserve_cell(const struct flow_key *key, const ip_addr *holder, u32 kind, u32 generation)
{
	struct claim claim = {*key, *holder, kind, generation, true, CELL_FULL};

	call_claim(&claim);
	/* Read once: the verifier does not see that two roundings of one number are the same. */
	return LOAD(&claim.place);
}

/* ... if there is room without anybody's going. */
INLINE u32 reserve_free_cell(const struct flow_key *key, const ip_addr *holder, u32 kind,
			     u32 generation)
{
	struct claim claim = {*key, *holder, kind, generation, false, CELL_FULL};

	call_claim(&claim);
	return LOAD(&claim.place);
}

/* The content of a reserved cell; `next` is the next cell of the ring, forward to reply to out to
 * back to forward, itself for a lone cell. */
INLINE void fill_cell(u32 place, const ip_addr *addr, u16 port, u16 client_port, u32 backend,
		      u32 service, u32 next, u32 beat)
{
	struct found own;

	if (!get_cell_in(true, place, &own))
		return;
	own.cell->addr = *addr;
	own.cell->port = port;
	own.cell->client_port = client_port;
	own.state->link = next & LINK_PLACE_MASK;
	own.state->seen = beat;
	own.state->packets = 0;
	own.state->ack = 0;
	own.state->bytes = opened_bits(HEAD_KIND(own.head), beat);
	own.state->backend = backend;
	own.state->service = service;
}

/* From now on the cell is found. The forward one last: it makes the flow. */
INLINE void publish_cell(u32 place, u32 state)
{
	struct cell *cell = cell_at(true, place);
	u64 head;

	if (!cell)
		return;
	head = cell->head;
	if (is_forward(HEAD_KIND(head)))
		add_held(cell, HEAD_KIND(head), 1);
	ORDERED;
	cell->head = IN_STATE(head, state);
}

/* Gives a reserved cell back. */
INLINE void abandon_cell(u32 place)
{
	struct cell *cell = cell_at(true, place);

	if (cell)
		free_cell(true, cell, place, cell->head);
}
