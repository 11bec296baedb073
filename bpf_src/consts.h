/* Names of numbers shared by the programs and, through the compiler's enum listing, by Python. */
#pragma once

/* What was decided about a packet. The same names, in lower case and without the prefix, are used
 * by `lbctl trace`, the metrics and the documentation. Append only: counters survive an update. */
enum reason {
	REASON_NOT_SERVICE,	   /* no service address: untouched */
	REASON_FORWARDED,	   /* a backend was chosen */
	REASON_NO_ENDPOINT,	   /* the service has no usable endpoint: refused */
	REASON_NO_LOCAL_ENDPOINT,  /* policy Local and none here, but some elsewhere: dropped */
	REASON_SOURCE_RANGE,	   /* loadBalancerSourceRanges does not allow the client: dropped */
	REASON_UNKNOWN_PORT,	   /* a live ClusterIP, but nobody serves this port: refused */
	REASON_UNALLOCATED,	   /* inside a service range, but no service has it: dropped */
	REASON_NO_FLOW_RESET,	   /* TCP in mid-stream, no flow: reset */
	REASON_NO_FLOW_PASSED,	   /* the same while kube-proxy may own it: untouched */
	REASON_MALFORMED,	   /* a header contradicts itself: dropped when for a service */
	REASON_TRUNCATED,	   /* a header ends beyond the packet */
	REASON_TOO_MANY_HEADERS,   /* more IPv6 extension headers than are followed */
	REASON_FRAGMENT_UNMATCHED, /* a later fragment that waited for its first in vain: dropped */
	REASON_FLOWS_FULL,	   /* no room for a flow: dropped, the client retries */
	REASON_PORTS_EXHAUSTED,	   /* ambiguous or hairpin, and no free source port: dropped */
	REASON_ICMP_TRANSLATED,	   /* an ICMP error about a flow */
	REASON_FLOW_MOVED,	   /* a UDP flow left a backend that stopped serving */
	REASON_SOURCE_TRANSLATED,  /* a client port was changed to keep two flows apart */
	REASON_REWRITE_FAILED,	   /* the kernel would not let us change the packet: dropped */
	REASON_INTERNAL,	   /* a map entry that must exist does not, or a tail call failed */
	REASON_LEFT_TO_STACK, /* at a service's address, but the node's own business: untouched */
	REASON_ENDPOINT_IS_NODE, /* from the node's own socket, and no endpoint elsewhere: refused
				  */
	REASON_NODE_UNROUTED, /* from the node's own socket, and no route to the backend: dropped */
	REASON_PORT_REUSED, /* masqueraded by a port that the backend may still hold: it may wait */
	REASON_DSR_TOO_BIG, /* with an outer header too big for the way: its sender is told */
	REASON_DSR_UNROUTED, /* no route to the endpoint for what goes there whole: dropped */
	REASON_DSR_UNKNOWN,  /* came whole, but no endpoint here serves that address: untouched */
	REASON_MAX,
};

/* frontend.flags */
enum frontend_flag {
	FRONTEND_CLUSTER_IP = 1,
	FRONTEND_NODE_PORT = 2,
	FRONTEND_EXTERNAL_IP = 4,
	FRONTEND_LOAD_BALANCER = 8,
	FRONTEND_ADDRESS = 16, /* port 0, protocol 0: the address itself is a live ClusterIP */
	FRONTEND_SOURCE_RANGES = 32,
	FRONTEND_SHARED = 64,	/* the node itself has the address, or another proxy does */
	FRONTEND_SOCKETS = 128, /* on loopback: for sockets of the node alone, never for packets */
	FRONTEND_OUTER = 256, /* port 0, protocol 0: ... or has frontends that are no ClusterIP's */
	FRONTEND_ENDPOINT = 512, /* protocol 0: no frontend, but of some services an endpoint */
};

/* In place of a protocol, with port 0: an address that endpoints have. */
#define FRONTEND_ENDPOINT_ADDRESS 255

/* frontend_cell.word: what a key leads to. The generation is the place's, one more for each key
 * that left it. Of an endpoint, how many elements of `backends` have it stands for the service. */
