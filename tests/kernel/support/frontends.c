/* The data path's own look-ups in the table of frontends, with a judge in the kernel. Compiled by
 * test_datapath_frontends.py together with bpf_src. */
#include <uapi/linux/bpf.h>
#include <linux/pkt_cls.h>
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "frontend.h"

/* A key, and what it leads to whenever it leads anywhere. */
struct watched_key {
	struct frontend_key key;
	__u32 service;
	__u32 flags; /* or these without the lowest bit */
	__u32 stays; /* it always does */
	__u32 pad;
};

struct watch_counts {
	__u64 lookups;
	__u64 found;
	__u64 missing; /* though it stays */
	__u64 wrong;
};

BPF_F_TABLE("array", u32, struct watched_key, watched_keys, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct watch_counts, watch_counts, 1, BPF_F_MMAPABLE);

/* One look-up after the other of WATCHED keys. */
int watch(struct __sk_buff *skb)
{
	u32 zero = 0, index;
	struct watch_counts *n = watch_counts.lookup(&zero);
	struct watched_key *wanted;
	struct frontend_key key;
	struct frontend found;

	if (!n)
		return TC_ACT_SHOT;
	index = n->lookups++ % WATCHED;
	wanted = watched_keys.lookup(&index);
	if (!wanted)
		return TC_ACT_SHOT;
	key = wanted->key;
	if (!find_frontend(&key, &found)) {
		n->missing += wanted->stays;
		return TC_ACT_UNSPEC;
	}
	n->found++;
	n->wrong += found.service != wanted->service || (found.flags | 1) != (wanted->flags | 1);
	return TC_ACT_UNSPEC;
}

/* What is in the frame: address, port, protocol. Answers service << 16 | flags. */
int ask(struct __sk_buff *skb)
{
	struct frontend_key key;
	struct frontend found;
	ip_addr address;
	u16 port;
	u8 proto;

	bpf_skb_load_bytes(skb, 14, &address, sizeof(address));
	bpf_skb_load_bytes(skb, 30, &port, 2);
	bpf_skb_load_bytes(skb, 32, &proto, 1);
	make_frontend_key(&key, &address, port, proto);
	return find_frontend(&key, &found) ? found.service << 16 | found.flags : 0;
}

/* Of the address and port alone: address_flags() << 1 | is_endpoint(). */
int ask_address(struct __sk_buff *skb)
{
	ip_addr address;
	u16 port;

	bpf_skb_load_bytes(skb, 14, &address, sizeof(address));
	bpf_skb_load_bytes(skb, 30, &port, 2);
	return address_flags(&address) << 1 | is_endpoint(&address, port);
}
