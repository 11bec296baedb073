/* One map of every kind, under names the layer knows. WIDE adds a field, as a new version would. */
#pragma once

struct flow_key {
	u32 src;
	u16 port;
	u16 pad;
};

struct flow {
#ifdef WIDE
	u32 added;
#endif
	u32 addr;
	u64 bytes;
	u8 mac[6];
	u16 pad;
};

struct service {
	u64 cluster;
	u64 local;
	u32 flags;
};

struct prefix {
	u32 length;
	u32 net;
};

BPF_F_TABLE("hash", struct flow_key, struct flow, flows4, 1, 0);
BPF_F_TABLE("lru_hash", struct flow_key, struct flow, flows4_lru, 1, 0);
BPF_F_TABLE("array", u32, struct service, services, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("percpu_array", u32, u64, counters, 1, 0);
BPF_F_TABLE("lpm_trie", struct prefix, u32, source_ranges, 1, BPF_F_NO_PREALLOC);
BPF_F_TABLE("prog", u32, u32, programs, 1, 0);

static __always_inline void count(u32 reason)
{
	u64 *counter = counters.lookup(&reason);

	if (counter)
		*counter += 1;
}
