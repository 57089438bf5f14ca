/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The structs that programs and user space share, and the numbers that both
 * use. kersey_loader/layout.py holds the same in Python; every compilation
 * asserts that sizes, offsets and values agree. No padding is left implicit:
 * it would be part of a map key, or leak.
 */
#pragma once

enum admission {
	ADMISSION_OFF = 0,    /* count and check senders only */
	ADMISSION_STRICT = 1, /* both directions seen through the stack */
	ADMISSION_DIRECT = 2, /* and: a TCP SYN between pods admits at once */
};

enum spoof_check {
	SPOOF_OFF = 0,
	SPOOF_COUNT = 1,
	SPOOF_DROP = 2,
};

/* What the XDP program on the uplink is there for, besides checking senders. */
enum wire_duty {
	WIRE_ATTACHED = 1,     /* it is on cfg's uplink: its mark is believed */
	WIRE_DECAPSULATES = 2, /* it opens packets of admitted flows */
	WIRE_REDIRECTS = 4,    /* it hands direct peers' packets to pods */
};

/* cfg[0]. Written by user space only. */
struct config {
	u64 max_age;        /* jiffies until a direction is witnessed again */
	u64 witness_window; /* jiffies between sighting and witness */
	u32 network;        /* base of the pod network, host byte order */
	u32 subnet_shift;   /* 32 - prefix length of a lease */
	__be32 node;        /* our address on the uplink */
	__be32 vni;         /* as on the wire: VNI in the upper 24 bits */
	u32 uplink;         /* ifindex */
	u32 own_subnet;     /* index of our own lease in peer_index */
	u32 subnets;        /* number of subnets in the network */
	u16 generation;     /* flows of another generation are void */
	u16 mtu;            /* of the overlay: bytes of inner IP packet */
	u16 pod_mtu;        /* the smallest of any pod port, bytes */
	__be16 port;        /* UDP port of the tunnel */
	u16 source_port;    /* first of the range of outer source ports */
	u16 source_ports;   /* size of that range */
	u8 admission;       /* enum admission */
	u8 spoof;           /* enum spoof_check */
	u8 vtep_mac[6];
	u16 hertz;          /* jiffies a second; for user space */
	u8 wire;            /* enum wire_duty, added up; 0: no XDP program */
	u8 reserved;
	u32 carrier;        /* ifindex of a proxy's TUN device; 0: none */
	u32 overlay;        /* ifindex of the overlay device; 0: none */
	u8 uplink_mac[6];   /* what the XDP program takes frames for */
	u8 unused[6];
};

/*
 * peers[slot]: one remote lease. Written once before its slot number is
 * published in peer_index, and left alone until a second after it was
 * withdrawn, so that no packet sees half of it.
 */
struct peer {
	__be32 node;          /* its address: outer destination and source */
	__be32 previous_node; /* still accepted as a sender; 0 if none */
	__be32 nexthop;       /* on the uplink; 0: ask the routing table */
	u32 partial_sum;      /* of the outer IPv4 header; see lib/rewrite.h */
	u32 counter;          /* index into peer_counters */
	u8 vtep_mac[6];
	u8 direct;       /* 1: reached without a tunnel, on the same link */
	u8 reserved[37]; /* the template has a cache line of its own */
	u64 template[8];      /* all headers in front of the inner packet */
};

/* A flow as one pod sees it: local is the pod, remote the other node's. */
struct flow_key {
	__be32 local;
	__be32 remote;
	__be16 local_port;
	__be16 remote_port;
	u8 protocol;
	u8 direction; /* enum direction in sightings, 0 in flows */
	u16 reserved;
};

enum direction {
	EGRESS = 0,
	INGRESS = 1,
};

/*
 * flows[flow_key]: what was witnessed. A stamp is generation << 48 | jiffies:
 * one word, so that a flush and an age are read together; 0 is never. A u32
 * of jiffies would be wrong from boot (INITIAL_JIFFIES is -300 s).
 */
struct flow {
	u64 egress;
	u64 ingress;
	u32 egress_port;  /* ifindex of the pod port that sent it */
	u32 ingress_port; /* ifindex of the pod port that received it */
	u8 pod_mac[6];    /* the Ethernet header that the stack put in */
	u8 gateway_mac[6]; /* front of a packet to the pod */
	u16 direct;       /* 1: admitted by its SYN, never re-validated */
	__be16 source_port; /* of the outer header; 0: not computed yet */
	u16 egress_kind;  /* DSCP << 8 and TTL of the packets witnessed: a rule */
	u16 ingress_kind; /* may change those of another kind */
	u32 port_alive; /* jiffies when ingress_port was seen alive, low half */
};

/*
 * sightings[flow_key with a direction]: the last packet seen entering the
 * stack. fact is jiffies << 32 | generation << 16 | TOS << 8 | TTL, one word
 * for the same reason; its age is taken modulo 2^32.
 */
struct sighting {
	u64 fact;
	u32 port; /* ifindex of the pod port, egress only */
	u32 reserved;
};

/*
 * endpoints[pod address]: which port a pod is at, for direct admission only.
 * True while the port that the stack delivers to and the port that the pod
 * sends from are the same one: a flooded frame or a forged source shows only
 * one of the two.
 */
struct endpoint {
	u32 delivered_port; /* ifindex */
	u32 sent_port;      /* ifindex */
	u8 pod_mac[6];
	u8 gateway_mac[6];
	u32 reserved;
};

/* peer_counters[counter]: packets as on the wire, bytes of inner packets. */
struct traffic {
	u64 fast_sent_packets;
	u64 fast_sent_bytes;
	u64 slow_sent_packets;
	u64 slow_sent_bytes;
	u64 fast_received_packets;
	u64 fast_received_bytes;
	u64 slow_received_packets;
	u64 slow_received_bytes;
};

/*
 * watches[0]: which packets somebody wants to hear of. Written by the watcher,
 * again and again while it lives, so that one that was killed costs nothing
 * for long.
 */
struct watch {
	u64 until;    /* jiffies; 0: nobody watches */
	u64 dropped;  /* bit per enum verdict: of packets that end here */
	u64 passed;   /* the same of packets that go on */
	u64 interval; /* ns between two events of a CPU, on average */
	u32 network;  /* one of a packet's addresses must be in here; host */
	u32 mask;     /* byte order; 0 takes any packet */
	u32 watcher;  /* its process id, for user space */
	u32 reserved;
};

/* budgets[0]: what a CPU may still tell. */
struct budget {
	u64 next;   /* ns: the token bucket, see watch.h */
	u64 hidden; /* events that it may not tell, or that had no room */
};

/*
 * A record of events: one packet, as it was when a program was done with it.
 * What is not known of it is 0: the outer addresses without a tunnel, the
 * inner ones where a fragment hides them, ports of other than TCP and UDP.
 */
struct event {
	u64 time; /* CLOCK_MONOTONIC, ns */
	__be32 outer_src;
	__be32 outer_dst;
	__be32 src; /* of the inner packet, or of the only one */
	__be32 dst;
	__be16 src_port;
	__be16 dst_port;
	u32 length;  /* bytes, link header included */
	u32 ifindex; /* of the device that it was seen at */
	u8 program;  /* enum program */
	u8 verdict;  /* enum verdict */
	u8 protocol; /* of the packet with the ports */
	u8 dropped;  /* 1: it ended here */
};