#define FRONTEND_SERVICE_MASK 0xffffff
#define FRONTEND_FLAGS_SHIFT 24
#define FRONTEND_FLAGS_MASK 0xffff
#define FRONTEND_GENERATION_SHIFT 40

/* service.flags */
enum service_flag {
	SERVICE_INTERNAL_LOCAL = 1, /* internalTrafficPolicy: Local */
	SERVICE_EXTERNAL_LOCAL = 2, /* externalTrafficPolicy: Local */
	SERVICE_AFFINITY = 4,	    /* sessionAffinity: ClientIP */
	SERVICE_CHOOSES = 8,	    /* not simply any endpoint of the set: see algorithm.h */
	SERVICE_PICKS_UP = 16,	    /* TCP in mid-stream that has no flow gets one */
	SERVICE_DSR = 32,	    /* from outside to other nodes' endpoints: see dsr.h */
};

/* service.algorithm */
enum algorithm {
	ALGORITHM_RANDOM,
	ALGORITHM_ROUND_ROBIN,
	ALGORITHM_LEAST_CONNECTIONS,
	ALGORITHM_MAGLEV,      /* from a table, by client, its port, the service's port */
	ALGORITHM_SOURCE_HASH, /* from a table, by the client's address alone */
};

/* service.spill_over: once as busy. */
#define SPILL_UNIT 64

/* backend.flags */
enum backend_flag {
	BACKEND_SERVING = 1, /* may carry new flows, and UDP flows may stay */
	BACKEND_LOCAL = 2,   /* runs on this node */
	BACKEND_IN_CLUSTER = 4,
	BACKEND_IN_LOCAL = 8,
	BACKEND_CLOSED = 16, /* of weight 0: keeps what it has, gets nothing new */
	BACKEND_ENDING = 32, /* it left, and its flows are to end at `since` */
};

/* The state of a cell, the lowest byte of cell.head; of a flow, that of its forward cell. Their
 * order is used. */
enum cell_condition {
	STATE_FREE,
	STATE_CLAIMED,		/* taken, and the tuple not yet written */
	STATE_BUSY,		/* the tuple is there, but no flow yet */
	STATE_DEAD,		/* ended, and about to be free */
	STATE_SYN,		/* opening: a SYN was seen, and perhaps its answer */
	STATE_LIVE = STATE_SYN, /* the first in which a cell is found */
	STATE_ESTABLISHED,
	STATE_CLOSING,	 /* TCP, half closed; or it may be that a RST ended it */
	STATE_FIN_WAIT,	 /* TCP, both FINs seen, or one that nobody acknowledged yet */
	STATE_RESET,	 /* TCP, RST seen */
	STATE_TIME_WAIT, /* TCP finished; the tuple rests for a while */
	STATE_DATAGRAM,	 /* UDP and SCTP, notes, ports of fragments */
};
#define STATE_MASK 0x3f
#define HEAD_MOVED 0x40 /* the flow's cell is in the other bank now, where `link` says */

/* cell.head: state and HEAD_MOVED below, then these. */
#define HEAD_KIND_SHIFT 8 /* enum cell_kind */
#define HEAD_TAG_SHIFT 16 /* the cell's byte in the control word */
#define HEAD_PROTO_SHIFT 24
#define HEAD_GENERATION_SHIFT 32

/* What a cell is for: bits. A flow's forward cell has none of the first two. */
enum cell_kind {
	CELL_REPLY = 1,	      /* writes the source, else the destination */
	CELL_SIDE = 2,	      /* one of the two more that a masqueraded flow has */
	CELL_MASQUERADED = 4, /* the backend sees the node's address, see masquerade.h */
	CELL_DIRECT = 8,      /* no service: only the client's port is changed, see direct.h */
	CELL_NODE = 16,	      /* of the node's own socket, see node.h */
	CELL_NOTE = 32,	      /* alone: a tuple that a conversation past services holds */
	CELL_FRAGMENT = 64,   /* alone: the ports of a first fragment */
	CELL_DSR = 128,	      /* alone: packets go to the endpoint whole, and its answers never come
				 here, see dsr.h; of a reply: its flow's come so, see arrive.h */
};

