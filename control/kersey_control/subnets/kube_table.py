"""The cluster's nodes as lease events: what each change of a node means for the leases. Pure.

It promises that whoever applies the events, in order, holds exactly the leases that the nodes given
last amount to; that a change which touches no lease (a heartbeat) gives no event and builds no
lease; and that a node which cannot be read is reported once, not at each of its heartbeats, and
forgotten when it is gone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TypeAlias

from kersey_control.errors import InvalidInputError
from kersey_control.events import Changed, Forgotten, Removed, Skipped, Snapshot
from kersey_control.lease import Lease
from kersey_control.subnets.kube_node import Node, Unreadable

NodeEvent: TypeAlias = Changed | Removed | Skipped | Forgotten


@dataclass(frozen=True, slots=True)
class Own:
    """Our own node: its subnet, and what it says since we wrote it, as of `revision`.

    While `node` is None we are writing, and whatever it says is taken for ours.
    """

    name: str
    subnet: IPv4Network
    node: Node | None = None
    revision: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A node as it was last; `subnet` is None where it holds no lease."""

    node: Node | Unreadable
    is_disputed: bool
    subnet: IPv4Network | None


class NodeTable:
    """Hold all nodes that claim to take part, by name.

    `own` gives our own node, None until we have a lease. Our own node is no lease while it says
    something else than we wrote: it then shows up as removed, and its keeper writes it again.
    """

    def __init__(self, own: Callable[[], Own | None]) -> None:
        self._own = own
        self._entries: dict[str, _Entry] = {}
        self._holders: dict[IPv4Network, tuple[str, ...]] = {}
        """By subnet, the nodes that have it; of several the one that changed last counts."""

    def replace(self, nodes: Iterable[Node | Unreadable]) -> Snapshot:
        """Take in all nodes, in the order in which they came to be."""
        self._entries.clear()
        self._holders.clear()
        events = [event for node in nodes for event in self.put(node)]
        return Snapshot(
            leases=tuple(event.lease for event in events if isinstance(event, Changed)),
            skipped=tuple(event for event in events if isinstance(event, Skipped)),
        )

    def put(self, node: Node | Unreadable, revision: str = "") -> list[NodeEvent]:
        """Take in a node that is new or may have changed, with this revision."""
        known = self._entries.get(node.name)
        disputed = self._is_disputed(node, revision)
        if known is None and isinstance(node, Node) and not node.is_complete:
            return []
        if known is not None and known.node == node and known.is_disputed == disputed:
            return []
        events: list[NodeEvent] = []
        lease = None
        try:
            lease = None if disputed else self._lease(node)
        except InvalidInputError as error:
            events.append(Skipped(record=node.name, reason=str(error)))
        else:
            events += _forgotten(known) if lease is None else []
        events += self._leave(known, to=lease)
        self._keep(node, lease, disputed=disputed)
        return events if lease is None else [*events, Changed(lease)]

    def remove(self, name: str) -> list[NodeEvent]:
        """Take in that a node is gone."""
        known = self._entries.pop(name, None)
        return [*self._leave(known, to=None), *_forgotten(known)]

    def _is_disputed(self, node: Node | Unreadable, revision: str) -> bool:
        """Return whether this is our node, with something in it that is not ours."""
        own = self._own()
        if own is None or own.node is None or own.name != node.name or own.node == node:
            return False
        return not _is_before(revision, own.revision)

    def _lease(self, node: Node | Unreadable) -> Lease | None:
        if isinstance(node, Unreadable):
            raise InvalidInputError(field="node", value=node.name, expected=node.reason)
        lease, own = node.lease(), self._own()
        if lease and own and lease.subnet == own.subnet and node.name != own.name:
            raise InvalidInputError(
                field=f"node {node.name}: podCIDR",
                value=str(lease.subnet),
                expected="another one than that of our own node",
            )
        return lease

    def _keep(self, node: Node | Unreadable, lease: Lease | None, *, disputed: bool) -> None:
        if isinstance(node, Node) and not node.is_complete and not disputed:
            self._entries.pop(node.name, None)
            return
        subnet = None if lease is None else lease.subnet
        self._entries[node.name] = _Entry(node, disputed, subnet)
        if subnet is not None:
            others = (name for name in self._holders.get(subnet, ()) if name != node.name)
            self._holders[subnet] = (*others, node.name)

    def _leave(self, known: _Entry | None, *, to: Lease | None) -> list[NodeEvent]:
        """Give up the subnet that an entry had unless it keeps it; another holder comes in."""
        if known is None or known.subnet is None or (to and to.subnet == known.subnet):
            return []
        holders = self._holders.pop(known.subnet)
        left = tuple(name for name in holders if name != known.node.name)
        if not left:
            return [Removed(known.subnet)]
        self._holders[known.subnet] = left
        heir = self._entries[left[-1]].node
        lease = heir.lease() if isinstance(heir, Node) else None
        return [Changed(lease)] if lease and holders[-1] == known.node.name else []


def _forgotten(known: _Entry | None) -> list[Forgotten]:
    """Return that a node is no trouble any more, if it may have been one."""
    is_skipped = known is not None and known.subnet is None and not known.is_disputed
    return [Forgotten(known.node.name)] if known and is_skipped else []


def _is_before(revision: str, other: str) -> bool:
    """Return whether one revision is known to be the earlier one; Kubernetes counts upwards."""
    return revision.isdecimal() and other.isdecimal() and int(revision) < int(other)
