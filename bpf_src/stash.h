/* Fragments that come before the first of their datagram wait here for its ports.
 *
 * A fragment that waits is a copy of its packet in a slot. The first fragment, when it comes, goes
 * once more through the hook that it came to, and after it whatever waits for it: as frames that
 * are sent to the same device, made of the first one's. What waits longer than a tick or two is
 * forgotten, and the oldest goes when a bucket is full, so that a flood of early fragments costs
 * others their early fragments and nothing else. Slots are owned by compare-and-swap of their head;
 * nobody reads or writes a slot that another is writing. */
#pragma once

#include <uapi/linux/bpf.h>
#include "unit.h"
#include "consts.h"
#include "types.h"
#include "maps.h"
#include "address.h"
#include "parse.h"
#include "handoff.h"
#include "stats.h"
#include "decided.h"
#include "tailcall.h"
#include "checksum.h"
#include "fragment.h"

/* A head, from the lowest bit: state, 30 bits of the datagram's hash, tick. */
enum stash_state { STASH_FREE, STASH_WRITING, STASH_WAITING, STASH_COPY };
#define STASH_STATE(head) ((u32)(head)&3)
#define STASH_TAG(head) ((u32)(head) & ~3)
#define STASH_TICK(head) ((u32)((head) >> 32))
#define STASH_HEAD(state, tag, tick) ((u64)(tick) << 32 | (tag) | (state))
#define STASH_TICK_SHIFT 30 /* of nanoseconds: a tick is about a second */
#define STASH_TICKS 1	    /* how many a fragment waits at least */

/* What is known of a fragment that is handed over. */
enum early {
	EARLY_GOING_OUT = 1, /* met at an egress hook */
	EARLY_OURS = 2,	     /* nobody else has the address that it is for */
};

/* A place in the stash, and whose it may be. */
struct stash_place {
	u32 bucket;
	u32 tag;
};

/* Which datagram, and which hook it came to: one may meet several on its way. */
INLINE void make_stash_key(struct stash_key *key, const struct __sk_buff *skb,
			   const struct packet *p, bool going_out)
{
	__builtin_memset(key, 0, sizeof(*key));
	widen(&key->src, &p->src);
	widen(&key->dst, &p->dst);
	key->id = p->id;
	key->ifindex = skb->ifindex;
	key->proto = p->proto;
	key->going_out = going_out;
}

INLINE u32 mix_address(const ip_addr *a)
{
#if FAMILY == 4
	return *a * 0x9e3779b1;
#else
	return a->w[0] * 0x85ebca6b + a->w[1] * 0xc2b2ae35 + a->w[2] * 0x27d4eb2f +
	       a->w[3] * 0x9e3779b1;
#endif
}

INLINE void find_place(struct stash_place *place, const struct packet *p)
{
	u32 h = (mix_address(&p->src) ^ p->id) * 0x85ebca6b ^ mix_address(&p->dst) ^ p->proto;

	h ^= h >> 15;
	h *= 0x2c1b3c6d;
	h ^= h >> 16;
	place->bucket = h % STASH_BUCKETS;
	place->tag = h & ~3;
}

INLINE u32 stash_tick(void)
{
	return bpf_ktime_get_coarse_ns() >> STASH_TICK_SHIFT;
}

INLINE bool same_datagram(const struct stash_key *a, const struct stash_key *b)
{
	const u64 *x = (const u64 *)a, *y = (const u64 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4]) |
		 (x[5] ^ y[5]));
}

/* Does this wait, or is it forgotten? Time may have gone on since `now` was asked. */
INLINE bool still_waits(u64 head, u32 now)
{
	return STASH_STATE(head) >= STASH_WAITING && (s32)(now - STASH_TICK(head)) <= STASH_TICKS;
}

INLINE bool swap_head(u64 *head, u64 old, u64 new)
{
	return __sync_val_compare_and_swap(head, old, new) == old;
}

/* May something wait for a first fragment, whose ports were just remembered? The look is a locked
 * one: it must not come before what was remembered can be seen, since whoever puts a fragment here
 * looks for that afterwards. */
INLINE bool may_be_awaited(struct stash_bucket *bucket, u32 now)
{
	u64 newest = __sync_val_compare_and_swap(&bucket->newest, 0, 0);

	return newest && (s32)(now - (u32)newest) <= STASH_TICKS;
}

