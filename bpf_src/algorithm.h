/* Which endpoint of a set a new flow gets: by chance, by turns, by how busy they are, or by a hash
 * of who calls. docs/semantics.md says what each is for.
 *
 * Nothing here may fail to choose: what is missing (a table for which there was no room, a count)
 * makes the choice one by chance. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "cpu.h"

/* Who asks for a backend, and by which kind of address. */
struct request {
	struct addr client;
	__u32 service;
	__u32 frontend_flags;
	__u32 outside; /* from outside the cluster: the external policy applies */
	__u32 ports;   /* the client's and, in the upper half, the service's; network byte order */
	__u32 again;   /* how often what the hash led to would not do */
};

#define BY_CHANCE 2

/* Slots to draw from, of the set that begins at `set`. */
struct part {
	__u32 set;
	__u32 first;
	__u32 length;
	__u32 turn;  /* which of service.turn; BY_CHANCE: no turns are taken here */
	__u32 drawn; /* slot, from the first */
};

/* The backend that a slot stands for, where `within` is any number below 65536. False if the agent
 * wrote nonsense. */
INLINE bool endpoint_at(u32 set, u32 index, u32 within, u32 *id)
{
	struct slot *slot = slots.lookup(&index);

	if (!slot)
		return false;
	if (slot->share && within <= slot->share) {
		index = set + slot->other;
		slot = slots.lookup(&index);
		if (!slot)
			return false;
	}
	*id = slot->backend;
	return true;
}

/* Any of them, as likely as its weight says: all that most services need. */
INLINE bool any_endpoint(u32 set, u32 length, u32 *id)
{
	u64 drawn = (u64)next_random() * length;

	return endpoint_at(set, set + (u32)(drawn >> 32), (u32)drawn >> 16, id);
}

/* The slot and, within it, the fraction of 65536 that come next. CPUs that ask at once may get the
 * same turn, and then nobody gets the next. The fractions of the golden ratio spread the turns of
 * each endpoint evenly over the rounds. */
INLINE u32 next_turn(u32 *turn, u32 length, u32 *within)
{
	u32 place = *(volatile u32 *)turn, round = place / length;

	__sync_fetch_and_add(turn, 1);
	*within = round * 2654435769U >> 16;
	return place - round * length;
}

/* The same by chance. */
INLINE u32 any_place(u32 length, u32 *within)
{
	u64 drawn = (u64)next_random() * length;

	*within = (u32)drawn >> 16;
	return drawn >> 32;
}

/* `lbctl trace` takes no turns. */
INLINE bool takes_turns(const struct service *s)
{
#ifdef TRACE
	return false;
#else
	return s->algorithm == ALGORITHM_ROUND_ROBIN;
#endif
}

/* With `more` flows each, would `one` have more than `times`/SPILL_UNIT as many as `other`, for
 * their weights? */
INLINE bool is_busier(u32 one, u32 other, u32 times, u32 more)
{
	struct backend *b = backends.lookup(&one), *c = backends.lookup(&other);
	u64 *flows = backend_live.lookup(&one), *least = backend_live.lookup(&other);

	if (!b || !c || !flows || !least)
		return false;
	return (*flows + more) * (c->weight ?: 1) * SPILL_UNIT >
	       (*least + more) * (b->weight ?: 1) * times;
}

/* An endpoint of a part; or one of another slot than that was of, if there is one. */
INLINE bool draw(struct service *s, struct part *part, bool another, u32 *id)
{
	u32 place, within;

	if (takes_turns(s) && part->turn < BY_CHANCE) {
		place = next_turn(&s->turn[part->turn & 1], part->length, &within);
	} else {
		place = any_place(part->length - another, &within);
		if (another && place >= part->drawn)
			place++;
	}
	part->drawn = place;
	return endpoint_at(part->set, part->first + place, within, id);
}

/* One endpoint of a part, as the service's algorithm has it. The less busy of two is nearly as good
 * as the least busy of all, costs the same for thousands, and nobody is swamped who was idle. */
INLINE bool pick(struct service *s, struct part *part, u32 *id)
{
	u32 other;

	if (!draw(s, part, false, id))
		return false;
	if (s->algorithm == ALGORITHM_LEAST_CONNECTIONS && part->length > 1 &&
	    draw(s, part, true, &other) && is_busier(*id, other, SPILL_UNIT, 0))
		*id = other;
	return true;
}

/* The same on every node, today and tomorrow: no secret and no id of this node is in it. Nor is the
 * address that was called: nodes are called by their own, for the same service. */
INLINE u32 hash_of(const struct request *r, u32 ports)
{
	u64 hash = ((u64)r->client.w[0] << 32 | r->client.w[1]) ^ 0x9e3779b97f4a7c15;

	hash = (hash ^ hash >> 32) * 0xff51afd7ed558ccd;
	hash ^= (u64)r->client.w[2] << 32 | r->client.w[3];
	hash = (hash ^ hash >> 29) * 0xc4ceb9fe1a85ec53;
	hash = (hash ^ hash >> 32 ^ (ports + r->again)) * 0xff51afd7ed558ccd;
	return (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53 >> 32;
}

/* What the table of a set says of this client. False if there is none. */
INLINE bool from_table(const struct service *s, const struct request *r, u64 table, u32 *id)
{
	u32 length = table >> REGION_LENGTH_SHIFT & REGION_LENGTH_MASK, place, pair;
	struct hash_pair *found;

	if (!length)
		return false;
	place = hash_of(r, s->algorithm == ALGORITHM_MAGLEV ? r->ports : 0);
	place = (u32)table + (u32)((u64)place * length >> 32);
	pair = place >> 1;
	found = hash_tables.lookup(&pair);
	if (!found)
		return false;
	*id = found->backend[place & 1];
	return *id;
}

/* Of services with SERVICE_CHOOSES. `set` and `length` are of the region. A near endpoint is taken
 * unless it is too busy against one of the rest. 0 or a reason. */
INLINE int choose_by_algorithm(struct service *s, const struct request *r, bool local, u32 set,
			       u32 length, u32 *id)
{
	struct part part = {.set = set, .first = set, .length = length, .turn = local};
	u32 near = local ? 0 : s->near, other;

	if (s->algorithm >= ALGORITHM_MAGLEV &&
	    from_table(s, r, local ? s->local_table : s->cluster_table, id))
		return 0;
	if (near && near < length)
		part.length = near;
	if (!pick(s, &part, id))
		return REASON_INTERNAL;
	if (part.length == length)
		return 0;
	part.first += near;
	part.length = length - near;
	part.turn = BY_CHANCE; /* in step with the near ones' turns, the same would always meet */
	if (draw(s, &part, false, &other) && is_busier(*id, other, s->spill_over, 1))
		*id = other;
	return 0;
}
