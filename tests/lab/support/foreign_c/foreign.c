/* A neighbour's program: counts the IPv4 packets in which it sees the address A or B. */
#include <linux/types.h>
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

BPF_F_TABLE("percpu_array", u32, u64, seen, 1, 0);

static __always_inline void add(u32 index)
{
	u64 *counter = seen.lookup(&index);

	if (counter)
		*counter += 1;
}

int look(struct __sk_buff *skb)
{
	u32 addresses[2];

	if (skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + 12, addresses, sizeof(addresses)))
		return TC_ACT_UNSPEC;
	if (addresses[0] == bpf_htonl(A) || addresses[1] == bpf_htonl(A))
		add(0);
	if (addresses[0] == bpf_htonl(B) || addresses[1] == bpf_htonl(B))
		add(1);
	return TC_ACT_UNSPEC;
}
