/* What every unit is made of: inlined functions, programs, verdicts, names by family. */
#pragma once

#include <uapi/linux/bpf.h>
#include <linux/pkt_cls.h>

/* bcc knows no calls between functions; subprogram.h has ours. */
#define INLINE static __attribute__((always_inline)) inline
#define PASS TC_ACT_UNSPEC /* lets the next program on the interface run; TC_ACT_OK would not */
#define DROP TC_ACT_SHOT

#define PROGRAM(name) int name(struct __sk_buff *skb)
#define XDP_PROGRAM(name) int name(struct xdp_md *ctx)

#if FAMILY == 6
#define FAMILY_NAME(name) name##6
#define FAMILY_PROGRAM(name) PROGRAM_##name##6
#else
#define FAMILY_NAME(name) name##4
#define FAMILY_PROGRAM(name) PROGRAM_##name##4
#endif
