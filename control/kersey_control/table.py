"""The leases of all nodes as one value: snapshots and events enter by the same line. Pure.

The table knows which subnet is ours and never reports it as a change of a peer, whatever the store
says about it; that it is lost is said apart, because the answer is to claim it again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network

from kersey_control.events import (
    Changed,
    Forgotten,
    Lost,
    Removed,
    Restored,
    Skipped,
    Snapshot,
    StoreEvent,
)
from kersey_control.lease import Lease


@dataclass(frozen=True, slots=True)
class Delta:
    """What one store event changed among the leases of others."""

    changed: tuple[Lease, ...] = ()
    removed: tuple[IPv4Network, ...] = ()


class LeaseTable:
    """Hold the leases of all nodes, keyed by subnet, and know which one is ours.

    They keep the order in which they were written last: of two leases that exclude each other the
    newest counts.

    `own` is our lease as the store last confirmed it. A record without a node id is flannel's and
    compared by public address.
    """

    def __init__(self, own: Lease) -> None:
        self._all: dict[IPv4Network, Lease] = {}
        self.hold(own)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Return the leases of all other nodes, the one written last at the end."""
        return tuple(lease for lease in self._all.values() if lease.subnet != self.own.subnet)

    @property
    def own_missing(self) -> bool:
        """Return whether the store has shown that our subnet has no record, or another node's."""
        found = self._all.get(self.own.subnet)
        return found is None or not self._is_ours(found)

    def hold(self, own: Lease) -> None:
        """Take note of our lease as the store has just confirmed it."""
        self.own = own
        self._all[own.subnet] = own

    def apply(self, event: StoreEvent) -> Delta:
        """Take one event in and return what it changed; a renewal changes nothing."""
        match event:
            case Snapshot(leases):
                return self._replace(leases)
            case Changed(lease):
                return self._put(lease)
            case Removed(subnet):
                return self._remove(subnet)
            case Skipped() | Forgotten() | Lost() | Restored():
                return Delta()

    def _replace(self, leases: Iterable[Lease]) -> Delta:
        before, self._all = self._all, {lease.subnet: lease for lease in leases}
        ours = self.own.subnet
        return Delta(
            changed=tuple(
                lease
                for subnet, lease in self._all.items()
                if subnet != ours and before.get(subnet) != lease
            ),
            removed=tuple(
                subnet for subnet in before if subnet != ours and subnet not in self._all
            ),
        )

    def _put(self, lease: Lease) -> Delta:
        before = self._all.pop(lease.subnet, None)
        self._all[lease.subnet] = lease
        if lease.subnet == self.own.subnet or before == lease:
            return Delta()
        return Delta(changed=(lease,))

    def _remove(self, subnet: IPv4Network) -> Delta:
        before = self._all.pop(subnet, None)
        if subnet == self.own.subnet or before is None:
            return Delta()
        return Delta(removed=(subnet,))

    def _is_ours(self, lease: Lease) -> bool:
        if lease.node_id:
            return lease.node_id == self.own.node_id
        return lease.public_ip == self.own.public_ip
