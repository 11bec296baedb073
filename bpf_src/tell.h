/* What is told of a flow: that it begins, and once that it ends. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "cells.h"
#include "beat.h"
#include "event.h"

/* What a flow's cells said of it. */
struct carried {
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
	__u32 opened;
	__u32 seen;
};

/* Of a forward cell that nobody else frees meanwhile. Flows that are nobody's connection are not
 * told of. */
INLINE void tell_flow(const struct found *forward, const struct carried *flow, u32 what, u32 why)
{
	const struct cell *cell = forward->cell;
	struct flow_event *event;

	if (!(forward->state->backend & BACKEND_ID_MASK) || !is_anybody_listening())
		return;
	event = begin_event(what, why);
	if (!event)
		return;
#if FAMILY == 6
	widen(&event->src, &cell->src);
	widen(&event->dst, &cell->dst);
	event->sport = cell->sport;
	event->dport = cell->dport;
#else
	widen(&event->src, &cell->key.src);
	widen(&event->dst, &cell->key.dst);
	event->sport = cell->key.sport;
	event->dport = cell->key.dport;
#endif
	widen(&event->addr, &cell->addr);
	event->port = cell->port;
	event->client_port = cell->client_port;
	event->proto = HEAD_PROTO(forward->head);
	event->kind = HEAD_KIND(forward->head);
	event->service = forward->state->service;
	event->backend = forward->state->backend;
	event->packets_in = flow->packets_in;
	event->bytes_in = flow->bytes_in;
	event->packets_out = flow->packets_out;
	event->bytes_out = flow->bytes_out;
	event->opened = flow->opened;
	event->seen = flow->seen;
	finish_event(event);
}

/* Before the forward cell, which is filled in, is published: nothing can happen to the flow before
 * that is told. */
INLINE void tell_opened(u32 place, u32 beat)
{
	struct carried flow = {.opened = beat, .seen = beat};
	struct found forward;

	if (!get_cell_in(true, place, &forward))
		return;
	flow.packets_in = forward.state->packets;
	flow.bytes_in = bytes_of(forward.state);
	tell_flow(&forward, &flow, EVENT_OPENED, 0);
}

/* By whoever closed it: its cells rest for a while, and what still passes is not told. Nor is their
 * end. */
INLINE void tell_closed(const struct found *forward, const struct cell_state *reply, u32 why)
{
	struct carried flow = {.packets_in = forward->state->packets,
			       .bytes_in = bytes_of(forward->state),
			       .packets_out = reply->packets,
			       .bytes_out = bytes_of(reply),
			       .seen = now()};

	flow.opened = (u32)(forward->state->bytes >> OPENED_SHIFT) |
		      (u32)(reply->bytes >> OPENED_SHIFT) << 16;
	tell_flow(forward, &flow, EVENT_ENDED, why);
}
