/* Whose is the address that a flow of datagrams goes to? Rank may give it to another service, and
 * the backend that the flow has goes on serving: then nothing else would move it. */
#pragma once

#include "unit.h"
#include "consts.h"
#include "types.h"
#include "select.h"

/* Asked once per beat. An address that nobody has any more is left to its backends, which stop
 * serving with their service. */
INLINE bool has_new_owner(const struct flow_key *key, const struct flow *f)
{
	struct frontend_key frontend_key;
	struct frontend frontend;

	if (f->state != FLOW_DATAGRAM || f->flags & (FLOW_REPLY | FLOW_DIRECT))
		return false;
	make_frontend_key(&frontend_key, &key->dst, key->dport, key->proto);
	return find_frontend(&frontend_key, &frontend) && frontend.service != f->service;
}
