/* The table of flows: finding a tuple's cell.
 *
 * A cell is one tuple with all that its packets read and write: a cache line (IPv6: and half of
 * another). Cells lie in buckets of eight; a control word per bucket holds a byte of each cell's
 * hash, 0 for an empty place, so that a miss touches no cell. A tuple may lie in either of two
 * buckets. A flow is a ring of cells, two of them, or four if it is masqueraded; all have its
 * generation.
 *
 * A table grows by moving into a larger one, so there are two banks of buckets. A generation of
 * programs opens flows in its own bank, and finds those in the other one too; which bank is whose
 * is told when programs are loaded. docs/datapath.md has the protocol, and why it holds. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "hash.h"
#include "subprogram.h"

#define HEAD_STATE(head) ((u32)(head)&STATE_MASK)
#define HEAD_KIND(head) ((u32)((head) >> HEAD_KIND_SHIFT) & 0xff)
#define HEAD_TAG(head) ((u32)((head) >> HEAD_TAG_SHIFT) & 0xff)
#define HEAD_PROTO(head) ((u32)((head) >> HEAD_PROTO_SHIFT) & 0xff)
#define HEAD_GENERATION(head) ((u32)((head) >> HEAD_GENERATION_SHIFT))
#define MAKE_HEAD(state, kind, tag, proto, generation)                                             \
	((u64)(state) | (u64)(kind) << HEAD_KIND_SHIFT | (u64)(tag) << HEAD_TAG_SHIFT |            \
	 (u64)(proto) << HEAD_PROTO_SHIFT | (u64)(generation) << HEAD_GENERATION_SHIFT)
#define IN_STATE(head, state) (((head) & ~0xffULL) | (state))

/* Which bytes of a word are zero, exact for each; and how many those are. */
#define EVERY_ZERO(x) (~((((x) & ~BYTES_HIGH) + ~BYTES_HIGH) | (x)) & BYTES_HIGH)
#define HOW_MANY(z) ((u32)((((z) >> 7) * BYTES_ONE) >> 56))

/* A live cell that was found. What is copied from it counts only if unchanged() afterwards. */
struct found {
	struct cell *cell;
	struct cell_state *state;
	u32 place;
	u64 head;
};

INLINE struct table *get_table(void)
{
	u32 zero = 0;

	return TABLE.lookup(&zero);
}

/* `own` in these is a constant, so that what is inlined knows one bank alone. */
INLINE u64 *control_at(bool own, u32 bucket)
{
	if (own)
		return CONTROL.lookup(&bucket);
	return OTHER_CONTROL.lookup(&bucket);
}

INLINE struct cell *cell_at(bool own, u32 place)
{
	u32 index = place & PLACE_INDEX_MASK;

	if (own)
		return CELLS.lookup(&index);
	return OTHER_CELLS.lookup(&index);
}

INLINE struct cell_state *state_at(bool own, u32 place, struct cell *cell)
{
#if FAMILY == 6
	u32 index = place & PLACE_INDEX_MASK;

	if (own)
		return STATES.lookup(&index);
	return OTHER_STATES.lookup(&index);
#else
	return &cell->state;
#endif
}

INLINE u32 bank_of(bool own, const struct table *t)
{
	return own ? t->bank : t->bank ^ PLACE_BANK;
}

INLINE u32 buckets_of(bool own, const struct table *t)
{
	return own ? t->buckets : t->other_buckets;
}

INLINE u64 hash_key(const struct flow_key *key, const struct table *t)
{
	const u64 *words = (const u64 *)key;
	u64 h = NH(words[0], t->secret[0]) + NH(words[1], t->secret[1]);

#if FAMILY == 6
	h += NH(words[2], t->secret[2]) + NH(words[3], t->secret[3]) + NH(words[4], t->secret[4]);
#endif
	h ^= h >> 32;
	h *= 0x9e3779b97f4a7c15ULL;
	return h ^ h >> 29;
}

INLINE u32 first_bucket(u64 hash, u32 buckets)
{
	return (u64)(u32)hash * buckets >> 32;
}

INLINE u32 second_bucket(u64 hash, u32 buckets)
{
	return (hash >> 32) * buckets >> 32;
}

