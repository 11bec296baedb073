/* Flows that are opened by the million: every second one stays and is used, the others are ended at
 * once. Compiled by growth tests together with bpf_src. */
#include <uapi/linux/bpf.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "hash.h"
#include "beat.h"
#include "cpu.h"
#include "cells.h"
#include "account.h"
#include "claim.h"
#include "ending.h"

struct thread {
	__u64 rng;
	__u64 wanted; /* flows that are to stay, of this CPU */
	__u64 kept;
	__u64 ended;
	__u64 used;
	__u64 lost; /* one that stays was not found */
	__u64 full;
	__u64 taken;
	__u64 wrong;
	__u64 duplicates;
	__u64 apart;
	__u64 pad[5];
};

BPF_F_TABLE("array", u32, struct thread, threads, 1, BPF_F_MMAPABLE);

INLINE void set_ip(ip_addr *ip, u32 value)
{
#if FAMILY == 6
	ip->w[0] = 0xfd;
	ip->w[1] = 0;
	ip->w[2] = 0;
	ip->w[3] = value;
#else
	*ip = value;
#endif
}

/* Flow `number` of this CPU; `brief` ones have another service. */
INLINE void make_flow(struct flow_key *key, u32 cpu, u32 number, bool brief, bool reply)
{
	ip_addr client, other;

	set_ip(&client, 0x0a000000 + (cpu << 16) + (number >> 14));
	set_ip(&other, reply ? 0x0af40001 : 0x0a600001);
	__builtin_memset(key, 0, sizeof(*key));
	key->src = reply ? other : client;
	key->dst = reply ? client : other;
	key->sport = reply ? 8080 + brief : 1024 + (number & 0x3fff);
	key->dport = reply ? 1024 + (number & 0x3fff) : 80 + brief;
	key->proto = 6;
}

INLINE bool open_flow(struct thread *t, u32 cpu, u32 number, bool brief)
{
	u32 generation = new_generation(), forward, reply, beat = now();
	struct flow_key key;
	ip_addr client, addr;

	make_flow(&key, cpu, number, brief, true);
	client = key.dst;
	reply = reserve_free_cell(&key, &client, CELL_REPLY, generation);
	if (!IS_PLACE(reply)) {
		t->full += reply == CELL_FULL;
		t->taken += reply == CELL_TAKEN;
		return false;
	}
	make_flow(&key, cpu, number, brief, false);
	forward = reserve_free_cell(&key, &client, 0, generation);
	if (!IS_PLACE(forward)) {
		t->full += forward == CELL_FULL;
		t->taken += forward == CELL_TAKEN;
		abandon_cell(reply);
		return false;
	}
	set_ip(&addr, 0x0af40001);
	fill_cell(forward, &addr, 8080, number, 5, 7, reply, beat);
	set_ip(&addr, 0x0a600001);
	fill_cell(reply, &addr, 80, number, 5, 7, forward, beat);
	publish_cell(reply, STATE_ESTABLISHED);
	publish_cell(forward, STATE_ESTABLISHED);
	count_opened(5, 7);
	return true;
}

INLINE void use_flow(struct thread *t, u32 cpu, u32 number, bool reply)
{
	struct flow_key key;
	struct found found;
	u16 client_port;

	make_flow(&key, cpu, number, false, reply);
	if (!find_cell(&key, &found)) {
		t->lost++;
		return;
	}
	client_port = found.cell->client_port;
	if (!unchanged(&found) || client_port != (u16)number) {
		t->wrong++;
		return;
	}
	found.state->packets++;
	t->used++;
}

PROGRAM(churn)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct thread *t = threads.lookup(&cpu);
	struct flow_key key;
	struct found found;
	u32 kept;

	if (!t)
		return 0;
	t->rng = t->rng * 6364136223846793005ULL + 1442695040888963407ULL;
	kept = t->kept;
	if (kept < t->wanted && open_flow(t, cpu, kept, false))
		t->kept = ++kept;
	if (kept) {
		u32 any = (t->rng >> 32) * kept >> 32;

		use_flow(t, cpu, any, t->rng >> 31 & 1);
	}
	if (open_flow(t, cpu, kept, true)) {
		make_flow(&key, cpu, kept, true, t->rng >> 30 & 1);
		if (find_cell(&key, &found) && end_flow(&found, END_CLOSED))
			t->ended++;
		else
			t->lost++;
	}
	return 0;
}
