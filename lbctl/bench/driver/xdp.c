/* The same as driver.c for what a device's driver runs: restores headers, then calls the program
 * under test. */
#include <uapi/linux/bpf.h>

#define HEADER_SIZE 80

struct header {
	u8 bytes[HEADER_SIZE];
};

BPF_F_TABLE("array", u32, struct header, xdp_headers, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("prog", u32, u32, xdp_callee, 1, 0);

int xdp_restore(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	u32 zero = 0;
	struct header *h = xdp_headers.lookup(&zero);

	if (!h || data + HEADER_SIZE > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, h->bytes, HEADER_SIZE);
	xdp_callee.call((void *)ctx, 0);
	return XDP_ABORTED;
}

int xdp_empty(struct xdp_md *ctx)
{
	return XDP_PASS;
}

#define IPV4 0x0008 /* as it lies in the frame */
#define ETHERNET 14
#define TCP 6

/* What is behind a node's device: it counts the TCP packets that arrive there, and keeps the first
 * one's headers. The stack has cut the padding off. */
#define TCP4_SIZE 54
#define TCP6_SIZE 74

struct arrived {
	u64 frames;
	u8 first[TCP6_SIZE];
};

BPF_F_TABLE("array", u32, struct arrived, xdp_arrived, 2, BPF_F_MMAPABLE);

static __attribute__((always_inline)) inline int arrive(struct xdp_md *ctx, u32 end)
{
	void *data = (void *)(long)ctx->data, *behind = (void *)(long)ctx->data_end;
	struct arrived *a = xdp_arrived.lookup(&end);

	if (!a || data + TCP4_SIZE > behind)
		return XDP_DROP;
	/* Neighbours and groups are talked of besides. */
	if (*(u8 *)(data + (*(u16 *)(data + 12) == IPV4 ? 23 : 20)) != TCP)
		return XDP_DROP;
	if (!a->frames)
		__builtin_memcpy(a->first, data, TCP4_SIZE);
	if (!a->frames && data + TCP6_SIZE <= behind)
		__builtin_memcpy(a->first, data, TCP6_SIZE);
	a->frames++;
	return XDP_DROP;
}

int xdp_client(struct xdp_md *ctx)
{
	return arrive(ctx, 0);
}

int xdp_backend(struct xdp_md *ctx)
{
	return arrive(ctx, 1);
}

int xdp_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

/* The least that forwarding for a service can be: both ends of a TCP packet written as they were
 * told beforehand, its sums, its lifetime, and back where it came from. No table, no question. */
struct rewriting {
	u32 ends[8]; /* source and destination; IPv4: the first two */
	u16 ports[2];
	u8 macs[12];
};

BPF_F_TABLE("array", u32, struct rewriting, xdp_rewriting, 1, BPF_F_MMAPABLE);

static __attribute__((always_inline)) inline u16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __attribute__((always_inline)) inline int rewrite(void *data, const struct rewriting *to,
							 u32 words, u32 ends, u32 transport)
{
	u32 *own = data + ETHERNET + ends, *ports = data + transport;
	u16 *check = data + transport + 16;
	u64 sum = 0;

#pragma unroll
	for (int i = 0; i < words; i++) {
		sum += (u64)(u32)~own[i] + to->ends[i];
		own[i] = to->ends[i];
	}
	if (words == 2) {
		u16 *lifetime = data + ETHERNET + 8, *header = data + ETHERNET + 10;

		*header = ~fold((u64)(u16)~*header + fold(sum) + (u16)~*lifetime + (u16)(*lifetime - 1));
		*lifetime -= 1;
	} else {
		*(u8 *)(data + ETHERNET + 7) -= 1;
	}
	sum += (u64)(u32)~*ports + *(u32 *)to->ports;
	*check = ~fold((u64)(u16)~*check + fold(sum));
	*ports = *(u32 *)to->ports;
	__builtin_memcpy(data, to->macs, 12);
	return XDP_TX;
}

int xdp_rewrite(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	u32 zero = 0;
	struct rewriting *to = xdp_rewriting.lookup(&zero);

	if (!to || data + ETHERNET + 60 > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (*(u16 *)(data + 12) == IPV4)
		return rewrite(data, to, 2, 12, ETHERNET + 20);
	return rewrite(data, to, 8, 8, ETHERNET + 40);
}