INLINE u32 tag_of(u64 hash)
{
	u32 tag = (u32)(hash >> 32) & 0xff;

	return tag ? tag : 1;
}

INLINE bool has_key(const struct cell *cell, u64 head, const struct flow_key *key)
{
#if FAMILY == 6
	const u64 *own = (const u64 *)&cell->src, *other = (const u64 *)key;

	return !((own[0] ^ other[0]) | (own[1] ^ other[1]) | (own[2] ^ other[2]) |
		 (own[3] ^ other[3])) &&
	       cell->sport == key->sport && cell->dport == key->dport &&
	       HEAD_PROTO(head) == key->proto;
#else
	const u64 *own = (const u64 *)&cell->key, *other = (const u64 *)key;

	return !((own[0] ^ other[0]) | (own[1] ^ other[1]));
#endif
}

INLINE bool find_in(bool own, u32 bank, u32 bucket, u32 tag, const struct flow_key *key,
		    struct found *found)
{
	u64 *control = control_at(own, bucket), z;

	if (!control)
		return false;
	z = LOAD(control) ^ tag * BYTES_ONE;
	z = LOWEST_ZERO(z);
	ROLLED
	for (u32 i = 0; i < CELLS_PER_BUCKET && z; i++) {
		u32 place = bank | (bucket * CELLS_PER_BUCKET + WHICH_BYTE(z));
		struct cell *cell = cell_at(own, place);
		u64 head;

		if (!cell)
			return false;
		head = LOAD(&cell->head);
		ORDERED;
		if (has_key(cell, head, key) && HEAD_STATE(head) >= STATE_LIVE) {
			found->cell = cell;
			found->place = place;
			found->head = head;
			found->state = state_at(own, place, cell);
			return found->state;
		}
		z &= z - 1;
	}
	return false;
}

INLINE bool find_on(bool own, const struct table *t, u64 hash, const struct flow_key *key,
		    struct found *found)
{
	u32 bank = bank_of(own, t), buckets = buckets_of(own, t), tag = tag_of(hash);

	return buckets && (find_in(own, bank, first_bucket(hash, buckets), tag, key, found) ||
			   find_in(own, bank, second_bucket(hash, buckets), tag, key, found));
}

INLINE bool same_generation(u64 head, u64 other)
{
	return HEAD_GENERATION(head) == HEAD_GENERATION(other);
}

/* Is the cell still that flow's? Then what was read from it since belongs to it: what a cell says
 * changes with its generation alone. */
INLINE bool unchanged(const struct found *found)
{
	ORDERED;
	return same_generation(LOAD(&found->cell->head), found->head);
}

/* Bytes of this direction: the upper bits of the word are something else. */
INLINE u64 bytes_of(const struct cell_state *state)
{
	return state->bytes & BYTES_MASK;
}

/* The beat that the flow was opened in has 32 bits: the lower half is in the first and the third
 * cell of the ring, the upper one in the others. Adding to the bytes leaves them, for 256 TB. */
INLINE u64 opened_bits(u32 kind, u32 beat)
{
	bool upper = !(kind & CELL_REPLY) != !(kind & CELL_SIDE);

	return (u64)(upper ? beat >> 16 : beat & 0xffff) << OPENED_SHIFT;
}

INLINE u32 next_place(const struct cell_state *state)
{
	return LOAD(&state->link) & LINK_PLACE_MASK;
}

INLINE bool get_cell_in(bool own, u32 place, struct found *found)
{
	struct cell *cell = cell_at(own, place);

	if (!cell)
		return false;
	found->place = place;
	found->cell = cell;
	found->state = state_at(own, place, cell);
	found->head = LOAD(&cell->head);
	ORDERED;
	return found->state;
}

INLINE bool in_own(u32 place)
{
	const struct table *t = get_table();

	return t && (place & PLACE_BANK) == t->bank;
}

/* The cell at a place of either bank, whatever it is. */
INLINE bool get_cell(u32 place, struct found *found)
{
	return in_own(place) ? get_cell_in(true, place, found) : get_cell_in(false, place, found);
}

/* A cell that was left for the own bank: the one that it went to. While that one is not there yet,
 * for some nanoseconds, the old one stands for it. False if the flow has ended since. */
