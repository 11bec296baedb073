/* The end of a flow as an event, for whoever listens (ebpf/maps/ring.py). */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "cpu.h"
#include "cells.h"

/* What a flow's cells said of it. */
struct carried {
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
	__u32 opened;
	__u32 seen;
};

/* Only while the forward cell is dead and not free: then it is this CPU's. */
INLINE void tell_end(const struct found *forward, const struct carried *flow, u32 why)
{
	const struct config *c = get_config();
	const struct cell *cell = forward->cell;
	struct flow_event *event;
	struct cpu *cpu;

	if (!c || !(c->flags & CONFIG_EVENTS))
		return;
	event = flow_events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		cpu = this_cpu();
		if (cpu)
			cpu->unheard++;
		return;
	}
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
	event->proto = HEAD_PROTO(forward->head);
	event->why = why;
	event->service = forward->state->service;
	event->backend = forward->state->backend;
	event->packets_in = flow->packets_in;
	event->bytes_in = flow->bytes_in;
	event->packets_out = flow->packets_out;
	event->bytes_out = flow->bytes_out;
	event->opened = flow->opened;
	event->seen = flow->seen;
	flow_events.ringbuf_submit(event, 0);
}
