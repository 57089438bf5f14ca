/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Telling of single packets, to whoever watches (`kersey drops`). Takes values,
 * so that any kind of program can. Where nobody watches it costs a look at one
 * word, and a fast packet not even that. Changes no packet.
 */
#pragma once
#include "netfmt.h"
#include "verdict.h"

/* What a CPU may tell at once after a time of silence: a second's worth. */
#define BUDGET_BURST 1000000000ull /* ns */

/* The watch, if there is one that wants packets of this verdict; or NULL. */
static __always_inline const struct watch *watch_of(enum verdict verdict,
						    bool dropped)
{
	const struct watch *watch;
	u32 only = 0;

	watch = watches.lookup(&only);
	if (!watch)
		return NULL;
	if (!((dropped ? watch->dropped : watch->passed) >> verdict & 1))
		return NULL;
	return bpf_jiffies64() < watch->until ? watch : NULL;
}

static __always_inline bool is_in_watch(const struct watch *watch,
					__be32 address)
{
	return (host32(address) & watch->mask) == watch->network;
}

/*
 * Tells the watch of a packet; all of event is set but its time. The budget is
 * a token bucket in one word, the time up to which tokens are used up (GCRA,
 * ITU-T I.371); per CPU, where programs do not nest. Without one, a flood of
 * forged packets would cost as much again in telling of them.
 */
static __always_inline void tell(const struct watch *watch, struct event *event)
{
	struct budget *budget;
	u32 only = 0;

	if (!is_in_watch(watch, event->outer_src) &&
	    !is_in_watch(watch, event->outer_dst) &&
	    !is_in_watch(watch, event->src) && !is_in_watch(watch, event->dst))
		return;
	budget = budgets.lookup(&only);
	if (!budget)
		return;
	event->time = bpf_ktime_get_ns();
	if (budget->next + BUDGET_BURST < event->time)
		budget->next = event->time - BUDGET_BURST;
	if (budget->next >= event->time ||
	    events.ringbuf_output(event, sizeof(*event), 0))
		budget->hidden += 1;
	else
		budget->next += watch->interval;
}
