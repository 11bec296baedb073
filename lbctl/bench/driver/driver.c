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
/* One entry: the program under test. */
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

/* The yardstick for costs: a lookup of one hot 16-byte key. */
int lookup(struct __sk_buff *skb)
{
	struct yardstick key = {};
	u64 *found = yardsticks.lookup(&key);

	return found ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}
