/* The largest segment that an end of a TCP connection says it takes: lowered where segments get an
 * outer header on their way (dsr.h), so that they fit. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/tcp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "hash.h"
#include "parse.h"
#include "subprogram.h"

#define TCP_OPTION_END 0
#define TCP_OPTION_NOTHING 1
#define TCP_OPTION_MSS 2
#define TCP_OPTIONS_MAX 40 /* bytes */
#define LEAST_MSS 48	   /* Linux sends no smaller segments (net.ipv4.tcp_min_snd_mss) */

/* TCP's options, zeros behind them. */
struct options_call {
	__u8 bytes[TCP_OPTIONS_MAX];
	__u32
	    at; /* which one is looked at; in the record, so that the verifier does not follow it */
	__u32 pad;
};

/* Where the value is in the options; 0: there is none. */
CALLED(mss, struct options_call, SUBPROGRAM_MSS);
SIZED(mss, struct options_call)
SUBPROGRAM(mss, struct options_call)
{
	if (!own)
		return 0;
	ROLLED
	for (u32 i = 0; i < TCP_OPTIONS_MAX; i++) {
		u32 at = LOAD(&own->at);
		u8 kind, length;

		if (at > TCP_OPTIONS_MAX - 4)
			return 0;
		kind = own->bytes[at];
		length = own->bytes[at + 1];
		if (kind == TCP_OPTION_MSS)
			return length == 4 ? at + 2 : 0;
		if (kind == TCP_OPTION_END || (kind != TCP_OPTION_NOTHING && length < 2))
			return 0;
		*(volatile u32 *)&own->at = at + (kind == TCP_OPTION_NOTHING ? 1 : length);
	}
	return 0;
}

/* Where it is, from the start of the frame; 0: nowhere. */
INLINE u32 find_mss(struct __sk_buff *skb, const struct packet *p)
{
	u32 options = (p->l4 & L4_MASK) + sizeof(struct tcphdr), found;
	struct options_call call = {};
	u64 length;
	u8 offset;

	if (bpf_skb_load_bytes(skb, options - sizeof(struct tcphdr) + 12, &offset, 1))
		return 0;
	length = (offset >> 4) * 4 - sizeof(struct tcphdr);
	asm volatile("" : "+r"(length));
	if (!length || length > TCP_OPTIONS_MAX ||
	    bpf_skb_load_bytes(skb, options, call.bytes, length))
		return 0;
	found = call_mss(&call);
	return found ? options + found : 0;
}

/* Of a SYN or its answer. The helper knows what kind of checksum the packet has. */
INLINE void lower_mss(struct __sk_buff *skb, const struct packet *p, u32 by)
{
	u32 at = find_mss(skb, p);
	bool odd = (at - p->l4) & 1;
	u16 had, has;

	if (!at || bpf_skb_load_bytes(skb, at, &had, 2) || ntohs(had) < by + LEAST_MSS)
		return;
	has = htons(ntohs(had) - by);
	/* At an odd offset the sum has it the other way round. */
	if (bpf_l4_csum_replace(skb, (p->l4 & L4_MASK) + 16, odd ? htons(had) : had,
				odd ? htons(has) : has, 2))
		return;
	bpf_skb_store_bytes(skb, at, &has, 2, 0);
}
