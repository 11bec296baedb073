/* Counting: reasons per packet that was not simply forwarded. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "maps.h"

/* In the trace variant the reason is told to the caller and nothing is counted. */
INLINE void count(struct __sk_buff *skb, u32 reason)
{
#ifdef TRACE
	/* handoff.reason, by hand: of several of these the compiler makes one whose pointer it has
	 * moved, which the verifier does not take of a context. */
	asm volatile("*(u32 *)(%0 + %1) = %2"
		     :
		     : "r"(skb), "i"(HANDOFF_PLACE + 4 * HANDOFF_REASON), "r"((u64)reason)
		     : "memory");
#else
	u64 *counter = counters.lookup(&reason);

	if (counter)
		*counter += 1;
#endif
}
