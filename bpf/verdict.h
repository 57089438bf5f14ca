/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every way in which a program can be done with a packet, and the only writer
 * of the counters of it. kersey_loader/layout.py has the same names; each
 * compilation asserts that the numbers agree.
 */
#pragma once
#include "maps.h"

enum program {
	PROGRAM_FROM_POD = 0,
	PROGRAM_TO_POD = 1,
	PROGRAM_FROM_UPLINK = 2,
	PROGRAM_TO_OVERLAY = 3,
	PROGRAM_TO_UPLINK = 4,
	PROGRAM_WIRE = 5,
};

enum verdict {
	/* Taken over from the stack. */
	VERDICT_FAST = 0,

	/* Seen leaving the stack as it went in: one direction of a flow. */
	VERDICT_WITNESSED,

	/* Left to the stack: nothing of the overlay's. */
	VERDICT_UNRELATED,    /* not IPv4, or not between pods of two nodes */
	VERDICT_UNCONFIGURED, /* cfg is empty */

	/* Left to the stack: a packet that is never fast. */
	VERDICT_ADMISSION_OFF,
	VERDICT_VLAN,
	VERDICT_TRUNCATED, /* headers missing, or in fragments of the skb */
	VERDICT_IP_OPTIONS,
	VERDICT_FRAGMENT,
	VERDICT_TTL,     /* it expires on the way */
	VERDICT_PROTOCOL, /* neither TCP nor UDP */
	VERDICT_CONTROL, /* TCP SYN, FIN or RST */
	VERDICT_TOO_BIG, /* the stack answers, or fragments */
	VERDICT_LENGTH,  /* the headers' lengths disagree with the packet's */
	VERDICT_MALFORMED, /* what conntrack or the IP layer calls invalid */

	/* Left to the stack: a flow that is not admitted, or not now. */
	VERDICT_NOT_ADMITTED,
	VERDICT_STALE,     /* due for re-validation */
	VERDICT_FLUSHED,   /* witnessed in an earlier generation */
	VERDICT_OTHER_PORT, /* another port or MAC than the witnessed one */
	VERDICT_OTHER_KIND, /* another DSCP or TTL than the witnessed one */
	VERDICT_PORT_GONE, /* the pod port does not exist any more */
	VERDICT_ROOM,      /* the kernel refused to add or remove headers */

	/* Left to the stack: a tunnel packet with something unusual. */
	VERDICT_NOT_HOST,     /* broadcast or multicast Ethernet address */
	VERDICT_TUNNEL_FLAGS, /* VXLAN flags other than the VNI's */
	VERDICT_OTHER_VNI,
	VERDICT_OTHER_VTEP, /* inner Ethernet address is not our device's */
	VERDICT_NOT_IPV4,   /* inner packet */
	VERDICT_CONGESTION, /* outer ECN that changes the inner one */
	VERDICT_DATAGRAMS,  /* UDP segments in one packet, in a UDP tunnel */
	VERDICT_NODE,       /* inner source is the sending node itself */
	VERDICT_OTHER_ADDRESS, /* to an address of ours that is not cfg's */
	VERDICT_NOT_POD,    /* inner destination is not in our lease */

	/* Left to the stack: a peer's packet that came the other way. */
	VERDICT_NOT_TUNNELLED, /* plain, of a peer that has a tunnel */
	VERDICT_TUNNELLED,     /* in a tunnel, of a direct peer */

	/* Left to the stack: no witness. */
	VERDICT_UNSEEN,  /* did not come in as it goes out, or too long ago */
	VERDICT_CHANGED, /* TOS or TTL differ from what the way explains */
	VERDICT_OTHER_GATEWAY, /* leaves towards another than the lease's node */

	/* Its headers are off; the next program judges what was inside. */
	VERDICT_DECAPSULATED,

	/* Dropped if cfg says so: a sender that may not send this. */
	VERDICT_UNKNOWN_NODE,    /* outer source serves no lease */
	VERDICT_FOREIGN_SOURCE,  /* inner source is of another node's lease */
	VERDICT_OUTSIDE_SOURCE,  /* inner source is no pod's and not its own */
	VERDICT_HIDDEN_SOURCE,   /* no source shows, or it claims to be checked */
	VERDICT_POD_TUNNEL,      /* a pod that speaks the tunnel's protocol */

	VERDICT_COUNT,
};

/* What a TC program can return, apart from a redirect. */
enum action {
	/*
	 * TC_ACT_UNSPEC: whoever else has a filter behind ours still sees the
	 * packet. TC_ACT_OK would end the chain.
	 */
	TO_STACK = -1,
	DROP = 2, /* TC_ACT_SHOT */
};

#define VERDICT_BITS 6
_Static_assert(VERDICT_COUNT <= 1 << VERDICT_BITS, "verdicts overflow");

/* Not an action of TC: "no verdict yet, go on". */
#define UNDECIDED VERDICT_COUNT

static __always_inline void count_verdict(enum program program,
					  enum verdict verdict)
{
	u32 index = program << VERDICT_BITS | verdict;
	u64 *count = verdicts.lookup(&index);

	/* Per CPU, and the programs do not nest on one: no atomic needed. */
	if (count)
		*count += 1;
}
