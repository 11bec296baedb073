/* What the tables in mapped memory are made of: a hash with a secret, and control words, which have
 * a byte of the hash of each key in a bucket of eight. */
#pragma once

#define ROLLED _Pragma("clang loop unroll(disable)")
/* The compiler moves no load or store across; x86 keeps their order itself. */
#define ORDERED asm volatile("" ::: "memory")
#define LOAD(p) (*(volatile __typeof__(*(p)) *)(p))

/* A word of eight bytes as a vector: which bytes are zero? Exact for the lowest one alone. */
#define BYTES_ONE 0x0101010101010101ULL
#define BYTES_HIGH 0x8080808080808080ULL
#define LOWEST_ZERO(x) (((x)-BYTES_ONE) & ~(x)&BYTES_HIGH)
#define WHICH_BYTE(z) ((u32)(((((((z) & -(z)) >> 7) - 1) & BYTES_ONE) * BYTES_ONE) >> 56) & 7)

/* NH of UMAC: whatever keys an attacker picks, without the secret two of them collide with a
 * probability of 2^-32. */
#define NH(x, k) ((u64)(u32)((u32)(x) + (u32)(k)) * (u64)(u32)((u32)((x) >> 32) + (u32)((k) >> 32)))
