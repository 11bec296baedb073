/* Numbers for the tests of ebpf/. */
#pragma once

enum program { PROGRAM_TAIL4, PROGRAM_TAIL6, PROGRAM_MAX };
enum reason { REASON_SEEN, REASON_TAIL, REASON_MAX };

#define MASK ((1ULL << 40) - 1)
