/* Whose is the address that a flow of datagrams goes to? Rank may give it to another service, and
 * the backend that the flow has goes on serving: then nothing else would move it. */
#pragma once

#include <linux/in.h>
#include "unit.h"
#include "types.h"
#include "consts.h"
#include "parse.h"
#include "cells.h"
#include "frontend.h"
#include "flow.h"

/* Asked by a flow's first packet in a beat. An address that nobody has any more is left to its
 * backends, which stop serving with their service. */
INLINE bool has_new_owner(const struct packet *p, const struct found *f)
{
	struct frontend_key key;
	struct frontend owner;

	if (p->proto == IPPROTO_TCP ||
	    kind_of(f) & (CELL_REPLY | CELL_DIRECT | CELL_SIDE | CELL_NOTE))
		return false;
	make_frontend_key(&key, &p->dst, p->dport, p->proto);
	return find_frontend(&key, &owner) && owner.service != f->state->service;
}
