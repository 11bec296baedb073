/* Traffic that starts on the node (and in pods, if enabled): the socket is told a backend's address
 * when it connects or sends, so that nothing is left to do per packet. The same choice as on the
 * wire. */
#include <uapi/linux/bpf.h>
#include <linux/in.h>
#include "unit.h"
#include "kernel.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "config.h"
#include "cpu.h"
#include "algorithm.h"
#include "frontend.h"
#include "select.h"
#include "owned.h"
#include "socket.h"
#include "peers.h"
#include "beat.h"
#include "event.h"

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

/* The caller learns at once; a silent drop cannot be had at a socket. But connect() of UDP sends
 * nothing: programs ask by it which address of their own they would use. */
INLINE int deny(struct call *call, u32 reason, int error)
{
	if (call->proto == IPPROTO_UDP && !call->sends)
		return NOT_OURS;
	count_socket(reason);
	call->reason = reason;
	bpf_set_retval(-error);
	return DENY;
}

/* Where the client's address is what affinity goes by on the wire, here it is the namespace; and
 * source ranges see the node by its primary address. */
INLINE void identify(struct request *r, const struct call *call, const struct config *c)
{
	r->client.w[0] = call->netns;
	r->client.w[1] = call->netns >> 32;
	if (r->frontend_flags & FRONTEND_SOURCE_RANGES)
		r->client = speaks_ipv4(call) ? c->node4 : c->node6;
}

/* A ClusterIP that the node has itself: is it the node's own socket that is called? What a pod's
 * socket calls there is found out on the wire, in the node's namespace. */
INLINE bool answered_here(struct bpf_sock_addr *ctx, const struct call *call, u32 frontend_flags)
{
	struct addr anybody = {};

	if (!(frontend_flags & FRONTEND_CLUSTER_IP) || !(frontend_flags & FRONTEND_SHARED))
		return false;
	if (call->of_pod)
		return true;
	return is_bound(ctx, &anybody, 0, &call->addr, call->port, call->proto);
}

/* Is it the answer of a server of the node to a socket of the node, whose port is also a service's?
 * Of one that is connected that can be told. A server that is bound to all addresses answers the
 * node from the one that it was called by. */
INLINE bool answers_the_node(struct bpf_sock_addr *ctx, const struct call *call, u32 frontend_flags)
{
	struct addr own = call->addr;
	struct bpf_sock *sk;

	/* Else clang reads it by an address that it keeps, and the verifier takes no such one. */
	asm volatile("" : "+r"(ctx));
	sk = ctx->sk;
	if (call->proto != IPPROTO_UDP || call->of_pod || !sk || !sk->src_port ||
	    !(frontend_flags & (FRONTEND_SHARED | FRONTEND_SOCKETS)))
		return false;
	if (speaks_ipv4(call)) {
		if (sk->src_ip4)
			own.w[3] = sk->src_ip4;
	} else if (sk->src_ip6[0] | sk->src_ip6[3]) {
		own.w[0] = sk->src_ip6[0];
		own.w[1] = sk->src_ip6[1];
		own.w[2] = sk->src_ip6[2];
		own.w[3] = sk->src_ip6[3];
	}
	return is_connected(ctx, &own, htons(sk->src_port), &call->addr, call->port);
}

/* Is this frontend one for sockets like this? */
INLINE bool may_use(struct bpf_sock_addr *ctx, const struct call *call, const struct config *c,
		    u32 frontend_flags)
{
	/* What a pod's socket sends to an address that is not the service's alone may be an answer:
	 * to the node, or whoever calls by its address, from a port that is also a service's. On
	 * the wire it is known whom the pod has heard (outgoing.h). */
	if (call->of_pod && call->proto == IPPROTO_UDP && !(frontend_flags & FRONTEND_CLUSTER_IP) &&
	    agent_lives(c))
		return false;
	/* A pod's address is not known before it connects: its packets are judged on the wire. And
	 * its loopback is its own. */
	if (frontend_flags & (FRONTEND_SOURCE_RANGES | FRONTEND_SOCKETS) && call->of_pod)
		return false;
	return !(frontend_flags & FRONTEND_SOCKETS) || !from_loopback(ctx, call);
}

