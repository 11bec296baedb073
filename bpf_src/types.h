/* Records of the maps. Python derives its layouts from what the compiler says of these. */
#pragma once

#include <linux/types.h>
#include "consts.h"

/* An address of either family, network byte order; IPv4 is ::ffff:a.b.c.d. */
struct addr {
	__u32 w[4];
};

/* Whole words: it is hashed and compared by them. */
struct frontend_key {
	struct addr addr;
	__u16 port; /* network byte order, as every port in these records */
	__u8 proto;
	__u8 pad[5];
} __attribute__((aligned(8)));

/* An element of the table of frontends, see frontend.h. */
struct frontend_cell {
	struct frontend_key key;
	__u64 word; /* FRONTEND_SERVICE_MASK and the like; without flags the place is free */
};

/* One service port. The region words are switched by single 8-byte stores. */
struct service {
	__u64 cluster;	     /* endpoints anywhere: base | length << 32 | REGION_DROP */
	__u64 local;	     /* endpoints on this node */
	__u64 cluster_table; /* the same sets by hash: base | length << 32 in `hash_tables`, or 0 */
	__u64 local_table;
	__u32 flags;	  /* enum service_flag */
	__u32 affinity;	  /* beats */
	__u32 turn[2];	  /* round-robin, of each set; programs add */
	__u32 near;	  /* so many of the first slots of `cluster` are of near endpoints */
	__u16 spill_over; /* in 1/SPILL_UNIT: how much busier near ones may be than the rest */
	__u16 slow_start; /* for the agent: ticks until a new endpoint has its share */
	__u8 algorithm;	  /* enum algorithm */
	__u8 pad[3];
	__u32 flows_leave; /* for the agent: ticks after its endpoint that a flow ends, plus 1; or 0
			    */
};

/* One of a set's slots, which are equally likely; it stands for two endpoints (Walker's alias
 * method), so that any weights cost one draw. */
struct slot {
	__u32 backend;
	__u16 share; /* of 65536: how often the other one is taken, less 1; 0: never */
	__u16 other; /* slot of the same set that has it */
};

/* Two places of a table from hashes to endpoints. */
struct hash_pair {
	__u32 backend[2];
};

/* One endpoint of one service port: a pod may serve one and have stopped serving another. */
struct backend {
	struct addr addr;
	__u16 port;
	__u8 flags; /* enum backend_flag */
	__u8 generation;
	__u32 service;
	__u32 since;  /* tick of its first moment, or 0; with BACKEND_ENDING, of that of its flows'
			 end */
	__u16 weight; /* 0 counts as 1 here: no slot leads to one that is to get nothing */
	__u16 pad;
};

/* Flow keys and values exist per family, since small entries are what makes many flows cheap. The
 * key is the packet's tuple as it arrives at the hook; the value says what to write. */
#if FAMILY == 6
typedef struct addr ip_addr;
#else
typedef __u32 ip_addr;
#endif

struct flow_key {
	ip_addr src;
	ip_addr dst;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 pad[3];
};

/* One tuple of a flow: what is compared, and what is written into its packets. Content changes only
 * while `head` says CLAIMED or BUSY, with a new generation. */
struct cell_state {
	__u32 link; /* the place of the next cell of the flow's ring; enum cell_flag on top */
	__u32 seen; /* beat of the last packet */
	__u32 packets;
	__u32 ack;     /* TCP, see tcp.h */
	__u64 bytes;   /* see BYTES_MASK */
	__u32 backend; /* id | generation << 24 */
	__u32 service;
};

#if FAMILY == 6
struct cell {
	ip_addr src;
	ip_addr dst;
	__u16 sport;
	__u16 dport;
	__u16 port;
	__u16 client_port;
	ip_addr addr;
	__u64 head;
};
#else
struct cell {
	struct flow_key key;
	__u64 head;
	ip_addr addr;	   /* becomes the destination, or the source if CELL_REPLY */
	__u16 port;	   /* its port */
	__u16 client_port; /* becomes the port of the other side */
	struct cell_state state;
};
#endif