/* A first fragment, or one without a first. `early`: enum early. */
INLINE int hand_fragment(struct __sk_buff *skb, const struct packet *p, u32 early)
{
	save_packet(skb, p);
	handoff(skb)->early = early;
	handoff(skb)->fragment_id = p->id;
	return hand_to(skb, FAMILY_PROGRAM(FRAGMENT));
}

/* A first fragment that was not looked at by fragment() yet? */
INLINE bool is_news(const struct packet *p, u32 from)
{
	return p->fragment == FRAGMENT_FIRST && !(from & FRAGMENT_SEEN);
}

INLINE int hand_first(struct __sk_buff *skb, const struct packet *p, u32 early)
{
	remember_fragment(p);
	return hand_fragment(skb, p, early);
}

/* The place to put a fragment: free, else of the one that waits longest. One that is being written
 * is not taken. */
INLINE u32 choose_slot(struct stash_bucket *bucket, u32 now)
{
	u32 i, found = STASH_BUCKET_SLOTS, longest = 0;

#pragma clang loop unroll(disable)
	for (i = 0; i < STASH_BUCKET_SLOTS; i++) {
		u64 head = bucket->heads[i];
		u32 age = now - STASH_TICK(head);

		if (STASH_STATE(head) == STASH_WRITING)
			continue;
		if (STASH_STATE(head) == STASH_FREE)
			return i;
		if (found == STASH_BUCKET_SLOTS || (s32)(age - longest) > 0) {
			found = i;
			longest = age;
		}
	}
	return found;
}

/* Owns a slot of the bucket, or none (STASH_BUCKET_SLOTS): others may be quicker, a few times. */
INLINE u32 take_slot(struct __sk_buff *skb, struct stash_bucket *bucket, u32 now)
{
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < STASH_TRIES; i++) {
		u32 chosen = choose_slot(bucket, now);
		u64 head;

		if (chosen >= STASH_BUCKET_SLOTS)
			break;
		head = bucket->heads[chosen];
		if (STASH_STATE(head) == STASH_WRITING ||
		    !swap_head(&bucket->heads[chosen], head, STASH_WRITING))
			continue;
		if (STASH_STATE(head) == STASH_WAITING) /* in vain */
			count(skb, REASON_FRAGMENT_UNMATCHED);
		return chosen;
	}
	return STASH_BUCKET_SLOTS;
}

/* Two comparisons for the verifier, of which the compiler would make one that says nothing of the
 * number itself. */
INLINE bool fits_slot(u64 *length)
{
	if (!*length)
		return false;
	asm volatile("" : "+r"(*length));
	return *length <= STASH_BYTES;
}

/* Keeps the packet behind its link header. */
INLINE bool fill_slot(struct __sk_buff *skb, struct stash_slot *slot, const struct packet *p)
{
	u64 length = skb->len - p->l3;

	if (!fits_slot(&length))
		return false;
	slot->length = length;
	return !bpf_skb_load_bytes(skb, p->l3, slot->bytes, length);
}

/* Lets a fragment wait. Where its head is, and what that says; 0 if there was no place for it. */
INLINE u64 *put_fragment(struct __sk_buff *skb, const struct packet *p, u32 early, u64 *head)
{
	u32 chosen, n, tick = stash_tick();
	struct stash_bucket *bucket;
	struct stash_place place;
	struct stash_slot *slot;
	bool kept = false;

	find_place(&place, p);
	bucket = stash_buckets.lookup(&place.bucket);
	if (!bucket)
		return 0;
	chosen = take_slot(skb, bucket, tick);
	if (chosen >= STASH_BUCKET_SLOTS)
		return 0;
	n = place.bucket * STASH_BUCKET_SLOTS + chosen;
	slot = stash.lookup(&n);
	if (slot) {
		make_stash_key(&slot->key, skb, p, early & EARLY_GOING_OUT);
		kept = fill_slot(skb, slot, p);
	}
	*head = kept ? STASH_HEAD(early & EARLY_OURS ? STASH_WAITING : STASH_COPY, place.tag, tick)
		     : STASH_FREE;
	bucket->newest = (u64)1 << 32 | tick;
	swap_head(&bucket->heads[chosen], STASH_WRITING, *head);
	return kept ? &bucket->heads[chosen] : 0;
}

