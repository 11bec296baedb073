/* Events for whoever listens (ebpf/maps/ring.py): a record's beginning and end, and whether there
 * is anybody. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "types.h"
#include "maps.h"
#include "beat.h"
#include "config.h"
#include "cpu.h"

/* The agent says so again and again while somebody does: once it has been killed, nobody does. */
INLINE bool is_anybody_listening(void)
{
	const struct config *c = get_config();

	return c && c->events_until && (s32)(c->events_until - now()) > 0;
}

/* A blank record, or none: there is no room, which is counted. Only one at a time may be begun.
 * `why` is an enum end_reason, or an enum reason for EVENT_TURNED_AWAY. */
INLINE struct flow_event *begin_event(u32 what, u32 why)
{
	struct flow_event *event = flow_events.ringbuf_reserve(sizeof(*event));
	struct cpu *cpu;

	if (!event) {
		cpu = this_cpu();
		/* What tells of a socket may be interrupted by what tells of a packet. */
		if (cpu)
			__sync_fetch_and_add(&cpu->unheard, 1);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->what = what;
	event->why = why;
	event->time = bpf_ktime_get_ns();
	return event;
}

/* The reader looks often enough by itself: nothing is paid for waking it. */
INLINE void finish_event(struct flow_event *event)
{
	flow_events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}
