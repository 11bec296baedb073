/* The table of flows: how a flow changes its state, and how it ends.
 *
 * The forward cell's head has the true state; only a compare-and-swap changes it. Of all who want
 * to end a flow one wins that, and does what is done once: counts, the event, the cells' release.
 * The other cells' heads say the state too, so that a packet needs no more than its own line. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "hash.h"
#include "cells.h"
#include "subprogram.h"
#include "account.h"
#include "beat.h"
#include "tell.h"

#define STATE_TRIES 8

/* Takes a place's tag off: whoever claims it next begins with the control word. */
INLINE void release(bool own, u32 place, u32 tag)
{
	u64 *control = control_at(own, (place & PLACE_INDEX_MASK) / CELLS_PER_BUCKET);

	if (control)
		__sync_fetch_and_add(control, -((u64)tag << place % CELLS_PER_BUCKET * 8));
}

INLINE void free_cell(bool own, struct cell *cell, u32 place, u64 head)
{
	cell->head = IN_STATE(head, STATE_FREE);
	ORDERED;
	release(own, place, HEAD_TAG(head));
}

/* Frees a cell that was reserved, unless somebody else did, or it became a flow. */
INLINE bool give_back(const struct found *busy)
{
	u64 freed = IN_STATE(busy->head, STATE_FREE);

	if (__sync_val_compare_and_swap(&busy->cell->head, busy->head, freed) != busy->head)
		return false;
	if (in_own(busy->place))
		release(true, busy->place, HEAD_TAG(busy->head));
	else
		release(false, busy->place, HEAD_TAG(busy->head));
	return true;
}

/* Says the flow's state on the ring's other cells, each as long as it is the flow's. */
INLINE void hint_state(bool own, const struct found *forward, u32 state)
{
	u32 place = next_place(forward->state);
	struct found at;

	ROLLED
	for (u32 i = 1; i < RING_CELLS; i++) {
		if (place == forward->place || !get_cell_in(own, place, &at) ||
		    !same_generation(at.head, forward->head) || HEAD_STATE(at.head) < STATE_LIVE)
			return;
		__sync_val_compare_and_swap(&at.cell->head, at.head,
					    at.head - HEAD_STATE(at.head) + state);
		place = next_place(at.state);
	}
}

INLINE bool set_state_inline(const struct found *forward, u32 from, u32 to)
{
	u64 old = IN_STATE(forward->head, from), new = IN_STATE(forward->head, to);
	/* Before it, since the flow can end right after. */
	u32 backend = LOAD(&forward->state->backend), service = LOAD(&forward->state->service);

	ORDERED;
	if (__sync_val_compare_and_swap(&forward->cell->head, old, new) != old)
		return false;
	if (is_over(from) != is_over(to))
		add_live(backend, service, is_over(to) ? -1 : 1);
	if (in_own(forward->place))
		hint_state(true, forward, to);
	else
		hint_state(false, forward, to);
	return true;
}

CALLED(set_state, struct cell_call, SUBPROGRAM_SET_STATE);
SIZED(set_state, struct cell_call)
SUBPROGRAM(set_state, struct cell_call)
{
	struct found forward;

	return own && found_at(own->place, own->head, &forward) &&
	       set_state_inline(&forward, own->from, own->to);
}

/* Changes the flow's state; false if it was not `from` any more, or is about to move. */
INLINE bool set_state(struct found *forward, u32 from, u32 to)
{
	struct cell_call call = {forward->head, forward->place, to, from};

	if (!call_set_state(&call))
		return false;
	forward->head = IN_STATE(forward->head, to);
	return true;
}

