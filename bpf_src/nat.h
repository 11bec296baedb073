/* Rewriting one address and the ports of a packet, with every checksum that covers them. */
#pragma once

#define NO_CHECKSUM 0

/* Where the transport checksum lies; SCTP's does not cover addresses, and its ports never change. */
INLINE u32 checksum_offset(const struct packet *p)
{
	if (p->proto == IPPROTO_TCP)
		return p->l4 + 16;
	if (p->proto == IPPROTO_UDP)
		return p->l4 + 6;
	return NO_CHECKSUM;
}

INLINE u32 join_ports(u16 sport, u16 dport)
{
	u16 ports[2] = {sport, dport};
	u32 word;

	__builtin_memcpy(&word, ports, 4);
	return word;
}

/* The header's own checksum (IPv4), the address, and the transport checksum over it (0: none). For
 * IPv6 a receiver's checksum over the whole packet (CHECKSUM_COMPLETE) is kept right by the store,
 * which kernels of every age do the same way; see docs/datapath.md. */
INLINE int rewrite_address(struct __sk_buff *skb, u32 l3, bool source, u32 checksum, u64 flags,
			   ip_addr *from, ip_addr *to)
{
	int error = 0;
#if FAMILY == 4
	u32 field = l3 + (source ? 12 : 16);

	if (checksum)
		error = bpf_l4_csum_replace(skb, checksum, *from, *to,
					    BPF_F_PSEUDO_HDR | flags | sizeof(*to));
	error |= bpf_l3_csum_replace(skb, l3 + 10, *from, *to, sizeof(*to));
	error |= bpf_skb_store_bytes(skb, field, to, sizeof(*to), 0);
#else
	u32 field = l3 + (source ? 8 : 24);

	if (checksum) {
		s64 difference = bpf_csum_diff((void *)from, sizeof(*from), (void *)to, sizeof(*to), 0);

		error = bpf_l4_csum_replace(skb, checksum, 0, difference, BPF_F_PSEUDO_HDR | flags);
	}
	error |= bpf_skb_store_bytes(skb, field, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM);
#endif
	return error;
}

/* Makes `to` the packet's source or destination and sets both ports. A later fragment has neither
 * ports nor checksum. */
INLINE int rewrite(struct __sk_buff *skb, struct packet *p, bool source, ip_addr *to, u16 sport,
		   u16 dport)
{
	u64 flags = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u32 checksum = p->fragment == FRAGMENT_LATER ? NO_CHECKSUM : checksum_offset(p);
	ip_addr from = source ? p->src : p->dst;
	int error = rewrite_address(skb, p->l3, source, checksum, flags, &from, to);

	if (p->fragment != FRAGMENT_LATER && (sport != p->sport || dport != p->dport)) {
		u32 old = join_ports(p->sport, p->dport), new = join_ports(sport, dport);

		if (checksum)
			error |= bpf_l4_csum_replace(skb, checksum, old, new, flags | sizeof(new));
		error |= bpf_skb_store_bytes(skb, p->l4, &new, sizeof(new), 0);
	}
	if (!error)
		return 0;
	count(skb, REASON_REWRITE_FAILED);
	return error;
}

INLINE int translate(struct __sk_buff *skb, struct packet *p, bool reply, ip_addr *addr, u16 port,
		     u16 client_port)
{
	int error = reply ? rewrite(skb, p, true, addr, port, client_port)
			  : rewrite(skb, p, false, addr, client_port, port);

	return error ? DROP : PASS;
}
