/* The outer header of DSR: what both ends know of it (dsr.h puts it on, arrive.h takes it off). */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "parse.h"

#if FAMILY == 6
#define PROTO_IN_IP IPPROTO_IPV6
#define NODE_PORT_ADDRESS(c) (&(c)->node_port6)
#else
#define PROTO_IN_IP IPPROTO_IPIP
#define NODE_PORT_ADDRESS(c) (&(c)->node_port4)
#endif

struct outer {
#if FAMILY == 6
	struct ipv6hdr ip;
#else
	struct iphdr ip;
#endif
	struct udphdr udp; /* not of IPIP */
};

#define OUTER_UDP_LENGTH (IP_HEADER_LENGTH + sizeof(struct udphdr))
#define ECN_MASK 3
#define ECN_CONGESTED 3

/* As this node makes them. */
INLINE u32 outer_length(const struct config *c)
{
	return c->flags & CONFIG_DSR_IPIP ? IP_HEADER_LENGTH : OUTER_UDP_LENGTH;
}

INLINE bool is_outer_port(const struct config *c, u8 proto, u16 dport)
{
	return proto == IPPROTO_UDP && c->dsr_port && dport == c->dsr_port;
}

/* May there be a packet in it that another node has sent on? Both kinds are taken, so that nodes
 * can change theirs one by one. */
INLINE bool may_be_outer(const struct config *c, const struct packet *p)
{
	if (p->origin != ORIGIN_NET || !c->dsr_port)
		return false;
	return p->proto == PROTO_IN_IP || is_outer_port(c, p->proto, p->dport);
}

/* Has a router said so in the IP header? */
INLINE bool is_congested(struct __sk_buff *skb, const struct packet *p)
{
	u16 word; /* with the traffic class */

	if (bpf_skb_load_bytes(skb, p->l3, &word, sizeof(word)))
		return false;
	return (ntohs(word) >> (FAMILY == 6 ? 4 : 0) & ECN_MASK) == ECN_CONGESTED;
}
