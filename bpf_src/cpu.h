/* What each CPU keeps for itself: numbers of flows, and chance. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"

INLINE struct cpu *this_cpu(void)
{
	u32 number = bpf_get_smp_processor_id();

	return cpus.lookup(&number);
}

/* Not that of any flow of the last four million on this CPU, nor of any on another. */
INLINE u32 new_generation(void)
{
	struct cpu *own = this_cpu();

	if (!own)
		return 0;
	own->opened++;
	return own->opened << GENERATION_SHIFT | (bpf_get_smp_processor_id() & GENERATION_CPU_MASK);
}

/* A step of a linear congruential generator whose high half is used. Python gives each CPU a seed
 * that nobody knows; what is chosen by it (a backend, a port to try) need not be hard to predict
 * for who sees the choices. */
INLINE u32 next_random(void)
{
#ifdef TRACE /* which writes nothing */
	return bpf_get_prandom_u32();
#else
	struct cpu *own = this_cpu();

	if (!own)
		return bpf_get_prandom_u32();
	own->random = own->random * 6364136223846793005ULL + 1442695040888963407ULL;
	return own->random >> 32;
#endif
}
