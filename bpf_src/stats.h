/* Counting: reasons per packet that was not simply forwarded. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
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