INLINE bool find_twin(const struct table *t, struct found *found)
{
	u32 place = next_place(found->state);
	struct found twin;

	if ((place & PLACE_BANK) != t->bank)
		return true;
	if (!get_cell_in(true, place, &twin) || !same_generation(twin.head, found->head))
		return false;
	if (HEAD_STATE(twin.head) >= STATE_LIVE)
		*found = twin;
	return HEAD_STATE(twin.head) >= STATE_BUSY;
}

/* The live cell of a tuple. The own bank first: a flow is there before it has gone from the other,
 * so none is missed. The programs of plain packets have it inlined, all others call find_cell(). */
INLINE bool find_cell_inline(const struct flow_key *key, struct found *found)
{
	const struct table *t = get_table();
	u64 hash;

	if (!t)
		return false;
	hash = hash_key(key, t);
	if (find_on(true, t, hash, key, found))
		return true;
	return find_on(false, t, hash, key, found) &&
	       (!(found->head & HEAD_MOVED) || find_twin(t, found));
}

/* A cell that was found, in a record that a subprogram can have. */
struct cell_call {
	__u64 head;
	__u32 place;
	__u32 to; /* whatever the subprogram takes: a state, a reason, a beat */
	__u32 from;
	__u32 pad;
};

INLINE bool found_at(u32 place, u64 head, struct found *found)
{
	if (!get_cell(place, found))
		return false;
	found->head = head;
	return true;
}

struct lookup {
	struct flow_key key;
	__u64 head;
	__u32 place;
	__u32 pad;
};

CALLED(find, struct lookup, SUBPROGRAM_FIND);
SIZED(find, struct lookup)
SUBPROGRAM(find, struct lookup)
{
	struct found found;

	if (!own || !find_cell_inline(&own->key, &found))
		return false;
	own->place = found.place;
	own->head = found.head;
	return true;
}

INLINE bool find_cell(const struct flow_key *key, struct found *found)
{
	struct lookup lookup = {.key = *key};

	return call_find(&lookup) && found_at(lookup.place, lookup.head, found);
}

/* The next cell of the ring, a lone cell's is itself. False when the flow has ended meanwhile. What
 * comes next is always of the other direction. */
INLINE bool find_next(const struct found *found, struct found *next)
{
	u32 place = next_place(found->state);

	ROLLED
	for (u32 i = 0; i < 2; i++) {
		if (!get_cell(place, next) || !same_generation(next->head, found->head) ||
		    HEAD_STATE(next->head) < STATE_LIVE)
			return false;
		/* Its own twin comes first where the flow moves to the other bank. */
		if (next->place == found->place || HEAD_KIND(next->head) != HEAD_KIND(found->head))
			return true;
		place = next_place(next->state);
	}
	return false;
}

/* Do its packets go to the endpoint as they are, and nothing comes back (dsr.h)? */
INLINE bool goes_whole(u32 kind)
{
	return (kind & (CELL_DSR | CELL_REPLY)) == CELL_DSR;
}

INLINE bool is_forward(u32 kind)
{
	return !(kind & (CELL_REPLY | CELL_SIDE));
}

/* The flow's forward cell, given any of its cells; a lone cell is its own. Its head has the flow's
 * true state. False when the flow has ended meanwhile. */
INLINE bool find_forward(const struct found *any, struct found *forward)
{
	*forward = *any;
	ROLLED
	for (u32 i = 0; i < RING_CELLS + 1; i++) {
		if (is_forward(HEAD_KIND(forward->head)) && !(forward->head & HEAD_MOVED))
			return true;
		if (!get_cell(next_place(forward->state), forward) ||
		    !same_generation(forward->head, any->head) ||
		    HEAD_STATE(forward->head) < STATE_LIVE)
			return false;
	}
	return false;
}

/* The same for one whose flow is in the own bank, where it moves no more. */
INLINE bool find_own_forward(const struct found *any, struct found *forward)
{
	*forward = *any;
	ROLLED
	for (u32 i = 0; i < RING_CELLS; i++) {
		if (is_forward(HEAD_KIND(forward->head)))
			return true;
		if (!get_cell_in(true, next_place(forward->state), forward) ||
		    !same_generation(forward->head, any->head) ||
		    HEAD_STATE(forward->head) < STATE_LIVE)
			return false;
	}
	return false;
}
