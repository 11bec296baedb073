/* A call on a socket, whatever the hook's family: who calls whom, and whether we serve it.
 *
 * Addresses are 16 bytes throughout (FAMILY is 6 here): IPv4 sockets, IPv6 sockets, and IPv6
 * sockets that speak IPv4 meet in the same records. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "beat.h"

#define AF_INET 2
#define SOL_SOCKET 1
#define SO_REUSEADDR 2
#define SO_REUSEPORT 15
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#define ALLOW 1
#define DENY 0
#define NOT_OURS 2 /* the call goes on as it is */

struct call {
	struct addr addr;
	__u16 port;
	__u8 proto;
	__u8 sends;   /* a datagram; else the socket connects */
	__u32 of_pod; /* not the node's own */
	__u64 cookie; /* of the socket, see mptcp_owner() */
	__u64 netns;
	__u32 reason;  /* what was decided, where that is to be told; else 0 */
	__u32 service; /* ... and whose it is */
};

/* An MPTCP socket calls by a TCP socket of the kernel's own, which its owner never has in hand:
 * asked for its peer is the other one. What both can tell is that one's address, which is taken for
 * a cookie: no cookie is as large. 0 for any other socket, and on kernels that know no MPTCP
 * (ebpf/kernel/optional.py). */
INLINE u64 mptcp_owner(struct bpf_sock_addr *ctx)
{
	return (u64)bpf_skc_to_mptcp_sock(ctx->sk);
}

INLINE void read_call4(struct call *call, struct bpf_sock_addr *ctx)
{
	call->addr.w[0] = 0;
	call->addr.w[1] = 0;
	call->addr.w[2] = htonl(0xffff);
	call->addr.w[3] = ctx->user_ip4;
	call->port = ctx->user_port;
	call->proto = ctx->protocol;
	call->cookie = socket_cookie(ctx);
}

INLINE void read_call6(struct call *call, struct bpf_sock_addr *ctx)
{
	call->addr.w[0] = ctx->user_ip6[0];
	call->addr.w[1] = ctx->user_ip6[1];
	call->addr.w[2] = ctx->user_ip6[2];
	call->addr.w[3] = ctx->user_ip6[3];
	call->port = ctx->user_port;
	call->proto = ctx->protocol;
	call->cookie = socket_cookie(ctx);
}

INLINE void write_call4(struct bpf_sock_addr *ctx, const struct addr *addr, u16 port)
{
	ctx->user_ip4 = addr->w[3];
	ctx->user_port = port;
}

INLINE void write_call6(struct bpf_sock_addr *ctx, const struct addr *addr, u16 port)
{
	ctx->user_ip6[0] = addr->w[0];
	ctx->user_ip6[1] = addr->w[1];
	ctx->user_ip6[2] = addr->w[2];
	ctx->user_ip6[3] = addr->w[3];
	ctx->user_port = port;
}

INLINE bool speaks_ipv4(const struct call *call)
{
	return call->addr.w[2] == htonl(0xffff) && !(call->addr.w[0] | call->addr.w[1]);
}

/* Nobody attaches programs to the interfaces of new pods while there is no agent. */
INLINE bool agent_lives(const struct config *c)
{
	u32 beat = c->agent_beat;

	return beat && !is_older(now(), beat, c->agent_timeout);
}

/* Is this socket one we serve? The node's own always, others when asked to, and while nobody else
 * would serve them. */
INLINE bool is_served(struct bpf_sock_addr *ctx, struct call *call, const struct config *c)
{
	if (call->proto != IPPROTO_TCP && call->proto != IPPROTO_UDP)
		return false;
	if (!(c->flags & (CONFIG_SOCKET_HOST | CONFIG_SOCKET_ALL)))
		return false;
	call->netns = netns_cookie(ctx);
	call->of_pod = call->netns != c->host_netns;
	return !call->of_pod || c->flags & CONFIG_SOCKET_ALL || !agent_lives(c);
}

/* Does a datagram go where the socket is connected to? The kernel then takes answers from there
 * alone, so that nothing can be changed here. (Such a call has a program run only if it names the
 * address, or if an IPv6 socket speaks IPv4.) */
INLINE bool is_connected_to(struct bpf_sock_addr *ctx, const struct call *call)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk || sk->dst_port != call->port)
		return false;
	if (speaks_ipv4(call))
		return sk->dst_ip4 == call->addr.w[3];
	return !((sk->dst_ip6[0] ^ call->addr.w[0]) | (sk->dst_ip6[1] ^ call->addr.w[1]) |
		 (sk->dst_ip6[2] ^ call->addr.w[2]) | (sk->dst_ip6[3] ^ call->addr.w[3]));
}

/* Is the socket bound to a loopback address? With that as source nothing gets off the machine. */
INLINE bool from_loopback(struct bpf_sock_addr *ctx, const struct call *call)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return false;
	if (speaks_ipv4(call))
		return (ntohl(sk->src_ip4) >> 24) == 127;
	return !(sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | (sk->src_ip6[3] ^ htonl(1)));
}
