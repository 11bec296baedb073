/* Attached programs: two that only count and let others run, one that calls a tail. */
#include <linux/types.h>
#include <uapi/linux/bpf.h>
#include <linux/pkt_cls.h>
#include "consts.h"
#include "maps.h"

int entry_call(struct __sk_buff *skb)
{
	programs.call(skb, PROGRAM_TAIL4);
	return TC_ACT_UNSPEC;
}

int entry_count(struct __sk_buff *skb)
{
	count(REASON_SEEN);
	return TC_ACT_UNSPEC;
}

int entry_recount(struct __sk_buff *skb)
{
	count(REASON_SEEN);
	count(REASON_TAIL);
	return TC_ACT_UNSPEC;
}
