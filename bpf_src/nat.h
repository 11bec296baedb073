/* Rewriting one address and the ports of a packet, with every checksum that covers them.
 *
 * A call of a helper costs more here than everything else together: none is made where the kernel
 * tells what kind of checksum the packet has. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "checksum.h"

INLINE u32 join_ports(u16 sport, u16 dport)
{
	u16 ports[2] = {sport, dport};
	u32 word;

	__builtin_memcpy(&word, ports, 4);
	return word;
}

/* The address and the header's own checksum (IPv4). The caller checked the bounds. */
INLINE void store_address(void *header, bool source, const ip_addr *to, u16 difference)
{
#if FAMILY == 4
	struct iphdr *ip = header;

	ip->check = adjusted(ip->check, difference);
	if (source)
		ip->saddr = *to;
	else
		ip->daddr = *to;
#else
	struct ipv6hdr *ip = header;

	__builtin_memcpy(source ? &ip->saddr : &ip->daddr, to, 16);
#endif
}

/* Makes `to` the packet's source or destination and sets both ports. A later fragment has neither
 * ports nor checksum. */
INLINE int rewrite(struct __sk_buff *skb, struct packet *p, bool source, const ip_addr *to,
		   u16 sport, u16 dport)
{
	u32 old = join_ports(p->sport, p->dport), ports = join_ports(sport, dport);
	u16 difference = address_difference(source ? &p->src : &p->dst, to);
	bool whole = p->fragment != FRAGMENT_LATER;
	void *network, *transport;

	if (whole && checksum_offset(p)) {
		u16 of_ports = old == ports ? 0 : fold((u64)(u32)~old + ports);

		if (adjust_checksum(skb, p, difference, of_ports))
			goto failed;
	} else if (FAMILY == 6) {
		bpf_csum_update(skb, difference);
	}
	network = packet_start(skb) + (p->l3 & L3_MASK);
	if (network + IP_HEADER_LENGTH > packet_end(skb))
		goto failed;
	store_address(network, source, to, difference);
	if (!whole || old == ports)
		return PASS;
	if (p->proto == IPPROTO_SCTP) {
		handoff(skb)->ports = ports;
		programs.call(skb, FAMILY_PROGRAM(SCTP));
		count(skb, REASON_INTERNAL);
		return DROP;
	}
	transport = packet_start(skb) + (p->l4 & L4_MASK);
	if (transport + 4 > packet_end(skb))
		goto failed;
	*(u32 *)transport = ports;
	return PASS;
failed:
	count(skb, REASON_REWRITE_FAILED);
	return DROP;
}

/* What a flow entry says: a reply entry writes the source, others the destination. */
INLINE int translate(struct __sk_buff *skb, struct packet *p, bool reply, const ip_addr *addr,
		     u16 port, u16 client_port)
{
	return reply ? rewrite(skb, p, true, addr, port, client_port)
		     : rewrite(skb, p, false, addr, client_port, port);
}
