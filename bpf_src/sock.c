/* Traffic that starts on the node (and in pods, if enabled): the socket is told a backend's address
 * when it connects or sends, so that nothing is left to do per packet. The same choice as on the
 * wire.
 *
 * Addresses are 16 bytes throughout (FAMILY is 6 here): IPv4 sockets, IPv6 sockets, and IPv6
 * sockets that speak IPv4 meet in the same records. */
#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "config.h"
#include "filter.h"
#include "select.h"
#include "owned.h"

#define AF_INET 2
#define ALLOW 1
#define DENY 0

/* Who calls whom, whatever the hook's family. */
struct call {
	struct addr addr;
	__u16 port;
	__u8 proto;
	__u8 pad;
	__u64 cookie; /* of the socket */
	__u64 netns;
};

INLINE void count_socket(u32 reason)
{
	u64 *counter = counters.lookup(&reason);

	if (counter)
		*counter += 1;
}

INLINE void count_socket_connection(u32 service)
{
	struct service_counters *c = service_counters.lookup(&service);

	if (c)
		__sync_fetch_and_add(&c->connections, 1);
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

/* Is this socket one we serve? The node's own always, others only when asked to. */
INLINE bool is_served(struct bpf_sock_addr *ctx, struct call *call, const struct config *c)
{
	if (call->proto != IPPROTO_TCP && call->proto != IPPROTO_UDP)
		return false;
	if (!(c->flags & (CONFIG_SOCKET_HOST | CONFIG_SOCKET_ALL)))
		return false;
	call->netns = netns_cookie(ctx);
	return c->flags & CONFIG_SOCKET_ALL || call->netns == c->host_netns;
}

/* The caller learns at once; a silent drop cannot be had at a socket. */
INLINE int deny(u32 reason, int error)
{
	count_socket(reason);
	bpf_set_retval(-error);
	return DENY;
}

INLINE void make_socket_key(struct socket_key *key, u64 cookie, const struct addr *addr, u16 port)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	key->addr = *addr;
	key->port = port;
}

/* The owner is to see the service's address where the kernel has the backend's. */
INLINE void remember_peer(const struct call *call, const struct choice *choice)
{
	struct socket_peer peer = {.port = call->port, .service = choice->service};
	struct socket_key key;

	make_socket_key(&key, call->cookie, &choice->addr, choice->port);
	peer.addr = call->addr;
	socket_peers.update(&key, &peer);
}

/* An unconnected socket does not know at its end whom it called; the entry without address does. */
INLINE void remember_last(const struct call *call, const struct choice *choice)
{
	struct socket_peer last = {.port = choice->port, .service = choice->service};
	struct socket_key key = {.cookie = call->cookie};

	last.addr = choice->addr;
	socket_peers.update(&key, &last);
}

/* A UDP socket keeps its backend as long as that serves. */
INLINE bool keep_choice(const struct call *call, const struct socket_key *key, u32 service,
			struct choice *choice)
{
	u32 *had = socket_choices.lookup((struct socket_key *)key), id;
	struct socket_key peer;
	struct backend *b;

	if (!had)
		return false;
	id = *had & BACKEND_ID_MASK;
	b = backends.lookup(&id);
	if (!b || !current(b, *had) || b->service != service)
		return false;
	take_backend(choice, b, *had, service);
	make_socket_key(&peer, call->cookie, &choice->addr, choice->port);
	if (!socket_peers.lookup(&peer)) /* evicted by itself */
		remember_peer(call, choice);
	return true;
}

/* Where the client's address is what affinity goes by on the wire, here it is the namespace; and
 * source ranges see the node by its primary address. */
INLINE void identify(struct request *r, const struct call *call, const struct config *c)
{
	r->client.w[0] = call->netns;
	r->client.w[1] = call->netns >> 32;
	if (r->frontend_flags & FRONTEND_SOURCE_RANGES)
		r->client =
		    call->addr.w[2] == htonl(0xffff) && !call->addr.w[0] ? c->node4 : c->node6;
}

/* A ClusterIP that the node has itself: is it the node's own socket that is called? What a pod's
 * socket calls there is found out on the wire, in the node's namespace. */
INLINE bool answered_here(struct bpf_sock_addr *ctx, const struct call *call,
			  const struct config *c, u32 frontend_flags)
{
	struct addr anybody = {};

	if (!(frontend_flags & FRONTEND_CLUSTER_IP) || !(frontend_flags & FRONTEND_SHARED))
		return false;
	if (call->netns != c->host_netns)
		return true;
	return is_bound(ctx, &anybody, 0, &call->addr, call->port, call->proto);
}

#define NOT_OURS 2

/* ALLOW with the choice made, DENY with the error set, or NOT_OURS. */
INLINE int choose_for_socket(struct bpf_sock_addr *ctx, struct call *call, bool sends,
			     struct choice *choice)
{
	const struct config *c = get_config();
	struct request request = {};
	struct frontend_key key;
	struct frontend frontend;
	struct socket_key kept;
	int reason;