/* What the packets of a cell's direction have said: the top byte of cell_state.link. */
enum cell_flag {
	CELL_FIN = 1,	   /* this direction sent a FIN */
	CELL_FIRST = 2,	   /* ... not knowing of the other's: it will hold TIME_WAIT */
	CELL_RST = 4,	   /* this direction's RST is why the state is STATE_RESET */
	CELL_ACKED = 8,	   /* this direction acknowledged the other's FIN */
	CELL_REPLIED = 16, /* this direction has answered */
};

/* A cell's place: bank and index. */
#define PLACE_INDEX_MASK 0x7fffff
#define PLACE_BANK 0x800000
#define LINK_PLACE_MASK 0xffffff
#define LINK_FLAGS_SHIFT 24
#define CELLS_PER_BUCKET 8
#define RING_CELLS 4 /* at most */

/* Where a table is in its growth, from one bank into the other; each is the next one's beginning.
 * ebpf/growth.py takes it through them. */
enum table_phase {
	PHASE_A,       /* all is in bank a */
	PHASE_A_LOOKS, /* programs that open in a begin to look in b */
	PHASE_A_LEFT,  /* programs that open in b are put in place; then flows move */
	PHASE_B,       /* the same with the banks' names exchanged */
	PHASE_B_LOOKS,
	PHASE_B_LEFT,
	PHASE_MAX,
};

/* cell_state.bytes: above them a half of the beat that the flow was opened in. */
#define BYTES_MASK 0xffffffffffff
#define OPENED_SHIFT 48

/* A flow's generation: a count, and the CPU that opened it. */
#define GENERATION_SHIFT 10
#define GENERATION_CPU_MASK 0x3ff

#define HOLDER_BITS 14 /* counters of cells by source */

/* flow_event.what */
enum event {
	EVENT_OPENED,
	EVENT_ENDED,	   /* closed, or forgotten while it was open: an enum end_reason says why */
	EVENT_TURNED_AWAY, /* a packet, or a socket's call, goes no further: an enum reason */
};

/* Why a flow ended. */
enum end_reason {
	END_CLOSED,   /* TCP, both sides */
	END_RESET,    /* TCP */
	END_IDLE,     /* nothing was seen of it for as long as its state allows */
	END_EVICTED,  /* made room for another */
	END_REPLACED, /* its client began anew on the same ports */
	END_BACKEND,  /* its backend stopped serving */
	END_DELETED,  /* by a person or a policy */
	END_MAX,
};

/* socket_peer.flags */
enum peer_flag {
	PEER_DIRECT = 1, /* the backend was asked by its own address since, and answers by that */
	PEER_OF_POD = 2, /* the socket is of another network namespace than the node's */
};

/* config.flags */
enum config_flag {
	CONFIG_PASS_MIDSTREAM = 1,	  /* kube-proxy may own TCP without a flow */
	CONFIG_MASQUERADE_ALL = 2,	  /* ClusterIP traffic too */
	CONFIG_SOCKET_HOST = 4,		  /* the socket hooks serve the node's own processes */
	CONFIG_SOCKET_ALL = 8,		  /* ... and pods */
	CONFIG_SOCKET_PEERS = 16,	  /* TCP's getpeername shows the service */
	CONFIG_MASQUERADE_BY_DEVICE = 32, /* as on kernels that tell no route's source */
	CONFIG_DSR_IPIP = 128,		  /* outer headers of DSR have no UDP */
};

/* A region word: where a set of backends lies in `slots`. One 8-byte store switches the set. */
#define REGION_LENGTH_SHIFT 32
#define REGION_LENGTH_MASK 0xffffff
#define REGION_DROP (1ULL << 63)   /* empty by policy: drop, where an empty set refuses */
#define REGION_CLOSED (1ULL << 62) /* all endpoints have weight 0: refuse */

/* A backend reference in a flow: id, and the generation the id had then. */
#define BACKEND_ID_MASK 0xffffff
#define BACKEND_GENERATION_SHIFT 24

/* Where a packet comes from, which decides scope and masquerade. */
enum origin { ORIGIN_POD, ORIGIN_NET, ORIGIN_NODE, ORIGIN_DSR };
#define BARE_LINK 4	/* added to the origin: a device without link header */
#define FRAGMENT_SEEN 8 /* ... a first fragment for which nothing waits */

