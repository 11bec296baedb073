/* Programs of the table of flows that no packet runs: the agent does, with lists in place of frames
 * (BPF_PROG_TEST_RUN). What it writes into memory itself would not be atomic. FAMILY is 4 or 6. */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "listed.h"
#include "hash.h"
#include "parse.h"
#include "cpu.h"
#include "cells.h"
#include "account.h"
#include "claim.h"
#include "ending.h"
#include "moving.h"

/* A list fits a page, which is what a test run takes for a frame. */
#define MOST_LISTED 256

INLINE struct work *get_work(struct __sk_buff *skb)
{
	struct work *own = packet_start(skb);

	return (void *)(own + 1) <= packet_end(skb) ? own : 0;
}

/* The list's next record, or 0. */
INLINE void *next_record(struct __sk_buff *skb, struct work *own, u32 size)
{
	u32 index = own->next;
	void *record = (void *)(own + 1);

	if (index >= own->count || index >= MOST_LISTED)
		return 0;
	own->next = index + 1;
	record += index * size;
	return record + size <= packet_end(skb) ? record : 0;
}

/* Ends a flow, or gives back a cell that was reserved and forgotten; if it is still that one. */
PROGRAM(FAMILY_NAME(end_listed))
{
	struct work *own = get_work(skb);
	struct listed_flow *wanted;
	struct found found;

	if (!own)
		return 0;
	wanted = next_record(skb, own, sizeof(*wanted));
	if (!wanted || !get_cell(wanted->place, &found) ||
	    HEAD_GENERATION(found.head) != wanted->generation)
		return 0;
	if (HEAD_STATE(found.head) == STATE_BUSY
		? give_back(&found)
		: HEAD_STATE(found.head) >= STATE_LIVE && end_flow(&found, wanted->why))
		own->done += 1;
	return 0;
}

/* Reserves a cell for a flow of an earlier version's tables. */
PROGRAM(FAMILY_NAME(reserve_listed))
{
	struct work *own = get_work(skb);
	struct listed_cell *wanted;
	struct flow_key key;
	ip_addr holder;
	u32 place;

	if (!own)
		return 0;
	wanted = next_record(skb, own, sizeof(*wanted));
	if (!wanted)
		return 0;
	key = wanted->key;
	holder = wanted->holder;
	if (!wanted->generation)
		wanted->generation = new_generation();
	place = reserve_cell(&key, &holder, wanted->kind, wanted->generation);
	wanted->place = place;
	if (IS_PLACE(place))
		own->done += 1;
	return 0;
}

/* Fills and publishes one of these; the agent gives a flow's forward cell last. */
PROGRAM(FAMILY_NAME(publish_listed))
{
	struct work *own = get_work(skb);
	struct listed_cell *wanted;
	struct found cell;
	ip_addr addr;

	if (!own)
		return 0;
	wanted = next_record(skb, own, sizeof(*wanted));
	if (!wanted || !get_cell_in(true, wanted->place, &cell) ||
	    HEAD_STATE(cell.head) != STATE_BUSY || HEAD_GENERATION(cell.head) != wanted->generation)
		return 0;
	addr = wanted->addr;
	fill_cell(wanted->place, &addr, wanted->port, wanted->client_port, wanted->backend,
		  wanted->service, wanted->next, wanted->seen);
	cell.state->link |= (u32)wanted->flags << LINK_FLAGS_SHIFT;
	cell.state->packets = wanted->packets;
	cell.state->bytes += wanted->bytes;
	cell.state->ack = wanted->ack;
	publish_cell(wanted->place, wanted->state);
	if (is_forward(wanted->kind) && !is_over(wanted->state))
		add_live(wanted->backend, wanted->service, 1);
	own->done += 1;
	return 0;
}

/* Moves a flow of the other bank to the own one. */
PROGRAM(FAMILY_NAME(move_listed))
{
	struct work *own = get_work(skb);
	struct table *t = get_table();
	struct cpu *cpu = this_cpu();
	struct listed_ring *wanted;

	if (!own || !t || !cpu)
		return 0;
	wanted = next_record(skb, own, sizeof(*wanted));
	if (!wanted)
		return 0;
	cpu->ring = *wanted;
	if (move_ring(t, &cpu->ring))
		own->done += 1;
	*wanted = cpu->ring;
	return 0;
}

/* Some time later: carries what its old cells still got, and frees them. */
PROGRAM(FAMILY_NAME(carry_listed))
{
	struct work *own = get_work(skb);
	struct cpu *cpu = this_cpu();
	struct listed_ring *wanted;

	if (!own || !cpu)
		return 0;
	wanted = next_record(skb, own, sizeof(*wanted));
	if (!wanted)
		return 0;
	cpu->ring = *wanted;
	ROLLED
	for (u32 i = 0; i < RING_CELLS && i < cpu->ring.count; i++)
		carry_cell(&cpu->ring, AT(&cpu->ring, i));
	own->done += 1;
	return 0;
}
