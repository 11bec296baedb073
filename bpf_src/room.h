/* What to do when there is no room for a new flow: another one makes it, if one may. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "parse.h"
#include "handoff.h"
#include "cells.h"
#include "account.h"
#include "evict.h"
#include "decided.h"
#include "tailcall.h"

/* The program; the hash of the tuple comes with the packet. */
INLINE int make_room(struct __sk_buff *skb)
{
	u64 hash = handoff(skb)->hash_low | (u64)handoff(skb)->hash_high << 32;
	struct table *t = get_table();
	struct holder client;
	struct packet p;

	if (!t || !restore_packet(skb, &p))
		return DROP;
	__builtin_memcpy(&client, &p.src, sizeof(client));
	/* Nobody else is at the flow, so this waits for nobody. */
	if (evict(t, hash, greed_of(&client, t)))
		return hand_to(skb, p.origin == ORIGIN_NODE ? FAMILY_PROGRAM(NODE_OPEN)
							    : FAMILY_PROGRAM(CONNECT));
	return drop(skb, REASON_FLOWS_FULL);
}