	if (!c || !maybe_service(&call->addr, 0) || !is_served(ctx, call, c))
		return NOT_OURS;
	make_frontend_key(&key, &call->addr, call->port, call->proto);
	if (!find_frontend(&key, &frontend)) {
		make_frontend_key(&key, &call->addr, 0, 0);
		if (find_frontend(&key, &frontend) && frontend.flags & FRONTEND_ADDRESS &&
		    !(frontend.flags & FRONTEND_SHARED))
			return deny(REASON_UNKNOWN_PORT, ECONNREFUSED);
		return NOT_OURS;
	}
	if (answered_here(ctx, call, c, frontend.flags))
		return NOT_OURS;
	/* A pod's address is not known before it connects: its packets are judged on the wire. */
	if (frontend.flags & FRONTEND_SOURCE_RANGES && call->netns != c->host_netns)
		return NOT_OURS;
	make_socket_key(&kept, call->cookie, &call->addr, call->port);
	if (call->proto == IPPROTO_UDP && keep_choice(call, &kept, frontend.service, choice))
		return ALLOW;
	request.service = frontend.service;
	request.frontend_flags = frontend.flags;
	identify(&request, call, c);
	reason = choose_backend(&request, choice);
	if (reason == REASON_NO_ENDPOINT)
		return deny(reason, ECONNREFUSED);
	if (reason)
		return deny(reason, EHOSTUNREACH);
	count_socket(REASON_FORWARDED);
	count_socket_connection(choice->service);
	if (call->proto == IPPROTO_UDP)
		socket_choices.update(&kept, &choice->backend);
	if (sends)
		remember_last(call, choice);
	if (call->proto == IPPROTO_UDP || c->flags & CONFIG_SOCKET_PEERS)
		remember_peer(call, choice);
	return ALLOW;
}

/* What the socket's owner called, given the address the kernel knows. */
INLINE bool find_peer(struct call *call, struct choice *choice)
{
	struct socket_peer *peer;
	struct socket_key key;

	if (!maybe_endpoint(&call->addr, call->port))
		return false;
	make_socket_key(&key, call->cookie, &call->addr, call->port);
	peer = socket_peers.lookup(&key);
	if (!peer)
		return false;
	choice->addr = peer->addr;
	choice->port = peer->port;
	return true;
}

#define SOCKET_PROGRAM(name) int sock_##name(struct bpf_sock_addr *ctx)

#define TO_BACKEND(name, family, sends)                                                            \
	SOCKET_PROGRAM(name##family)                                                               \
	{                                                                                          \
		struct choice choice = {};                                                         \
		struct call call = {};                                                             \
		int verdict;                                                                       \
                                                                                                   \
		read_call##family(&call, ctx);                                                     \
		verdict = choose_for_socket(ctx, &call, sends, &choice);                           \
		if (verdict == ALLOW)                                                              \
			write_call##family(ctx, &choice.addr, choice.port);                        \
		return verdict == DENY ? DENY : ALLOW;                                             \
	}

#define TO_OWNER(name, family)                                                                     \
	SOCKET_PROGRAM(name##family)                                                               \
	{                                                                                          \
		struct choice choice = {};                                                         \
		struct call call = {};                                                             \
                                                                                                   \
		read_call##family(&call, ctx);                                                     \
		if (find_peer(&call, &choice))                                                     \
			write_call##family(ctx, &choice.addr, choice.port);                        \
		return ALLOW;                                                                      \
	}

TO_BACKEND(connect, 4, false)
TO_BACKEND(connect, 6, false)
TO_BACKEND(sendmsg, 4, true)
TO_BACKEND(sendmsg, 6, true)
TO_OWNER(recvmsg, 4)
TO_OWNER(recvmsg, 6)
TO_OWNER(getpeername, 4)
TO_OWNER(getpeername, 6)

INLINE void forget_peer(const struct socket_key *key)
{
	struct socket_peer *peer = socket_peers.lookup((struct socket_key *)key);
	struct socket_key choice;

	if (!peer)
		return;
	make_socket_key(&choice, key->cookie, &peer->addr, peer->port);
	socket_choices.delete(&choice);
	socket_peers.delete((struct socket_key *)key);
}

INLINE void forget_last(u64 cookie)
{
	struct socket_key last = {.cookie = cookie}, key;
	struct socket_peer *peer = socket_peers.lookup(&last);

	if (!peer)
		return;
	make_socket_key(&key, cookie, &peer->addr, peer->port);
	forget_peer(&key);
	socket_peers.delete(&last);
}

/* What was remembered goes with the socket: whom it is connected to, and for UDP whom it called
 * last. What an unconnected socket called before that ages. */
int sock_release(struct bpf_sock *sk)
{
	/* All read before any is chosen: the verifier takes no computed offset into the context. */
	u32 family = sk->family, address = sk->dst_ip4, protocol = sk->protocol;
	struct socket_key key = {.cookie = socket_cookie(sk)};

	key.addr.w[0] = sk->dst_ip6[0];
	key.addr.w[1] = sk->dst_ip6[1];
	key.addr.w[2] = sk->dst_ip6[2];
	key.addr.w[3] = sk->dst_ip6[3];
	if (family == AF_INET) {
		key.addr.w[0] = 0;
		key.addr.w[1] = 0;
		key.addr.w[2] = htonl(0xffff);
		key.addr.w[3] = address;
	}
	key.port = sk->dst_port;
	if (key.port && protocol == IPPROTO_TCP)
		socket_peers.delete(&key);
	if (protocol != IPPROTO_UDP)
		return ALLOW;
	if (key.port)
		forget_peer(&key);
	forget_last(key.cookie);
	return ALLOW;
}