/* Is the socket bound to a port that others may be bound to as well? They may call the same
 * endpoint by other names, or by its own, and the kernel would refuse whoever comes second
 * (EADDRNOTAVAIL). */
INLINE bool shares_port(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	int shared = 0;

	if (!sk || !sk->src_port)
		return false;
	if (!bpf_getsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &shared, sizeof(shared)) && shared)
		return true;
	return !bpf_getsockopt(ctx, SOL_SOCKET, SO_REUSEPORT, &shared, sizeof(shared)) && shared;
}

/* Are the packets met by programs, which give them another port (node.h, or as any pod's)? Not what
 * the node calls at an address of its own, nor if the backend is a process of the node: neither the
 * packets nor the answers ever come there. */
INLINE bool meets_programs(const struct call *call, const struct config *c, u32 frontend_flags,
			   const struct choice *choice)
{
	if (call->of_pod)
		return agent_lives(c);
	return !(frontend_flags & FRONTEND_SHARED) &&
	       !same_address(&choice->addr, speaks_ipv4(call) ? &c->node4 : &c->node6);
}

/* Is the call left alone, since its socket would mistake the answers, or another's socket would? */
INLINE bool is_for_the_wire(struct bpf_sock_addr *ctx, const struct call *call,
			    const struct config *c, u32 frontend_flags, const struct choice *choice)
{
	bool alike = call->proto == IPPROTO_TCP ? shares_port(ctx)
						: call->sends && has_other_name(call, choice, c);

	return alike && meets_programs(call, c, frontend_flags, choice);
}

/* What a pod's UDP socket sends there stays there, or it would come to several endpoints. */
INLINE int leave_to_the_wire(const struct call *call, struct socket_key *kept)
{
	u32 wire = ON_THE_WIRE;

	if (call->proto == IPPROTO_UDP && call->of_pod)
		socket_choices.update(kept, &wire);
	return NOT_OURS;
}

/* ALLOW with the choice made, DENY with the error set, or NOT_OURS. */
INLINE int choose_for_socket(struct bpf_sock_addr *ctx, struct call *call, struct choice *choice)
{
	const struct config *c = get_config();
	struct request request = {};
	struct frontend_key key;
	struct frontend frontend;
	struct socket_key kept;
	u32 address;
	int reason;

	if (!c)
		return NOT_OURS;
	address = address_flags(&call->addr);
	if (!address) {
		asked_directly(ctx, call, c);
		return NOT_OURS;
	}
	if (!is_served(ctx, call, c) || (call->sends && is_connected_to(ctx, call)))
		return NOT_OURS;
	make_frontend_key(&key, &call->addr, call->port, call->proto);
	if (!find_frontend(&key, &frontend)) {
		if (address & FRONTEND_ADDRESS && !(address & FRONTEND_SHARED))
			return deny(call, REASON_UNKNOWN_PORT, ECONNREFUSED);
		asked_directly(ctx, call, c);
		return NOT_OURS;
	}
	if (answered_here(ctx, call, frontend.flags) ||
	    answers_the_node(ctx, call, frontend.flags) || !may_use(ctx, call, c, frontend.flags))
		return NOT_OURS;
	make_socket_key(&kept, call->cookie, &call->addr, call->port);
	if (call->sends && call->of_pod && agent_lives(c) && went_to_the_wire(&kept))
		return NOT_OURS;
	if (call->proto == IPPROTO_UDP && find_kept(&kept, frontend.service, choice)) {
		if (is_for_the_wire(ctx, call, c, frontend.flags, choice))
			return leave_to_the_wire(call, &kept);
		ask_peer(call, choice);
		return ALLOW;
	}
	call->service = frontend.service;
	request.service = frontend.service;
	request.frontend_flags = frontend.flags;
	/* No port is known yet, nor needed: the socket keeps the backend it is told. */
	request.ports = next_random();
	identify(&request, call, c);
	reason = choose_backend(&request, true, choice);
	if (reason == REASON_NO_ENDPOINT)
		return deny(call, reason, ECONNREFUSED);
	if (reason)
		return deny(call, reason, EHOSTUNREACH);
	if (is_for_the_wire(ctx, call, c, frontend.flags, choice))
		return leave_to_the_wire(call, &kept);
	count_socket(REASON_FORWARDED);
	call->reason = REASON_FORWARDED;
	count_socket_connection(choice->service);
	if (call->proto == IPPROTO_UDP)
		socket_choices.update(&kept, &choice->backend);
	if (call->sends)
		remember_last(call, choice);
	if (call->proto == IPPROTO_TCP) {
		u64 owner = mptcp_owner(ctx);

		if (owner)
			call->cookie = owner;
	}
	if (call->proto == IPPROTO_UDP || c->flags & CONFIG_SOCKET_PEERS)
		remember_peer(call, choice);
	return ALLOW;
}

