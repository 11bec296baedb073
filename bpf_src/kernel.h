/* What the kernel's own headers would give: byte order, and the errors its map helpers return. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/types.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) ((u16)__builtin_bswap16(x))
#define htonl(x) ((u32)__builtin_bswap32(x))
#else
#define htons(x) ((u16)(x))
#define htonl(x) ((u32)(x))
#endif
#define ntohs(x) htons(x)
#define ntohl(x) htonl(x)

#define offsetof(type, member) __builtin_offsetof(type, member)

#define EFAULT 14
#define EINVAL 22
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

/* bcc declares these as 32 bits wide. */
static u64 (*socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
static u64 (*netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;
/* ... and these without an argument, or not at all. */
static int (*redirect_neigh)(u32 ifindex, void *next_hop, int length,
			     u64 flags) = (void *)BPF_FUNC_redirect_neigh;
static int (*redirect_peer)(u32 ifindex, u64 flags) = (void *)BPF_FUNC_redirect_peer;