/* Past the stack (fast.h): what the agent says of a device; and what a hop is good for. */
enum fast_flag {
	FAST_FROM = 1,	/* what comes from there: nobody else would have a say about it */
	FAST_NEIGH = 2, /* what goes there may be given to the device, for a neighbour */
	FAST_PEER = 4,	/* ... or straight to the pod behind it */
	FAST_LEAVE = 8, /* what leaves by it: nobody else would have a say about it */
};
#define HOP_BITS 11	/* hops that a CPU keeps, of each family */
#define XDP_HOP_BITS 12 /* ... for drivers (xdphop.h) */

#define MAX_SERVICE_CIDRS 4
#define MAX_POD_CIDRS 4
#define MAX_IPV6_HEADERS 6 /* extension headers followed */
#define SOURCE_PORT_TRIES 16
#define MASQUERADE_PORT_TRIES 16
#define HANDSHAKE_BEATS 4   /* before one that nobody goes on with gives its port away: 1 to 10 s */
#define NODE_CHOICE_TRIES 4 /* to find a backend that is not the node itself */
#define DSR_ENDPOINTS 256   /* of one service port on one node, that DSR can lead to */

/* Where early fragments wait (stash.h): slots by buckets, and the longest packet kept. */
#define STASH_BUCKETS 16
#define STASH_BUCKET_SLOTS 8
#define STASH_SLOTS (STASH_BUCKETS * STASH_BUCKET_SLOTS)
#define STASH_BYTES 2048
#define STASH_TRIES 4 /* to take a slot that others want too */

/* Where the trace variant leaves its answer: struct handoff's place in struct __sk_buff, and words
 * of it (handoff.h). */
#define HANDOFF_PLACE 48
enum handoff_word { HANDOFF_REASON, HANDOFF_SERVICE, HANDOFF_MASQUERADED };
enum traced_way { TRACED_PLAIN, TRACED_MASQUERADED, TRACED_DSR };

