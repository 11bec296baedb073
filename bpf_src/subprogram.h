/* Functions that programs call instead of having them inlined: long code that many need. It is
 * compiled once, and the verifier looks at it once per program, not on every way that leads there.
 *
 * bcc can neither call nor link functions. To it such a function is another program, sub_NAME, and
 * a call of it one of a helper with a number below zero; ebpf/compile/linker.py makes one program
 * of both. bcc takes a second argument for a kprobe's, so there is one: a record on the caller's
 * stack, in and out, without pointers. The kernel verifies a function by itself only if it knows
 * that record's size (Linux 5.12), which size_NAME tells. Every byte of it must be written. */
#pragma once

#define CALLED(name, type, number) static u64 (*call_##name)(type *) = (void *)-(number)
#define SIZED(name, type)                                                                          \
	u64 size_##name(void)                                                                      \
	{                                                                                          \
		return sizeof(type);                                                               \
	}
#define SUBPROGRAM(name, type) u64 sub_##name(type *own)
