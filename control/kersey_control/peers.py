"""From lease events to peers in the kernel: table -> backend -> forwarding, one straight line.

A snapshot and an event enter by the same door, and events that wait together are carried out
together. A lease that cannot become a peer is refused by itself, with its reason, and no other.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network

from kersey_control.backends.base import Backend, PeerFollower
from kersey_control.errors import PeerRefusedError
from kersey_control.events import Snapshot, StoreEvent
from kersey_control.forwarding import AuditResult, Condition, Forwarding
from kersey_control.lease import Lease
from kersey_control.peer import Peer
from kersey_control.status import PeerState, Status
from kersey_control.table import Delta, LeaseTable
from kersey_control.underlay import Underlay

logger = logging.getLogger(__name__)

_BULK = 32
"""Above so many changes, one comparison with the kernel is cheaper than the changes one by one."""


class Peers:
    """Keep the peers of all other nodes' leases programmed, and count what became of them."""

    def __init__(
        self,
        *,
        table: LeaseTable,
        backend: Backend,
        forwarding: Forwarding,
        underlay: Underlay,
        followers: tuple[PeerFollower, ...],
        status: Status,
    ) -> None:
        self._table = table
        self._backend = backend
        self._forwarding = forwarding
        self._underlay = underlay
        self._followers = followers
        self._status = status
        self._refused: dict[IPv4Network, str] = {}
        self._started = False

    def apply(self, events: Sequence[StoreEvent], now: float) -> None:
        """Carry out events in their order.

        Raises KernelError if the kernel could not be read; nothing is forgotten, and the next
        `audit` does it.
        """
        resync = any(isinstance(event, Snapshot) for event in events)
        delta = _merge(self._table.apply(event) for event in events)
        self._started = self._started or resync
        try:
            if resync or len(delta.changed) + len(delta.removed) > _BULK:
                self._program_all(now)
            elif self._started:
                self._program(delta, now)
        finally:
            self.report()

    @property
    def has_snapshot(self) -> bool:
        """Return whether the leases of all nodes are known, as of some instant."""
        return self._started

    @property
    def own_missing(self) -> bool:
        """Return whether the store has shown that our own lease is gone."""
        return self._table.own_missing

    def hold(self, own: Lease) -> None:
        """Take note of our own lease, never a peer; `audit` then judges the others anew."""
        self._table.hold(own)

    def audit(self, now: float) -> AuditResult:
        """Judge every lease anew and compare all with the kernel. Raises KernelError."""
        try:
            return self._program_all(now) if self._started else AuditResult()
        finally:
            self.report()

    def retry_due(self, now: float) -> None:
        """Try again what the kernel refused and whose time has come."""
        self._forwarding.retry_due(now)
        self.report()

    def report(self) -> None:
        """Bring the counts in `Status` up to date."""
        conditions: Counter[Condition] = Counter()
        refused = dict(self._refused)
        states: list[PeerState] = []
        for each in self._forwarding.statuses():
            states.append(PeerState(each.peer, each.condition, each.reason))
            conditions[each.condition] += 1
            if each.condition is not Condition.PROGRAMMED:
                refused[each.peer.subnet] = each.reason
        status = self._status
        status.peers_programmed = conditions[Condition.PROGRAMMED]
        status.peers_desired = sum(conditions.values()) + len(self._refused)
        status.refused = refused
        status.netlink_refusals = self._forwarding.refusals
        status.peers = tuple(states)
        status.leases = Counter(lease.backend_type or "udp" for lease in self._table.leases)

    def _program_all(self, now: float) -> AuditResult:
        self._refused, before = {}, self._refused
        leases = self._table.leases
        self._underlay.survey(lease.public_ip for lease in leases)
        peers = list(self._usable(leases, before))
        for follower in self._followers:
            follower.replace_peers(peers)
        return self._forwarding.set_peers(peers, now)

    def _program(self, delta: Delta, now: float) -> None:
        for subnet in delta.removed:
            self._refused.pop(subnet, None)
            self._withdraw(subnet, now)
        before = {lease.subnet: self._refused.pop(lease.subnet, "") for lease in delta.changed}
        for peer in self._usable(delta.changed, before):
            for follower in self._followers:
                follower.put_peer(peer)
            self._forwarding.put(peer, now)
        for lease in delta.changed:
            if lease.subnet in self._refused:
                self._withdraw(lease.subnet, now)

    def _withdraw(self, subnet: IPv4Network, now: float) -> None:
        """Take a peer out: first the route to it, then what its packets are accepted by."""
        self._forwarding.remove(subnet, now)
        for follower in self._followers:
            follower.remove_peer(subnet)

    def _usable(self, leases: Iterable[Lease], before: dict[IPv4Network, str]) -> Iterator[Peer]:
        """Yield the leases that can be peers; note the others, and warn once for each reason."""
        for lease in leases:
            try:
                peer = self._backend.peer(lease)
                self._forwarding.check(peer)
            except PeerRefusedError as error:
                self._refused[lease.subnet] = str(error)
                if before.get(lease.subnet) != str(error):
                    logger.warning(
                        "lease refused as a peer",
                        extra={"subnet": str(lease.subnet), "reason": str(error)},
                    )
            else:
                yield peer


def _merge(deltas: Iterable[Delta]) -> Delta:
    """Return one delta with the effect of all, the last word on each subnet winning."""
    changed: dict[IPv4Network, Lease] = {}
    removed: dict[IPv4Network, None] = {}
    for delta in deltas:
        for subnet in delta.removed:
            changed.pop(subnet, None)
            removed[subnet] = None
        for lease in delta.changed:
            removed.pop(lease.subnet, None)
            changed[lease.subnet] = lease
    return Delta(changed=tuple(changed.values()), removed=tuple(removed))