/* Slots of the program array: the parts a packet is handed to by tail call, per family. */
enum program {
	PROGRAM_FROM_POD4, /* from a pod: plain packets of flows that are known, and what is none of
			      ours */
	PROGRAM_FROM_POD6,
	PROGRAM_TO_POD4, /* to a pod, the same */
	PROGRAM_TO_POD6,
	PROGRAM_FROM_NET4, /* from an uplink, the same */
	PROGRAM_FROM_NET6,
	PROGRAM_TO_NET4,
	PROGRAM_TO_NET6,
	PROGRAM_COMING_IN4, /* from a pod or an uplink: all that is not plain */
	PROGRAM_COMING_IN6,
	PROGRAM_GOING_OUT4,
	PROGRAM_GOING_OUT6,
	PROGRAM_FOLLOW4, /* of a flow that is known, and not plain */
	PROGRAM_FOLLOW6,
	PROGRAM_TRACK4, /* TCP packets that open or close a flow */
	PROGRAM_TRACK6,
	PROGRAM_BEGIN_ANEW4, /* the packet's flow is over */
	PROGRAM_BEGIN_ANEW6,
	PROGRAM_CONNECT4, /* to a service, no flow yet */
	PROGRAM_CONNECT6,
	PROGRAM_OPEN4, /* ... and a backend was chosen */
	PROGRAM_OPEN6,
	PROGRAM_RETRY4, /* ... and another CPU may be opening it */
	PROGRAM_RETRY6,
	PROGRAM_MAKE_WAY4, /* ... and its reply tuple is taken */
	PROGRAM_MAKE_WAY6,
	PROGRAM_DIRECT4, /* straight to an address that is also a backend */
	PROGRAM_DIRECT6,
	PROGRAM_ICMP_FROM_POD4, /* errors about a flow */
	PROGRAM_ICMP_FROM_POD6,
	PROGRAM_ICMP_TO_POD4,
	PROGRAM_ICMP_TO_POD6,
	PROGRAM_REFUSE4, /* answers with RST or port unreachable */
	PROGRAM_REFUSE6,
	PROGRAM_MASQUERADE4, /* a new flow whose backend is to see the node's address */
	PROGRAM_MASQUERADE6,
	PROGRAM_TAKE_PORT4, /* ... and no port is free */
	PROGRAM_TAKE_PORT6,
	PROGRAM_OPEN_MASQUERADED4, /* ... once it has a port */
	PROGRAM_OPEN_MASQUERADED6,
	PROGRAM_SCTP4, /* other ports for a packet whose checksum is a CRC */
	PROGRAM_SCTP6,
	PROGRAM_OUTGOING4, /* from an address that is a service's or the node's, but no flow's */
	PROGRAM_OUTGOING6,
	PROGRAM_NODE_OPEN4, /* from the node's own socket, no flow yet: chooses */
	PROGRAM_NODE_OPEN6,
	PROGRAM_NODE_FLOW4, /* ... chosen: opens it */
	PROGRAM_NODE_FLOW6,
	PROGRAM_NODE_SEND4, /* ... translated: to the device that leads to the backend */
	PROGRAM_NODE_SEND6,
	PROGRAM_FRAGMENT4, /* one that is early, or the first, for which others may wait */
	PROGRAM_FRAGMENT6,
	PROGRAM_CHOOSE4, /* to a service that does not choose simply by chance */
	PROGRAM_CHOOSE6,
	PROGRAM_GO_PAST4, /* plain packets of flows that may go past the stack */
	PROGRAM_GO_PAST6,
	PROGRAM_TRACK_PAST4, /* ... of those, a SYN-ACK */
	PROGRAM_TRACK_PAST6,
	PROGRAM_LEARN_HOPS4, /* of a flow that may go past the stack, but nobody has asked where to
			      */
	PROGRAM_LEARN_HOPS6,
	PROGRAM_TELL4, /* goes no further, which somebody wants to know */
	PROGRAM_TELL6,
	PROGRAM_OPEN_DSR4, /* to a service, no flow yet, and it will go to the endpoint whole */
	PROGRAM_OPEN_DSR6,
	PROGRAM_ENCAPSULATE4, /* goes to the endpoint whole */
	PROGRAM_ENCAPSULATE6,
	PROGRAM_TOO_BIG4, /* ... but does not fit */
	PROGRAM_TOO_BIG6,
	PROGRAM_OUTER_ERROR4, /* ... but a router has said that it does not */
	PROGRAM_OUTER_ERROR6,
	PROGRAM_ARRIVE4, /* came so, to an endpoint here */
	PROGRAM_ARRIVE6,
	PROGRAM_ARRIVE_NEW4, /* ... and begins */
	PROGRAM_ARRIVE_NEW6,
	PROGRAM_ARRIVE_ERROR4, /* ... about what that has answered */
	PROGRAM_ARRIVE_ERROR6,
	PROGRAM_MAX,
};

/* Slots of the array of what drivers run. */
enum xdp_program { XDP_FORWARD4, XDP_FORWARD6, XDP_PROGRAM_MAX };

/* config.xdp: what drivers may do with packets of flows, the rest is TC's. */
enum xdp_flag {
	XDP_SENDS_ON = 1,     /* send them on, up to config.fast_until */
	XDP_SENDS_ALWAYS = 2, /* ... whoever lives, and whoever would have a say about them */
	XDP_KEEPS_HOPS = 4,   /* go by what the kernel said of a destination, up to then */
};

/* xdp_device.flags */
enum xdp_device_flag {
	XDP_DEVICE_SENDS = 1, /* transmits frames that other drivers have received */
};

/* Functions that programs call (subprogram.h), by the number that stands for them until linked. */
enum subprogram {
	SUBPROGRAM_FIND = 1001, /* the cell of a tuple */
	SUBPROGRAM_CLAIM,	/* a cell for a tuple */
	SUBPROGRAM_SET_STATE,	/* of a flow */
	SUBPROGRAM_END,		/* a flow */
	SUBPROGRAM_IDLE,	/* is a flow? */
	SUBPROGRAM_FRONTEND,	/* what an address and port is */
	SUBPROGRAM_ENDPOINT,	/* a service's, on this node, by its address */
	SUBPROGRAM_MSS,		/* where TCP's options have it */
};

/* The unit of time of all that is kept: a beat is 256 jiffies, 0.25 to 2.6 s by the kernel's HZ. */
#define BEAT_SHIFT 8
