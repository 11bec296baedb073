/* The table of frontends: from an address, port and protocol to a service. It also knows addresses
 * by themselves (port and protocol 0), endpoints (protocol 0), and the addresses of these.
 *
 * One array, written by the agent alone (ebpf/maps/buckets.py). Element 0 has the secret of the
 * hash in place of a key, and the number of buckets as its word; then come the control words, four
 * in an element; then the cells, eight to a bucket. A key is in either of two buckets, and looked
 * for in the first one first: the agent moves one to its second while it stays in the first, never
 * the other way. It writes the key, then the word, then the byte in the control word, and takes
 * them back in reverse, with another generation: a reader who still sees that generation after it
 * compared the key has read what belongs together. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "hash.h"
#include "address.h"
#include "subprogram.h"

struct frontend {
	__u32 service;
	__u32 flags; /* enum frontend_flag */
};

INLINE void make_frontend_key(struct frontend_key *key, const ip_addr *addr, u16 port, u8 proto)
{
	__builtin_memset(key, 0, sizeof(*key));
	widen(&key->addr, addr);
	key->port = port;
	key->proto = proto;
}

INLINE u64 hash_frontend(const struct frontend_key *key, const struct frontend_cell *header)
{
	const u64 *words = (const u64 *)key, *secret = (const u64 *)&header->key;
	u64 h = NH(words[0], secret[0]) + NH(words[1], secret[1]) + NH(words[2], secret[2]);

	h ^= h >> 32;
	h *= 0x9e3779b97f4a7c15ULL;
	return h ^ h >> 29;
}

INLINE u64 frontend_control(u32 bucket)
{
	u32 element = 1 + (bucket >> 2);
	const struct frontend_cell *found = frontends.lookup(&element);

	return found ? LOAD((const u64 *)found + (bucket & 3)) : 0;
}

INLINE bool has_frontend_key(const struct frontend_cell *cell, const struct frontend_key *key)
{
	const u64 *own = (const u64 *)&cell->key, *other = (const u64 *)key;

	return !((own[0] ^ other[0]) | (own[1] ^ other[1]) | (own[2] ^ other[2]));
}

/* The word of a key that is in this bucket, or 0. `cells` is where those of all buckets begin. */
INLINE u64 frontend_in(u32 bucket, u32 cells, u32 tag, const struct frontend_key *key)
{
	u64 z = frontend_control(bucket) ^ tag * BYTES_ONE;

	z = LOWEST_ZERO(z);
	ROLLED
	for (u32 i = 0; i < 8 && z; i++) {
		u32 place = cells + bucket * 8 + WHICH_BYTE(z);
		const struct frontend_cell *cell = frontends.lookup(&place);
		bool same;
		u64 word;

		if (!cell)
			return 0;
		word = LOAD(&cell->word);
		ORDERED;
		same = has_frontend_key(cell, key);
		ORDERED;
		if (same && word >> FRONTEND_FLAGS_SHIFT & FRONTEND_FLAGS_MASK &&
		    !((LOAD(&cell->word) ^ word) >> FRONTEND_GENERATION_SHIFT))
			return word;
		z &= z - 1;
	}
	return 0;
}

INLINE u64 frontend_word_inline(const struct frontend_key *key)
{
	u32 zero = 0, buckets, cells, tag;
	const struct frontend_cell *header = frontends.lookup(&zero);
	u64 hash, word;

	if (!header)
		return 0;
	buckets = header->word;
	cells = 1 + (buckets + 3) / 4;
	hash = hash_frontend(key, header);
	tag = hash >> 32 & 0xff;
	tag = tag ? tag : 1;
	word = frontend_in((u64)(u32)hash * buckets >> 32, cells, tag, key);
	return word ? word : frontend_in((hash >> 32) * buckets >> 32, cells, tag, key);
}

CALLED(frontend, struct frontend_key, SUBPROGRAM_FRONTEND);
SIZED(frontend, struct frontend_key)
SUBPROGRAM(frontend, struct frontend_key)
{
	return own ? frontend_word_inline(own) : 0;
}

/* The word of a key, or 0. */
INLINE u64 frontend_word(struct frontend_key *key)
{
	return call_frontend(key);
}

INLINE bool find_frontend(struct frontend_key *key, struct frontend *out)
{
	u64 word = frontend_word(key);

	out->service = word & FRONTEND_SERVICE_MASK;
	out->flags = word >> FRONTEND_FLAGS_SHIFT & FRONTEND_FLAGS_MASK;
	return word;
}

INLINE u32 flags_of_word(u64 word)
{
	return word >> FRONTEND_FLAGS_SHIFT & FRONTEND_FLAGS_MASK;
}

/* What services have an address for: FRONTEND_ADDRESS, FRONTEND_OUTER, FRONTEND_SHARED; 0 if none
 * has it. */
INLINE u32 address_flags(const ip_addr *address)
{
	struct frontend_key key;

	make_frontend_key(&key, address, 0, 0);
	return flags_of_word(frontend_word(&key));
}

/* The same for what every packet asks that is none of ours. */
INLINE u32 address_flags_inline(const ip_addr *address)
{
	struct frontend_key key;

	make_frontend_key(&key, address, 0, 0);
	return flags_of_word(frontend_word_inline(&key));
}

/* Is this some service's endpoint, or was it one, and may there still be flows to it? */
INLINE bool is_endpoint(const ip_addr *address, u16 port)
{
	struct frontend_key key;

	make_frontend_key(&key, address, port, 0);
	return frontend_word(&key);
}

/* ... or an endpoint's address? */
INLINE bool is_endpoint_address(const ip_addr *address)
{
	struct frontend_key key;

	make_frontend_key(&key, address, 0, FRONTEND_ENDPOINT_ADDRESS);
	return frontend_word(&key);
}