_Static_assert(sizeof(struct cell) == 64, "a cache line");
_Static_assert(sizeof(struct cell_state) == 32, "half of one");

/* One bank of a family's table of flows, as the programs see it whose own one it is. */
struct table {
	__u64 secret[5]; /* of the hash; the same in both */
	__u32 buckets;
	__u32 other_buckets; /* of the other bank; 0: not in use */
	__u32 bank;	     /* 0 or PLACE_BANK */
	__u32 share; /* cells that one source may hold and be like any other; 0: any number */
	__u32 phase; /* enum table_phase, in bank a's record; for the agent alone */
	__u32 pad;
	__u64 evicted; /* flows that made room */
	__u64 refused; /* ... and that got none */
};

/* A flow that moves to the other bank: its old cells, what they had counted when they were copied,
 * and their copies. */
struct listed_old {
	__u64 bytes;
	__u32 packets;
	__u32 place;
	__u32 copy;
	__u32 pad;
};

struct listed_ring {
	__u32 generation;
	__u32 count;
	struct listed_old cells[RING_CELLS];
};

/* What is told of a flow or a packet, see event.h and the enums of consts.h. */
struct flow_event {
	struct addr src;
	struct addr dst;  /* the address that was asked */
	struct addr addr; /* the backend's */
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
	__u64 time; /* ns, of the monotonic clock */
	__u32 service;
	__u32 backend; /* id | generation << 24 */
	__u32 opened;  /* beats */
	__u32 seen;    /* ... of the last packet, of either direction */
	__u32 process; /* whose socket it is, where a socket hook tells it; else 0 */
	__u16 sport;
	__u16 dport;
	__u16 port;	   /* the backend's */
	__u16 client_port; /* that the backend sees */
	__u8 proto;
	__u8 what; /* enum event */
	__u8 why;
	__u8 kind; /* enum cell_kind */
};

_Static_assert(sizeof(struct flow_event) == 120, "with the ring's header, two cache lines");

/* What a CPU keeps for itself. */
struct cpu {
	__u32 opened;
	__u32 pad;
	__u64 random;
	__u64 scratch;
	__u64 unheard; /* events that the ring had no room for */
	__u64 passed;  /* packets that went past the stack */
	__u64 spare[3];
	struct listed_ring ring;
	__u64 more[3];
};

_Static_assert(sizeof(struct cpu) % 64 == 0, "no line is two CPUs'");

struct fragment_key {
	ip_addr src;
	ip_addr dst;
	__u32 id;
	__u32 proto;
};

struct fragment {
	__u16 sport;
	__u16 dport;
};

/* Of a fragment that waits: the datagram, and the hook it came to. */
struct stash_key {
	struct addr src;
	struct addr dst;
	__u32 id;
	__u32 ifindex;
	__u32 proto;
	__u32 going_out;
};

struct stash_slot {
	struct stash_key key;
	__u32 length;
	__u32 pad;
	__u8 bytes[STASH_BYTES]; /* the packet from its IP header on */
};

struct stash_bucket {
	__u64 newest; /* tick at which something last began to wait, with a bit above it; or 0 */
	__u64 heads[STASH_BUCKET_SLOTS]; /* of its slots, see stash.h */
};

/* By service id; added to atomically when a flow starts, ticks and ends. "in" is to the backend. */
struct service_counters {
	__u64 connections;
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
	__u64 live; /* flows that are not over */
};

struct cidr {
	struct addr net;
	struct addr mask;
};

