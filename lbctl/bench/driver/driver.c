/* Restores a packet's headers, then runs the program under test: BPF_PROG_TEST_RUN does not undo
 * what a program wrote between repetitions. Its cost with an empty program behind it is the floor.
 */
#include <uapi/linux/bpf.h>
#include <linux/pkt_cls.h>

#define HEADER_SIZE 80

struct header {
	u8 bytes[HEADER_SIZE];
};

struct yardstick {
	u64 words[2];
};

struct filling {
	u64 words[8];
};

struct control {
	u32 next;
	u32 mask; /* number of headers - 1, a power of two - 1 */
	u32 length;
	u32 pad;
};

/* The headers of the flows to run through, in turn. The test writes. */
BPF_F_TABLE("array", u32, struct header, headers, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct control, control, 1, BPF_F_MMAPABLE);
/* One entry, found by `lookup`: what one hash lookup costs on this machine. */
BPF_F_TABLE("hash", struct yardstick, u64, yardsticks, 1, 0);
/* Filled by `insert`: as large as a flow table, with entries as large as a flow's. */
BPF_F_TABLE("hash", struct yardstick, struct filling, fillings, 1, 0);
/* The program under test, then `second` and `lookup` for `first`. */
BPF_F_TABLE("prog", u32, u32, callee, 1, 0);

int restore(struct __sk_buff *skb)
{
	u32 zero = 0, index;
	struct control *c = control.lookup(&zero);
	struct header *h;

	if (!c)
		return TC_ACT_SHOT;
	/* An odd stride visits every header, far from the one before. */
	c->next += 40503;
	index = c->next & c->mask;
	h = headers.lookup(&index);
	if (!h)
		return TC_ACT_SHOT;
	if (c->length == 54)
		bpf_skb_store_bytes(skb, 0, h->bytes, 54, 0);
	else
		bpf_skb_store_bytes(skb, 0, h->bytes, 74, 0);
	callee.call(skb, 0);
	return TC_ACT_SHOT;
}

int empty(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

/* The yardstick for packets of a flow that is known: two tail calls, as from the entry to the program
 * that translates, and in the last one a lookup of one hot 16-byte key. */
int first(struct __sk_buff *skb)
{
	callee.call(skb, 1);
	return TC_ACT_SHOT;
}

int second(struct __sk_buff *skb)
{
	callee.call(skb, 2);
	return TC_ACT_SHOT;
}

/* The yardstick for new flows: two entries with keys that were never there, which the flow's two
 * directions are. */
int insert(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct control *c = control.lookup(&zero);
	struct yardstick key = {};
	struct filling value = {};

	if (!c)
		return TC_ACT_SHOT;
	key.words[0] = c->next;
	if (fillings.insert(&key, &value))
		return TC_ACT_SHOT;
	key.words[1] = 1;
	return fillings.insert(&key, &value) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* A lookup of one hot 16-byte key. */
int lookup(struct __sk_buff *skb)
{
	struct yardstick key = {};
	u64 *found = yardsticks.lookup(&key);

	return found ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}
