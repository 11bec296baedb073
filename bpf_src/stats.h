/* Counting: reasons per packet that was not simply forwarded, and traffic by flow and service. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "handoff.h"

/* In the trace variant the reason is told to the caller and nothing is counted. */
INLINE void count(struct __sk_buff *skb, u32 reason)
{
#ifdef TRACE
	handoff(skb)->reason = reason;
#else
	u64 *counter = counters.lookup(&reason);

	if (counter)
		*counter += 1;
#endif
}

INLINE u32 now(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

/* Says that time has passed, for a load: asking the clock is a call, and made once a beat. */
INLINE u16 beat(void)
{
	return bpf_jiffies64() >> BEAT_SHIFT;
}

INLINE void count_connection(u32 service)
{
	struct service_counters *c = service_counters.lookup(&service);

	if (c)
		__sync_fetch_and_add(&c->connections, 1);
}

/* Moves what a flow gathered since its last beat to its totals and to its service. */
INLINE void flush_counts(struct flow *f)
{
	struct service_counters *c;
	u32 service = f->service, packets = f->tick_packets, bytes = f->tick_bytes;

	if (!packets)
		return;
	f->tick_packets = 0;
	f->tick_bytes = 0;
	f->packets += packets;
	f->bytes += bytes;
	c = service_counters.lookup(&service);
	if (!c || f->state == FLOW_SIDE || f->flags & FLOW_DIRECT)
		return;
	if (f->flags & FLOW_REPLY) {
		__sync_fetch_and_add(&c->packets_out, packets);
		__sync_fetch_and_add(&c->bytes_out, bytes);
	} else {
		__sync_fetch_and_add(&c->packets_in, packets);
		__sync_fetch_and_add(&c->bytes_in, bytes);
	}
}

INLINE void count_packet(struct flow *f, u32 bytes)
{
	f->tick_packets += 1;
	f->tick_bytes += bytes;
}
