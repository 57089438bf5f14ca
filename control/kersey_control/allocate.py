"""Which subnet a node gets, decided from the leases that exist. Pure: nothing is read or written.

The order is flannel's (pkg/subnet/etcd/local_manager.go): the lease that this public address holds
already, else a subnet that the node had before, else one at random among the first free ones. A
node whose address changed finds its own lease again: it has our node id and the subnet that we had
before. Both must agree, since machines cloned from one image share their node id. It never picks a
subnet that overlaps any lease, and never takes over a lease of another node id.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import TypeAlias

from kersey_control.errors import DuplicateNodeError, SubnetsExhaustedError
from kersey_control.lease import Lease, subnet_key
from kersey_control.netconfig import NetworkConfig

CANDIDATES = 100


@dataclass(frozen=True, slots=True)
class Adopt:
    """Keep the subnet of this lease: it is ours."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete this lease and decide again: it is ours, but the network is no longer cut so."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Create:
    """Take this free subnet."""

    subnet: IPv4Network


Decision: TypeAlias = Adopt | Discard | Create


def decide(
    leases: Sequence[Lease],
    *,
    unreadable: Iterable[IPv4Network],
    public_ip: IPv4Address,
    node_id: str,
    previous: Iterable[IPv4Network],
    config: NetworkConfig,
    rng: random.Random,
) -> Decision:
    """Return the next step for the node `node_id` at `public_ip`.

    `unreadable` are subnets whose leases cannot be read: taken, by whom is not known. `previous`
    are subnets that the node would like, best first. Raises DuplicateNodeError while another
    node id has a lease for the same address, SubnetsExhaustedError when nothing is free.
    """
    previous = tuple(previous)
    own = [lease for lease in leases if lease.public_ip == public_ip]
    own.sort(key=lambda lease: lease.subnet not in previous)  # of several, the one pods live in
    refuse_duplicate(own, node_id=node_id)
    moved = [lease for lease in leases if lease.node_id == node_id and lease.subnet in previous]
    for lease in own + moved:
        return Adopt(lease) if is_compatible(lease, config) else Discard(lease)
    taken = [*unreadable, *(lease.subnet for lease in leases)]
    return Create(choose_subnet(taken, previous=previous, config=config, rng=rng))


def refuse_duplicate(leases: Iterable[Lease], *, node_id: str) -> None:
    """Raise DuplicateNodeError if one of these leases, all for our address, is another node's.

    A lease without a node id was written by flannel, and is ours if the address is.
    """
    for lease in leases:
        if lease.node_id not in ("", node_id):
            key = subnet_key(lease.subnet, lease.subnet_v6)
            raise DuplicateNodeError(
                f"public address {lease.public_ip} of node {node_id!r} is already leased by node "
                f"{lease.node_id!r} (lease {key}): give one of them another address "
                f"(--public-ip, --iface), or delete that lease if the node is gone for good"
            )


def is_compatible(lease: Lease, config: NetworkConfig) -> bool:
    """Say whether the lease's subnets are such as this network gives out.

    An IPv6 subnet must be absent without an IPv6 network. With one it may be: a lease of the time
    before is kept as it is.
    """
    fits = config.contains_lease_subnet(lease.subnet)
    return fits and (lease.subnet_v6 is None or _fits_v6(lease, config))


def choose_subnet(
    taken: Iterable[IPv4Network],
    *,
    previous: Iterable[IPv4Network],
    config: NetworkConfig,
    rng: random.Random,
) -> IPv4Network:
    """Return the first of `previous` that fits and is free, else one of the free at random.

    Only the first hundred free ones are candidates, as in flannel. Raises SubnetsExhaustedError.
    """
    busy = list(taken)
    for subnet in previous:
        fits = config.contains_lease_subnet(subnet)
        if fits and not any(subnet.overlaps(other) for other in busy):
            return subnet
    candidates = list(islice(free_subnets(busy, config), CANDIDATES))
    if not candidates:
        raise SubnetsExhaustedError(
            f"no free /{config.subnet_len} subnet is left from {config.subnet_min} "
            f"to {config.subnet_max}: {len(busy)} leases exist"
        )
    return rng.choice(candidates)


def free_subnets(taken: Iterable[IPv4Network], config: NetworkConfig) -> Iterator[IPv4Network]:
    """Yield, from SubnetMin up to SubnetMax, every subnet that overlaps none of `taken`.

    Leases of any length are respected; two CIDR blocks are disjoint or one holds the other.
    """
    size = 1 << (32 - config.subnet_len)
    busy = sorted((int(net.network_address), int(net.broadcast_address)) for net in taken)
    candidate, position = int(config.subnet_min), 0
    while candidate <= int(config.subnet_max):
        while position < len(busy) and busy[position][1] < candidate:
            position += 1
        if position == len(busy) or busy[position][0] >= candidate + size:
            yield IPv4Network((candidate, config.subnet_len))
            candidate += size
        else:
            candidate = max(candidate + size, busy[position][1] + 1)


def _fits_v6(lease: Lease, config: NetworkConfig) -> bool:
    subnet = lease.subnet_v6
    low, high = config.subnet_min_v6, config.subnet_max_v6
    if subnet is None or low is None or high is None:
        return False
    return subnet.prefixlen == config.subnet_len_v6 and low <= subnet.network_address <= high
