/* Later fragments have no ports: they get those of the first one, which passed here before. */
#pragma once

#include "unit.h"
#include "types.h"
#include "maps.h"
#include "parse.h"

INLINE void make_fragment_key(struct fragment_key *key, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = p->src;
	key->dst = p->dst;
	key->id = p->id;
	key->proto = p->proto;
}

INLINE void remember_fragment(const struct packet *p)
{
	struct fragment_key key;
	struct fragment ports = {.sport = p->sport, .dport = p->dport};

	make_fragment_key(&key, p);
	FRAGMENTS.update(&key, &ports);
}

/* Gives a later fragment its ports. False when the first one was not seen. */
INLINE bool recall_fragment(struct packet *p)
{
	struct fragment_key key;
	struct fragment *ports;

	make_fragment_key(&key, p);
	ports = FRAGMENTS.lookup(&key);
	if (!ports)
		return false;
	p->sport = ports->sport;
	p->dport = ports->dport;
	return true;
}