/* What a running system changes. Written by the agent through mmap. */
struct config {
	__u32 flags;	   /* enum config_flag */
	__u32 syn_timeout; /* beats, all of them */
	__u32 established_timeout;
	__u32 closing_timeout;
	__u32 reset_timeout;
	__u32 time_wait_timeout;
	__u32 datagram_timeout;	       /* no reply yet */
	__u32 datagram_stream_timeout; /* replied */
	__u16 port_min;		       /* source ports that flows are given, host byte order */
	__u16 port_max;
	__u32 cidr_count4;
	__u32 cidr_count6;
	struct addr node4; /* the node's primary addresses, or zero */
	struct addr node6;
	struct cidr cidr4[MAX_SERVICE_CIDRS];
	struct cidr cidr6[MAX_SERVICE_CIDRS];
	__u64 host_netns; /* cookie of the node's network namespace */
	__u32 pod_cidr_count4;
	__u32 pod_cidr_count6;
	struct cidr pod_cidr4[MAX_POD_CIDRS];
	struct cidr pod_cidr6[MAX_POD_CIDRS];
	__u32 agent_beat;    /* at which the agent last lived; 0: there is none */
	__u16 node_port_max; /* the node's own flows have the ports from port_max to here */
	__u16 pad;
	__u32 fin_wait_timeout; /* of closes that nobody acknowledges: minutes */
	__u32 agent_timeout;	/* an agent that has not said for so long that it lives is gone */
	__u32 events_until;	/* before this beat somebody listens to events; 0: nobody */
	__u32 fast_open;	/* packets of established flows may pass the stack by (fast.h) */
	__u32 fast_until;	/* beat up to which they may */
	__u32 fast_epoch;	/* another whenever a hop may have changed */
	__u32 fast_mtu;		/* the least of any route: the kernel says it of none (hop.h) */
	__u32 xdp;		/* enum xdp_flag */
	__u16 dsr_port; /* of outer UDP headers, network byte order; 0: none are taken off */
	__u16 pad2[3];
	struct addr node_port4; /* any of the node's addresses that serve node ports, or zero */
	struct addr node_port6;
};

/* What the node is called on a device: its first address there of each family, or zero. */
struct device {
	struct addr node4;
	struct addr node6;
};

/* A device as frames at its driver need to know it. */
struct xdp_device {
	__u16 mac[3];
	__u16 flags; /* enum xdp_device_flag */
};

/* Where packets from or to an address pass by the stack, as the kernel said to this CPU (hop.h). */
struct hop {
	ip_addr addr;
	ip_addr next;  /* the neighbour */
	__u32 epoch;   /* config.fast_epoch then */
	__u32 ifindex; /* where its packets come in, or leave */
	__u16 mtu;
	__u8 role;     /* enum hop_role */
	__u8 flags;    /* enum fast_flag; none: they take the stack */
	__u8 macs[12]; /* destination and source */
};

/* Where frames to an address go next, as the kernel said to this CPU (xdphop.h). */
struct xdp_hop {
	ip_addr addr;
	ip_addr source; /* the node's address on the way there; zero: nobody has asked for it */
	__u32 in;	/* the device that they came by */
	__u32 epoch;	/* config.fast_epoch then */
	__u32 out;
	__u32 macs[3]; /* the next frame's, destination and source */
	__u16 own[3];  /* of the device that they came by */
	__u16 mtu;
};

/* A client is its address, or a socket's network namespace. */
struct affinity_key {
	struct addr client;
	__u32 service;
};

struct affinity {
	__u32 backend; /* id | generation << 24 */
	__u32 seen;    /* beat of the last new flow */
};

/* For the longest prefix: 32 bits of service, then the client's address. */
struct source_range {
	__u32 prefix_length;
	__u32 service;
	struct addr client;
};

/* What a socket was told to call, and by which name its owner knows that. */
struct socket_key {
	__u64 cookie;
	struct addr addr;
	__u16 port;
	__u16 pad[3];
};

struct socket_peer {
	struct addr addr; /* the service's */
	__u16 port;
	__u8 proto; /* of the socket; 0: noted by a version that did not say */
	__u8 flags; /* enum peer_flag */
	__u32 service;
	__u32 asked; /* beat of the last datagram that was sent to it by this name */
	__s32 open;  /* how many of those nobody has answered, as far as programs see */
};

struct name_key {
	__u32 service;
};

struct name {
	char text[160]; /* namespace/service:port/protocol, zero-terminated */
};
