/* The maps. One entry each here: ebpf/maps/declared.py names each one, its kind and its size. */
#pragma once

#include <uapi/linux/bpf.h>
#include "types.h"

/* Address, port and protocol to service; addresses and endpoints by themselves. One table, see
 * frontend.h. Agent writes through mmap, programs read; nothing evicts. */
BPF_F_TABLE("array", u32, struct frontend_cell, frontends, 1, BPF_F_MMAPABLE);

/* By service id. Agent writes through mmap, programs read, and add to `turn`. */
BPF_F_TABLE("array", u32, struct service, services, 1, BPF_F_MMAPABLE);

/* Regions of backend ids. Agent writes through mmap, programs read; freed regions rest. */
BPF_F_TABLE("array", u32, struct slot, slots, 1, BPF_F_MMAPABLE);

/* By backend id. Agent writes through mmap, programs read; freed ids rest until no flow has them.
 */
BPF_F_TABLE("array", u32, struct backend, backends, 1, BPF_F_MMAPABLE);

/* Tables from hashes to backend ids, of services that choose by hash. Agent writes through mmap,
 * programs read; freed regions rest. */
BPF_F_TABLE("array", u32, struct hash_pair, hash_tables, 1, BPF_F_MMAPABLE);

#if FAMILY == 6
/* Ports of the first fragment for those that follow. */
BPF_F_TABLE("lru_hash", struct fragment_key, struct fragment, fragments6, 1, 0);
#define FRAGMENTS fragments6
#else
BPF_F_TABLE("lru_hash", struct fragment_key, struct fragment, fragments4, 1, 0);
#define FRAGMENTS fragments4
#endif

/* Fragments that wait for the first of their datagram, and who has which slot. Programs alone; the
 * oldest of a bucket goes. */
BPF_F_TABLE("array", u32, struct stash_slot, stash, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct stash_bucket, stash_buckets, 1, BPF_F_MMAPABLE);

/* The table of flows, in two banks: a control word per bucket of eight cells, and the cells (IPv6:
 * and the half of them that changes). Programs alone write, anybody reads. */
#if FAMILY == 6
BPF_F_TABLE("array", u32, u64, control6a, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cell, cells6a, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cell_state, states6a, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, control6b, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cell, cells6b, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cell_state, states6b, 1, BPF_F_MMAPABLE);
/* One entry: how large, and where new flows go. Agent writes; nobody else. */
BPF_F_TABLE("array", u32, struct table, table6a, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct table, table6b, 1, BPF_F_MMAPABLE);
/* Cells by who holds them, by a hash of the address. Programs add. */
BPF_F_TABLE("array", u32, u64, held6, 1, BPF_F_MMAPABLE);
#define TABLE table6a
#define HELD held6
#define CONTROL control6a
#define OTHER_CONTROL control6b
#define CELLS cells6a
#define OTHER_CELLS cells6b
#define STATES states6a
#define OTHER_STATES states6b
#else
BPF_F_TABLE("array", u32, u64, control4a, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cell, cells4a, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, control4b, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cell, cells4b, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct table, table4a, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct table, table4b, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, held4, 1, BPF_F_MMAPABLE);
#define TABLE table4a
#define HELD held4
#define CONTROL control4a
#define OTHER_CONTROL control4b
#define CELLS cells4a
#define OTHER_CELLS cells4b
#endif

/* Live flows by backend id. Programs add, the agent reads: an id with flows is not given away. */
BPF_F_TABLE("array", u32, u64, backend_live, 1, BPF_F_MMAPABLE);

/* struct flow_event, one after the other. Programs write while config says that somebody reads. */
BPF_RINGBUF_OUTPUT(flow_events, 1);

/* By CPU. Programs alone write, once Python has seeded it. */
BPF_F_TABLE("array", u32, struct cpu, cpus, 1, BPF_F_MMAPABLE);

/* By enum reason. Programs add, anyone sums. */
BPF_F_TABLE("percpu_array", u32, u64, counters, 1, 0);

/* By service id. Programs add, the agent's sweep adds for flows it ends. */
BPF_F_TABLE("array", u32, struct service_counters, service_counters, 1, BPF_F_MMAPABLE);

/* One entry. Agent writes through mmap. */
BPF_F_TABLE("array", u32, struct config, config, 1, BPF_F_MMAPABLE);

/* Session affinity. Programs write; the least recently used goes. */
BPF_F_TABLE("lru_hash", struct affinity_key, struct affinity, affinity, 1, 0);

/* loadBalancerSourceRanges of the services that have any. Agent writes; nothing evicts. */
BPF_F_TABLE("lpm_trie", struct source_range, u32, source_ranges, 1, BPF_F_NO_PREALLOC);

/* By interface index: the node's addresses there, where they differ from its primary ones. Agent
 * writes; nothing evicts. */
BPF_F_TABLE("hash", u32, struct device, devices, 1, 0);

/* By interface index: uplinks whose drivers run our programs, or may transmit for those. Agent
 * writes; nothing evicts. */
BPF_F_TABLE("hash", u32, struct xdp_device, xdp_devices, 1, 0);

/* By interface index: may packets pass the stack by there (enum fast_flag)? Agent writes. */
BPF_F_TABLE("hash", u32, u32, fast_devices, 1, 0);

/* By a hash of the address and its role: hops, of which the next one to come takes the place. Of
 * each CPU its own, so nobody else reads or writes them. Programs alone. */
#if FAMILY == 6
BPF_F_TABLE("percpu_array", u32, struct hop, hops6, 1, 0);
#define HOPS hops6
#else
BPF_F_TABLE("percpu_array", u32, struct hop, hops4, 1, 0);
#define HOPS hops4
#endif

/* The same for what drivers send on. */
#if FAMILY == 6
BPF_F_TABLE("percpu_array", u32, struct xdp_hop, xdp_hops6, 1, 0);
#define XDP_HOPS xdp_hops6
#else
BPF_F_TABLE("percpu_array", u32, struct xdp_hop, xdp_hops4, 1, 0);
#define XDP_HOPS xdp_hops4
#endif

/* By socket and service address: the backend of an unconnected UDP socket. Programs write; the
 * least recently used goes, and its socket chooses anew. */
BPF_F_TABLE("lru_hash", struct socket_key, u32, socket_choices, 1, 0);

/* By socket and backend address: what the socket's owner called. Programs write and delete when the
 * socket closes; the least recently used goes, and its socket sees the backend's address. */
BPF_F_TABLE("lru_hash", struct socket_key, struct socket_peer, socket_peers, 1, 0);

/* Service id to its name, for people. Agent writes; programs never look. */
BPF_F_TABLE("hash", struct name_key, struct name, names, 1, 0);

/* The rest of each family's programs, by enum program; one array per program generation. */
BPF_F_TABLE("prog", u32, u32, programs, 1, 0);

/* Those that drivers run, by enum xdp_program. */
BPF_F_TABLE("prog", u32, u32, xdp_programs, 1, 0);