/* No flow is remembered of what sockets are told, so no end of it will be told. The client's
 * address is not known yet; its process is. */
INLINE void tell_socket(const struct call *call, const struct choice *choice)
{
	bool opened = call->reason == REASON_FORWARDED;
	struct flow_event *event;

	if (!call->reason || !is_anybody_listening())
		return;
	event = begin_event(opened ? EVENT_OPENED : EVENT_TURNED_AWAY, opened ? 0 : call->reason);
	if (!event)
		return;
	event->dst = call->addr;
	event->dport = call->port;
	event->proto = call->proto;
	event->service = call->service;
	event->process = bpf_get_current_pid_tgid() >> 32;
	event->opened = now();
	event->seen = event->opened;
	if (opened) {
		event->addr = choice->addr;
		event->port = choice->port;
		event->backend = choice->backend;
	}
	finish_event(event);
}

#define SOCKET_PROGRAM(name) int sock_##name(struct bpf_sock_addr *ctx)

#define TO_BACKEND(name, family, sending)                                                          \
	SOCKET_PROGRAM(name##family)                                                               \
	{                                                                                          \
		struct choice choice = {};                                                         \
		struct call call = {.sends = sending};                                             \
		int verdict;                                                                       \
                                                                                                   \
		read_call##family(&call, ctx);                                                     \
		verdict = choose_for_socket(ctx, &call, &choice);                                  \
		tell_socket(&call, &choice);                                                       \
		if (verdict == ALLOW)                                                              \
			write_call##family(ctx, &choice.addr, choice.port);                        \
		return verdict == DENY ? DENY : ALLOW;                                             \
	}

#define TO_OWNER(name, family, hears)                                                              \
	SOCKET_PROGRAM(name##family)                                                               \
	{                                                                                          \
		struct choice choice = {};                                                         \
		struct call call = {};                                                             \
                                                                                                   \
		read_call##family(&call, ctx);                                                     \
		if (ctx->protocol == IPPROTO_MPTCP)                                                \
			call.cookie = (u64)ctx->sk;                                                \
		if (find_peer(&call, hears, &choice))                                              \
			write_call##family(ctx, &choice.addr, choice.port);                        \
		return ALLOW;                                                                      \
	}

TO_BACKEND(connect, 4, false)
TO_BACKEND(connect, 6, false)
TO_BACKEND(sendmsg, 4, true)
TO_BACKEND(sendmsg, 6, true)
TO_OWNER(recvmsg, 4, true)
TO_OWNER(recvmsg, 6, true)
TO_OWNER(getpeername, 4, false)
TO_OWNER(getpeername, 6, false)

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
	if (protocol == IPPROTO_MPTCP)
		key.cookie = (u64)sk;
	if (key.port && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP))
		socket_peers.delete(&key);
	if (protocol != IPPROTO_UDP)
		return ALLOW;
	if (key.port)
		forget_peer(&key);
	forget_last(key.cookie);
	return ALLOW;
}
