/* bcc includes this first; it looks for the options of a kernel that has bpf(). */
#pragma once
#define CONFIG_BPF_SYSCALL 1
