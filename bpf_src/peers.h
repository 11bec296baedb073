/* What is remembered of sockets: whom the owner called where the kernel has a backend's address,
 * and which backend a UDP socket keeps. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "address.h"
#include "maps.h"
#include "beat.h"
#include "frontend.h"
#include "select.h"
#include "socket.h"

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
	struct socket_peer peer = {
	    .port = call->port, .service = choice->service, .proto = call->proto};
	struct socket_key key;

	make_socket_key(&key, call->cookie, &choice->addr, choice->port);
	peer.addr = call->addr;
	peer.asked = now();
	peer.open = call->sends;
	if (call->of_pod)
		peer.flags = PEER_OF_POD;
	socket_peers.update(&key, &peer);
}

/* One more datagram was sent to it by the name that is noted. */
INLINE void ask_again(struct socket_peer *peer)
{
	peer->asked = now();
	__sync_fetch_and_add(&peer->open, 1);
}

/* An unconnected socket does not know at its end whom it called; the entry without address does. */
INLINE void remember_last(const struct call *call, const struct choice *choice)
{
	struct socket_peer last = {.port = choice->port, .service = choice->service};
	struct socket_key key = {.cookie = call->cookie};

	last.addr = choice->addr;
	socket_peers.update(&key, &last);
}

/* A datagram to an endpoint that the socket has not called before: whom its answer comes from must
 * be known when it calls a service meanwhile. */
INLINE void note_direct(struct bpf_sock_addr *ctx, struct call *call, const struct config *c)
{
	struct socket_peer peer = {
	    .proto = call->proto, .flags = PEER_DIRECT, .asked = now(), .open = 1};
	struct choice itself = {.addr = call->addr, .port = call->port};
	struct socket_key key;

	if (!call->sends || !is_served(ctx, call, c))
		return;
	make_socket_key(&key, call->cookie, &call->addr, call->port);
	socket_peers.update(&key, &peer);
	remember_last(call, &itself);
}

/* Whoever calls an endpoint by its own address hears it answer by that, until the socket asks the
 * service again. The entry stays: it leads to the rest that is to be forgotten with the socket. */
INLINE void asked_directly(struct bpf_sock_addr *ctx, struct call *call, const struct config *c)
{
	struct socket_peer *peer;
	struct socket_key key;

	if (!is_endpoint(&call->addr, call->port) || (call->sends && is_connected_to(ctx, call)))
		return;
	make_socket_key(&key, call->cookie, &call->addr, call->port);
	peer = socket_peers.lookup(&key);
	if (!peer) {
		note_direct(ctx, call, c);
		return;
	}
	peer->flags |= PEER_DIRECT;
	if (call->sends)
		ask_again(peer);
}

INLINE bool is_called_so(const struct socket_peer *peer, const struct call *call)
{
	return !(peer->flags & PEER_DIRECT) && peer->port == call->port &&
	       same_address(&peer->addr, &call->addr);
}

/* Does the socket know this endpoint by another name already? Its answers all look alike to the
 * programs here, so they would all come by the name that was called last. A pod's socket keeps the
 * first; of the node's, which the wire cannot serve everywhere, that one counts while an answer to
 * it may be under way. */
INLINE bool has_other_name(const struct call *call, const struct choice *choice,
			   const struct config *c)
{
	struct socket_peer *peer;
	struct socket_key key;

	make_socket_key(&key, call->cookie, &choice->addr, choice->port);
	peer = socket_peers.lookup(&key);
	if (!peer || is_called_so(peer, call))
		return false;
	return call->of_pod ||
	       (peer->open > 0 && !is_older(now(), peer->asked, c->datagram_timeout));
}

/* Another datagram by this name. */
INLINE void ask_peer(const struct call *call, const struct choice *choice)
{
	struct socket_peer *peer;
	struct socket_key key;

	make_socket_key(&key, call->cookie, &choice->addr, choice->port);
	peer = socket_peers.lookup(&key);
	/* Evicted by itself, or called by another name meanwhile: its own, or another service's. */
	if (!peer || !is_called_so(peer, call))
		remember_peer(call, choice);
	else if (call->sends)
		ask_again(peer);
}

/* In place of a backend: the wire chose, and has the flow. No id is as large. */
#define ON_THE_WIRE 0xffffffff

INLINE bool went_to_the_wire(const struct socket_key *key)
{
	u32 *had = socket_choices.lookup((struct socket_key *)key);

	return had && *had == ON_THE_WIRE;
}

/* A UDP socket keeps its backend as long as that serves. */
INLINE bool find_kept(const struct socket_key *key, u32 service, struct choice *choice)
{
	u32 *had = socket_choices.lookup((struct socket_key *)key), id;
	struct backend *b;

	if (!had)
		return false;
	id = *had & BACKEND_ID_MASK;
	b = backends.lookup(&id);
	if (!b || !current(b, *had) || b->service != service)
		return false;
	take_backend(choice, b, *had, service);
	return true;
}

/* What the socket's owner called, given the address the kernel knows; `hears` is it from there. */
INLINE bool find_peer(struct call *call, bool hears, struct choice *choice)
{
	struct socket_peer *peer;
	struct socket_key key;

	if (!is_endpoint(&call->addr, call->port))
		return false;
	make_socket_key(&key, call->cookie, &call->addr, call->port);
	peer = socket_peers.lookup(&key);
	if (!peer)
		return false;
	if (hears && peer->open > 0)
		__sync_fetch_and_add(&peer->open, -1);
	if (peer->flags & PEER_DIRECT)
		return false;
	choice->addr = peer->addr;
	choice->port = peer->port;
	return true;
}

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
