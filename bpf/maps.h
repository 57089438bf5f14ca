/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every map, and nothing else. The loader creates and pins them beforehand
 * (kersey_loader/layout.py: types and sizes), so that they outlive both it and
 * the programs; here each is only opened by name. bcc knows fewer map types
 * than the kernel; the type that counts is the loader's.
 */
#pragma once
#include "types.h"

#define PINNED_MAP(type, key, value, name) \
	BPF_TABLE_PINNED(type, key, value, name, 1, KERSEY_MAPS "/" #name)

PINNED_MAP("array", u32, struct config, cfg);

/* Subnet index, (address - network) >> subnet_shift, to slot; 0 is none. */
PINNED_MAP("array", u32, u32, peer_index);
PINNED_MAP("array", u32, struct peer, peers);
PINNED_MAP("percpu_array", u32, struct traffic, peer_counters);

/* Address of each node that is the sender of a lease, to the lease count. */
PINNED_MAP("hash", __be32, u32, nodes);

/*
 * devmap_hash of ifindex to itself: the live pod ports. The kernel takes a
 * device out of it as the device goes (NETDEV_UNREGISTER), before any daemon
 * could; readable by TC programs since 5.4.
 */
PINNED_MAP("devmap", u32, u32, pod_ports);

/*
 * The same for those of them that take redirected frames: whose peer has GRO
 * or an XDP program.
 */
PINNED_MAP("devmap", u32, u32, redirect_ports);
PINNED_MAP("lru_hash", __be32, struct endpoint, endpoints);

PINNED_MAP("lru_hash", struct flow_key, struct flow, flows);

/* Apart from flows, so that a scan by a pod cannot evict admitted flows. */
PINNED_MAP("lru_hash", struct flow_key, struct sighting, sightings);

/* program << 6 | verdict; see verdict.h */
PINNED_MAP("percpu_array", u32, u64, verdicts);

/* Who wants to be told of packets, and what that may cost; see watch.h. */
PINNED_MAP("array", u32, struct watch, watches);
PINNED_MAP("percpu_array", u32, struct budget, budgets);

/* A ring buffer (kernel 5.8), as bcc declares one of its own making. */
struct events_table_t {
	int key;
	u32 leaf;
	int (*ringbuf_output)(void *data, u64 size, u64 flags);
	u32 max_entries;
};
__attribute__((section("maps/ringbuf:" KERSEY_MAPS "/events")))
struct events_table_t events = { .max_entries = 1 };
