/* A tuple is claimed while the flow that has it moves to the other bank: at one of the claim's
 * looks at a bank, on the same CPU, so that it happens then and not by chance. Compiled by
 * test_flowtable_orders.py together with bpf_src, in which each look begins with meanwhile(). */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "cpu.h"
#include "cells.h"
#include "claim.h"
#include "moving.h"

struct attempt {
	struct listed_ring ring; /* the flow, and where it went */
	struct flow_key key;	 /* a tuple of it */
	ip_addr client;
	__u32 when;  /* the number of the look before which it moves */
	__u32 looks; /* how many there were */
	__u32 moved;
	__u32 claimed;
};

BPF_F_TABLE("array", u32, struct attempt, attempts, 1, BPF_F_MMAPABLE);

INLINE struct attempt *get_attempt(void)
{
	u32 zero = 0;

	return attempts.lookup(&zero);
}

INLINE void meanwhile(void)
{
	struct attempt *a = get_attempt();
	struct table *t = get_table();

	if (!a || !t)
		return;
	a->looks++;
	if (a->looks == a->when)
		a->moved = move_ring(t, &a->ring);
}

PROGRAM(claim_meanwhile)
{
	struct attempt *a = get_attempt();
	struct claim claim = {.kind = 0, .evicting = true, .place = CELL_FULL};

	if (!a)
		return 0;
	claim.key = a->key;
	claim.holder = a->client;
	claim.generation = new_generation();
	a->claimed = IS_PLACE(claim_cell(&claim));
	return 0;
}
