/* What time it is for programs. */
#include <uapi/linux/bpf.h>
#include <linux/types.h>

BPF_F_TABLE("array", u32, u64, jiffies, 1, BPF_F_MMAPABLE);

int read_jiffies(struct __sk_buff *skb)
{
	u32 zero = 0;
	u64 *out = jiffies.lookup(&zero);

	if (out)
		*out = bpf_jiffies64();
	return 0;
}
