/* From an address and port to a service, and from a service to one of its backends. */
#pragma once

struct choice {
	ip_addr addr;
	__u16 port;
	__u16 client_port; /* what the backend sees, if not the client's own */
	__u32 backend;	   /* id | generation << 24 */
	__u32 service;
	__u32 flags; /* enum flow_flag, for the entries to make */
};

/* A hash element can be reused under its reader, and a walk over the bucket can be led astray: the
 * value must name its own key, and a miss is believed when it comes twice. */
INLINE bool find_frontend(struct frontend_key *key, struct frontend *out)
{
#pragma unroll
	for (int i = 0; i < 3; i++) {
		struct frontend *f = frontends.lookup(key);

		if (!f)
			continue;
		*out = *f;
		if (out->self.addr.w[3] == key->addr.w[3] && out->self.port == key->port &&
		    out->self.proto == key->proto && out->self.addr.w[2] == key->addr.w[2] &&
		    out->self.addr.w[1] == key->addr.w[1] && out->self.addr.w[0] == key->addr.w[0])
			return true;
	}
	return false;
}

INLINE void make_frontend_key(struct frontend_key *key, const ip_addr *addr, u16 port, u8 proto)
{
	widen(&key->addr, addr);
	key->port = port;
	key->proto = proto;
	key->pad = 0;
}

/* One backend of the set, each as likely as any other. 0 or the reason why there is none. */
INLINE int choose_backend(u32 service, struct choice *choice)
{
	struct service *s = services.lookup(&service);
	struct backend *b;
	struct slot *slot;
	u64 region;
	u32 length, index, id;

	if (!s)
		return REASON_INTERNAL;
	region = *(volatile u64 *)(s->flags & SERVICE_INTERNAL_LOCAL ? &s->local : &s->cluster);
	length = region >> REGION_LENGTH_SHIFT & REGION_LENGTH_MASK;
	if (!length)
		return region & REGION_DROP ? REASON_NO_LOCAL_ENDPOINT : REASON_NO_ENDPOINT;
	index = (u32)region + (u32)((u64)bpf_get_prandom_u32() * length >> 32);
	slot = slots.lookup(&index);
	if (!slot)
		return REASON_INTERNAL;
	id = slot->backend;
	b = backends.lookup(&id);
	if (!b)
		return REASON_INTERNAL;
	narrow(&choice->addr, &b->addr);
	choice->port = b->port;
	choice->backend = id | (u32)b->generation << BACKEND_GENERATION_SHIFT;
	choice->service = service;
	return 0;
}
