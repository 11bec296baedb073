/* Time, as all that is kept has it: in beats. Reading jiffies is a load, asking a clock a call. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"

/* About a second, between 0.25 and 2.6 s: jiffies, whose rate no program knows, >> BEAT_SHIFT. The
 * unit of cell_state.seen and of every timeout. */
INLINE u32 now(void)
{
	return bpf_jiffies64() >> BEAT_SHIFT;
}

/* Has it been longer? Another CPU may have written a beat that is later than ours. */
INLINE bool is_older(u32 beat, u32 seen, u32 timeout)
{
	return (s32)(beat - seen) > (s32)timeout;
}

/* The beat of which a lone cell has the lower half: the last one up to another. */
INLINE u32 latest_beat(u32 half, u32 until)
{
	return until - ((until - half) & 0xffff);
}
