/* Does the node itself answer at an address that is also a ClusterIP? A node-local DNS cache binds
 * its sockets there; the ports that none is bound to are the service's. Asked of new connections to
 * frontends with FRONTEND_SHARED, on the wire and at sockets. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "types.h"

INLINE struct bpf_sock *find_socket(void *ctx, struct bpf_sock_tuple *tuple, u32 size, u8 proto)
{
	if (proto == IPPROTO_TCP)
		return bpf_sk_lookup_tcp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (proto == IPPROTO_UDP)
		return bpf_sk_lookup_udp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	return 0;
}

INLINE struct bpf_sock *find_socket4(void *ctx, const struct addr *client, u16 client_port,
				     const struct addr *addr, u16 port, u8 proto)
{
	struct bpf_sock_tuple tuple = {
	    .ipv4 = {
		.saddr = client->w[3], .daddr = addr->w[3], .sport = client_port, .dport = port}};

	return find_socket(ctx, &tuple, sizeof(tuple.ipv4), proto);
}

INLINE struct bpf_sock *find_socket6(void *ctx, const struct addr *client, u16 client_port,
				     const struct addr *addr, u16 port, u8 proto)
{
	struct bpf_sock_tuple tuple = {};

	__builtin_memcpy(tuple.ipv6.saddr, client, sizeof(*client));
	__builtin_memcpy(tuple.ipv6.daddr, addr, sizeof(*addr));
	tuple.ipv6.sport = client_port;
	tuple.ipv6.dport = port;
	return find_socket(ctx, &tuple, sizeof(tuple.ipv6), proto);
}

INLINE bool is_bound4(void *ctx, const struct addr *client, u16 client_port,
		      const struct addr *addr, u16 port, u8 proto)
{
	struct bpf_sock *sk = find_socket4(ctx, client, client_port, addr, port, proto);
	bool exactly;

	if (!sk)
		return false;
	exactly = sk->src_ip4 == addr->w[3];
	bpf_sk_release(sk);
	return exactly;
}

INLINE bool is_bound6(void *ctx, const struct addr *client, u16 client_port,
		      const struct addr *addr, u16 port, u8 proto)
{
	struct bpf_sock *sk = find_socket6(ctx, client, client_port, addr, port, proto);
	bool exactly;

	if (!sk)
		return false;
	exactly = sk->src_ip6[0] == addr->w[0] && sk->src_ip6[1] == addr->w[1] &&
		  sk->src_ip6[2] == addr->w[2] && sk->src_ip6[3] == addr->w[3];
	bpf_sk_release(sk);
	return exactly;
}

INLINE bool speaks_of_ipv4(const struct addr *addr)
{
	return !addr->w[0] && !addr->w[1] && addr->w[2] == htonl(0xffff);
}

/* Is a socket of the context's network namespace connected to this client, by UDP? (Whoever waits
 * for anybody there has no port of the other side.) */
INLINE bool is_connected(void *ctx, const struct addr *client, u16 client_port,
			 const struct addr *addr, u16 port)
{
	struct bpf_sock *sk = speaks_of_ipv4(addr)
				  ? find_socket4(ctx, client, client_port, addr, port, IPPROTO_UDP)
				  : find_socket6(ctx, client, client_port, addr, port, IPPROTO_UDP);
	bool connected;

	if (!sk)
		return false;
	connected = sk->dst_port == client_port;
	bpf_sk_release(sk);
	return connected;
}

/* Is a socket of the context's network namespace bound to exactly this address and port? One that
 * is bound to all addresses is not meant: it was there for the node's others. Without a client
 * (zero) only those are found that wait for anybody: what is asked of a SYN, whose tuple may have
 * another connection's rest. The kernel looks up no SCTP sockets for us. */
INLINE bool is_bound(void *ctx, const struct addr *client, u16 client_port, const struct addr *addr,
		     u16 port, u8 proto)
{
	if (speaks_of_ipv4(addr))
		return is_bound4(ctx, client, client_port, addr, port, proto);
	return is_bound6(ctx, client, client_port, addr, port, proto);
}