/* Through the hook's programs from the beginning. `seen`: FRAGMENT_SEEN, or 0. */
INLINE int begin_again(struct __sk_buff *skb, const struct packet *p, bool going_out, u32 seen)
{
	u32 bare = p->l3 ? 0 : BARE_LINK;

	handoff(skb)->from = p->origin | bare | seen;
	return going_out ? hand_to(skb, FAMILY_PROGRAM(GOING_OUT))
			 : hand_to(skb, FAMILY_PROGRAM(COMING_IN));
}

/* What becomes of a fragment that is early. Where the address may be somebody else's as well, it
 * goes on as it is, and what waits is a copy: nobody's datagram is lost for our sake. */
INLINE int stash_fragment(struct __sk_buff *skb, struct packet *p, u32 early)
{
	bool ours = early & EARLY_OURS;
	u64 *place, head;

	place = put_fragment(skb, p, early, &head);
	if (!place && ours)
		return drop(skb, REASON_FRAGMENT_UNMATCHED);
	/* The first one may have come meanwhile, and not have seen this one. */
	if (place && recall_fragment(p) && swap_head(place, head, STASH_FREE))
		return begin_again(skb, p, early & EARLY_GOING_OUT, 0);
	return ours ? DROP : PASS;
}

/* Makes the packet behind the link header another one. */
INLINE bool become(struct __sk_buff *skb, const struct stash_slot *slot, u32 l3)
{
	u64 length = slot->length;

	if (!fits_slot(&length) || bpf_skb_change_tail(skb, l3 + length, 0))
		return false;
	return !bpf_skb_store_bytes(skb, l3, slot->bytes, length, BPF_F_RECOMPUTE_CSUM);
}

/* A first fragment whose ports are remembered. Nothing can be made of one whose checksum a device
 * is to fill in: that field is in the first one alone. */
INLINE int release_fragments(struct __sk_buff *skb, const struct packet *p, bool going_out)
{
	u32 i, ifindex = skb->ifindex, tick = stash_tick();
	u64 flags = going_out ? 0 : BPF_F_INGRESS;
	struct stash_bucket *bucket;
	struct stash_place place;
	struct stash_key key;
	bool sent = false;

	find_place(&place, p);
	make_stash_key(&key, skb, p, going_out);
	bucket = stash_buckets.lookup(&place.bucket);
	if (!bucket || !may_be_awaited(bucket, tick) || checksum_kind(skb) == CHECKSUM_PARTIAL)
		goto alone;
#pragma clang loop unroll(disable)
	for (i = 0; i < STASH_BUCKET_SLOTS; i++) {
		u32 n = place.bucket * STASH_BUCKET_SLOTS + i;
		u64 head = bucket->heads[i];
		struct stash_slot *slot;
		bool made;

		if (!still_waits(head, tick) || STASH_TAG(head) != place.tag)
			continue;
		slot = stash.lookup(&n);
		if (!slot || !swap_head(&bucket->heads[i], head, STASH_WRITING))
			continue;
		if (!same_datagram(&slot->key, &key)) {
			swap_head(&bucket->heads[i], STASH_WRITING, head);
			continue;
		}
		if (!sent)
			bpf_clone_redirect(skb, ifindex, flags);
		sent = true;
		made = become(skb, slot, p->l3 & L3_MASK);
		swap_head(&bucket->heads[i], STASH_WRITING, STASH_FREE);
		if (made)
			bpf_clone_redirect(skb, ifindex, flags);
		else
			count(skb, REASON_FRAGMENT_UNMATCHED);
	}
	if (sent)
		return DROP; /* all that it carried is under way */
alone:
	return begin_again(skb, p, going_out, FRAGMENT_SEEN);
}

INLINE int fragment(struct __sk_buff *skb)
{
	u32 early = handoff(skb)->early;
	struct packet p;

	if (!restore_packet(skb, &p))
		return DROP;
	p.id = handoff(skb)->fragment_id;
	if (p.fragment == FRAGMENT_LATER)
		return stash_fragment(skb, &p, early);
	return release_fragments(skb, &p, early & EARLY_GOING_OUT);
}
