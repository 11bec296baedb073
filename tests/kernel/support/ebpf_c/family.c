/* One tail-called program per family. */
#include <linux/types.h>
#include <uapi/linux/bpf.h>
#include "consts.h"
#include "maps.h"

#define NAMED_(name, family) name##family
#define NAMED(name, family) NAMED_(name, family)

int NAMED(tail, FAMILY)(struct __sk_buff *skb)
{
	u32 index = 0;
	struct flow_key key = {.src = skb->mark};
	struct service *service = services.lookup(&index);
	struct flow *flow = flows4.lookup(&key);

	count(REASON_TAIL);
	if (flow)
		__sync_fetch_and_add(&flow->bytes, skb->len);
	return service ? service->flags : -2;
}