/* Frees the cells of a flow that this CPU has ended, and accounts for what they counted. */
INLINE void free_ring(bool own, const struct found *forward, u32 why)
{
	struct carried flow = {.packets_in = forward->state->packets,
			       .bytes_in = bytes_of(forward->state),
			       .opened = forward->state->bytes >> OPENED_SHIFT,
			       .seen = forward->state->seen};
	u32 place = next_place(forward->state);
	struct found at;

	ROLLED
	for (u32 i = 1; i < RING_CELLS; i++) {
		if (place == forward->place || !get_cell_in(own, place, &at) ||
		    !same_generation(at.head, forward->head))
			break;
		if ((HEAD_KIND(at.head) & (CELL_REPLY | CELL_SIDE)) == CELL_REPLY) {
			flow.packets_out = at.state->packets;
			flow.bytes_out = bytes_of(at.state);
			flow.opened |= (u32)(at.state->bytes >> OPENED_SHIFT) << 16;
			if ((s32)(at.state->seen - flow.seen) > 0)
				flow.seen = at.state->seen;
		}
		place = next_place(at.state);
		free_cell(own, at.cell, at.place, at.head);
	}
	if (goes_whole(HEAD_KIND(forward->head)))
		flow.opened = latest_beat(flow.opened, flow.seen);
	if (forward->state->backend & BACKEND_ID_MASK) {
		count_traffic(forward->state->service, flow.packets_in, flow.bytes_in,
			      flow.packets_out, flow.bytes_out);
		if (!is_over(HEAD_STATE(forward->head)))
			tell_flow(forward, &flow, EVENT_ENDED, why);
	}
	free_cell(own, forward->cell, forward->place, forward->head);
}

/* Is a flow over, or all that is known to come of it the end? Whose answers do not come by here
 * closes by the client's FIN alone, and keeps its tuple for minutes, in case it was half a close
 * (track_one_way() in tcp.h). */
INLINE bool is_closed(u64 head)
{
	return is_over(HEAD_STATE(head)) ||
	       (HEAD_STATE(head) == STATE_FIN_WAIT && goes_whole(HEAD_KIND(head)));
}

/* May a flow make room for another? */
INLINE bool is_evictable(u64 head)
{
	u32 state = HEAD_STATE(head);

	return state == STATE_SYN || state == STATE_DATAGRAM || is_closed(head);
}

/* Of all who try, one gets true: its is what else there is to do. */
INLINE bool mark_dead(struct found *forward, u32 why)
{
	u64 head = forward->head;

	ROLLED
	for (u32 i = 0; i < STATE_TRIES; i++) {
		u64 was;

		if (!same_generation(head, forward->head) || HEAD_STATE(head) < STATE_LIVE ||
		    head & HEAD_MOVED || (why == END_EVICTED && !is_evictable(head)))
			return false;
		was = __sync_val_compare_and_swap(&forward->cell->head, head,
						  IN_STATE(head, STATE_DEAD));
		if (was == head) {
			forward->head = head;
			return true;
		}
		head = was;
	}
	return false;
}

/* Accounts for a flow that this CPU has marked dead; its head is what it was before. */
INLINE void uncount(const struct found *forward)
{
	add_held(forward->cell, HEAD_KIND(forward->head), -1);
	if (!is_over(HEAD_STATE(forward->head)))
		add_live(forward->state->backend, forward->state->service, -1);
}

CALLED(end, struct cell_call, SUBPROGRAM_END);
SIZED(end, struct cell_call)
SUBPROGRAM(end, struct cell_call)
{
	struct found any, forward;

	if (!own || !found_at(own->place, own->head, &any) || !find_forward(&any, &forward) ||
	    !mark_dead(&forward, own->to))
		return false;
	uncount(&forward);
	/* All cells of a flow are in one bank. */
	if (in_own(forward.place))
		free_ring(true, &forward, own->to);
	else
		free_ring(false, &forward, own->to);
	return true;
}

/* Ends the flow that a cell belongs to; exactly one caller gets true. `why` is an enum end_reason;
 * with END_EVICTED, only a flow that may make room goes. */
INLINE bool end_flow(const struct found *any, u32 why)
{
	struct cell_call call = {any->head, any->place, why};

	return call_end(&call);
}
