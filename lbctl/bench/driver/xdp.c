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
