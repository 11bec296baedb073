/* The lists that the agent gives the programs of table.c in place of frames (ebpf/flowlists.py).
 * The records of flows that move, which programs keep as well, are in types.h. */
#pragma once

#include "types.h"

/* What the agent gives a program of table.c as a frame, and gets back: this, then a list of records
 * of one kind. Each run takes the next. */
struct work {
	__u8 frame[16]; /* for the kernel, which wants a link header */
	__u32 next;
	__u32 count;
	__u32 done;
	__u32 pad;
};

/* A flow, named so that no other is meant later. */
struct listed_flow {
	__u32 place;
	__u32 generation;
	__u32 why; /* enum end_reason */
	__u32 pad;
};

/* A cell of a flow that the agent opens. */
struct listed_cell {
	struct flow_key key;
	ip_addr holder; /* the flow's client */
	ip_addr addr;
	__u64 bytes;
	__u16 port;
	__u16 client_port;
	__u32 packets;
	__u32 ack;
	__u32 seen;
	__u32 backend;
	__u32 service;
	__u32 next;	  /* the next cell's place */
	__u32 place;	  /* this one's, once it is reserved */
	__u32 generation; /* 0: a new one is made */
	__u8 kind;	  /* enum cell_kind */
	__u8 flags;	  /* enum cell_flag */
	__u8 state;	  /* enum cell_condition */
	__u8 pad;
};
