/* Restores a packet's headers, then runs the program under test: BPF_PROG_TEST_RUN does not undo
 * what a program wrote between repetitions. Its cost with an empty program behind it is the floor.
 *
 * The headers of many flows are one header with another client written into it: read from a table
 * they would be waited for, and would push the program's own tables out of the caches, which a
 * floor that does not use those cannot show.
 */
#include <uapi/linux/bpf.h>
#include <linux/pkt_cls.h>

#define HEADER_SIZE 80
#define OFFSETS 63 /* all that are written to; the verifier wants a bound */
#define FIRST_ADDRESS 2
#define FIRST_PORT 20000
#define CLIENT_PORTS 32768

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
	u32 mask; /* number of clients - 1, a power of two - 1; 0: the header as it is */
	u32 length;
	u16 address_at; /* the last byte of the client's address */
	u16 port_at;
};

/* The header of all flows. The test writes. */
BPF_F_TABLE("array", u32, struct header, headers, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct control, control, 1, BPF_F_MMAPABLE);
/* One entry, found by `lookup`: what one hash lookup costs on this machine. */
BPF_F_TABLE("hash", struct yardstick, u64, yardsticks, 1, 0);
/* Filled by `insert`: as large as a flow table, with entries as large as a flow's. */
BPF_F_TABLE("hash", struct yardstick, struct filling, fillings, 1, 0);
/* The program under test, then `second` and `lookup` for `first`. */
BPF_F_TABLE("prog", u32, u32, callee, 1, 0);

/* packetcost.client() knows the same clients by number. */
static inline void become(struct header *h, struct control *c, u32 client)
{
	u32 address = c->address_at & OFFSETS, port = c->port_at & OFFSETS;
	u16 number = FIRST_PORT + client % CLIENT_PORTS;

	h->bytes[address] = FIRST_ADDRESS + client / CLIENT_PORTS;
	h->bytes[port] = number >> 8;
	h->bytes[port + 1] = number;
}

int restore(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct control *c = control.lookup(&zero);
	struct header *h = headers.lookup(&zero);

	if (!c || !h)
		return TC_ACT_SHOT;
	/* An odd stride visits every client, far from the one before. */
	c->next += 40503;
	if (c->mask)
		become(h, c, c->next & c->mask);
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

/* The yardstick for packets of a flow that is known: two tail calls, as from the entry to the
 * program that translates, and in the last one a lookup of one hot 16-byte key. */
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
