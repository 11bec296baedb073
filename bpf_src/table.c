/* Programs of the table of flows that no packet runs: the agent does, over lists in memory that it
 * shares with them (BPF_PROG_TEST_RUN). FAMILY is 4 or 6. */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "cpu.h"
#include "cells.h"
#include "account.h"
#include "claim.h"
#include "ending.h"

INLINE struct task *get_task(void)
{
	u32 zero = 0;

	return task.lookup(&zero);
}

/* The next of the list `endings`, if it is still that flow. */
PROGRAM(FAMILY_NAME(end_listed))
{
	struct task *own = get_task();
	struct ending *wanted;
	struct found found;
	u32 index;

	if (!own || own->next >= own->count)
		return 0;
	index = own->next++;
	wanted = endings.lookup(&index);
	if (!wanted || !get_cell(wanted->place, &found) ||
	    HEAD_GENERATION(found.head) != wanted->generation)
		return 0;
	if (HEAD_STATE(found.head) == STATE_BUSY)
		abandon_cell(found.place);
	else if (HEAD_STATE(found.head) < STATE_LIVE || !end_flow(&found, wanted->why))
		return 0;
	own->done++;
	return 0;
}

/* Places of a flow's cells, in the order of its ring. */
struct places {
	u32 at[RING_CELLS];
};

INLINE void abandon_all(const struct places *places, u32 count)
{
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < count; i++)
		abandon_cell(places->at[i & (RING_CELLS - 1)]);
}

INLINE bool reserve_all(const struct opening *wanted, struct places *places, u32 generation)
{
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < wanted->count; i++) {
		const struct opening_cell *cell = &wanted->cells[i & (RING_CELLS - 1)];
		u32 place =
		    reserve_cell(&cell->key, &wanted->cells[0].key.src, cell->kind, generation);

		if (!IS_PLACE(place)) {
			abandon_all(places, i);
			return false;
		}
		places->at[i & (RING_CELLS - 1)] = place;
	}
	return true;
}

INLINE void fill_listed(const struct opening *wanted, const struct opening_cell *cell, u32 place,
			u32 next)
{
	struct found own;

	fill_cell(place, &cell->addr, cell->port, cell->client_port, wanted->backend,
		  wanted->service, next, cell->seen);
	if (!get_cell(place, &own))
		return;
	own.state->link |= (u32)cell->flags << LINK_FLAGS_SHIFT;
	own.state->packets = cell->packets;
	own.state->bytes = cell->bytes;
	own.state->ack = cell->ack;
}

/* The next of the list `openings`: flows of an earlier version's tables. */
PROGRAM(FAMILY_NAME(open_listed))
{
	struct task *own = get_task();
	struct places places = {};
	struct opening *wanted;
	u32 index, generation = new_generation();

	if (!own || own->next >= own->count)
		return 0;
	index = own->next++;
	wanted = OPENINGS.lookup(&index);
	if (!wanted || !wanted->count || !reserve_all(wanted, &places, generation)) {
		own->failed++;
		return 0;
	}
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < wanted->count; i++)
		fill_listed(wanted, &wanted->cells[i & (RING_CELLS - 1)],
			    places.at[i & (RING_CELLS - 1)],
			    places.at[(i + 1 < wanted->count ? i + 1 : 0) & (RING_CELLS - 1)]);
	/* The forward cell last. */
	ROLLED
	for (u32 i = RING_CELLS; i > 0; i--) {
		if (i <= wanted->count)
			publish_cell(places.at[(i - 1) & (RING_CELLS - 1)], wanted->state);
	}
	if (wanted->backend & BACKEND_ID_MASK && !is_over(wanted->state))
		count_opened(wanted->backend, wanted->service);
	own->done++;
	return 0;
}
