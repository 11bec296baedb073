/* Plain packets of flows that are known: TCP in its middle, and datagrams. No options, fragments or
 * extension headers, no tag, and nothing that could change the flow's state. One program and no
 * call of a helper, which would cost as much as all of this. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "config.h"
#include "parse.h"
#include "cells.h"
#include "beat.h"
#include "flow.h"
#include "tailcall.h"
#include "established.h"
#include "select.h"
#include "owner.h"

/* The network header; the caller checked the bounds. 0, or the length of what it carries. */
INLINE u32 parse_plain_network(struct __sk_buff *skb, struct packet *p, void *network)
{
	u32 length;
#if FAMILY == 4
	struct iphdr *ip = network;

	if (*(u8 *)ip != 0x45 || ip->frag_off & htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return 0;
	length = ntohs(ip->tot_len);
	if (length <= IP_HEADER_LENGTH || length + p->l3 > skb->len)
		return 0;
	p->src = ip->saddr;
	p->dst = ip->daddr;
	p->proto = ip->protocol;
	return length - IP_HEADER_LENGTH;
#else
	struct ipv6hdr *ip = network;

	length = ntohs(ip->payload_len);
	if (ip->version != 6 || length + IP_HEADER_LENGTH + p->l3 > skb->len)
		return 0;
	__builtin_memcpy(&p->src, &ip->saddr, 16);
	__builtin_memcpy(&p->dst, &ip->daddr, 16);
	p->proto = ip->nexthdr;
	return length;
#endif
}

/* Is it a plain packet? What contradicts itself is not (parse.h judges that). */
INLINE bool parse_plain(struct __sk_buff *skb, struct packet *p, u32 from)
{
	void *data = packet_start(skb), *end = packet_end(skb), *transport;

	__builtin_memset(p, 0, sizeof(*p));
	p->origin = from & 3;
	p->l3 = from & BARE_LINK ? 0 : ETH_HLEN;
	transport = data + p->l3 + IP_HEADER_LENGTH;
	if (transport + sizeof(struct udphdr) > end)
		return false;
	if (!(from & BARE_LINK) && ((struct ethhdr *)data)->h_proto != htons(ETHERTYPE))
		return false;
	p->l4_length = parse_plain_network(skb, p, data + p->l3);
	p->l4 = p->l3 + IP_HEADER_LENGTH;
	return parse_plain_transport(p, transport, end);
}

/* Is there nothing to think about? A datagram's backend must serve, and the flow be in use; TCP
 * must be in its middle. */
INLINE bool is_plain(const struct packet *p, const struct found *f, u32 beat)
{
	const struct config *c;
	u32 kind = kind_of(f);

	if (kind & CELL_SIDE)
		return true;
	if (p->proto == IPPROTO_TCP)
		return state_of(f) == STATE_ESTABLISHED &&
		       !(p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST));
	if (kind & (CELL_REPLY | CELL_DIRECT | CELL_NOTE))
		return true;
	if (!still_serving(f->state->backend, f->state->service))
		return false;
	if (f->state->seen == beat)
		return true;
	c = get_config();
	return c && !is_older(beat, f->state->seen, c->datagram_timeout) && !has_new_owner(p, f);
}

/* The verdict, or NOT_PLAIN if the packet is for the programs that can do all. `ends` is what was
 * written. */
#define NOT_PLAIN (-1000)

/* `coming_in`, a constant: what goes to an endpoint whole is met nowhere else. */
INLINE int plain(struct __sk_buff *skb, struct packet *p, const struct found *f, struct ends *ends,
		 bool coming_in)
{
	u32 beat = now();

	if (!is_plain(p, f, beat) || !read_ends(f, ends))
		return NOT_PLAIN;
	follow(p, f, skb->len - p->l3, beat);
	if (coming_in && goes_whole(kind_of(f)))
		return hand_to_encapsulate(skb, p, f);
	return translate_by(skb, p, kind_of(f), ends);
}
