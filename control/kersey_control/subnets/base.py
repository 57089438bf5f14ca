"""What every lease store offers, and the events in which it speaks. No store is imported here.

A store never ends its watch because of trouble: it reports `Lost`, keeps trying, and comes back
with a full `Snapshot`, so that a consumer needs one code path for start, resync and recovery.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from threading import Event
from typing import Protocol

from kersey_control.clocks import Moment
from kersey_control.events import (
    Changed,
    Lost,
    Removed,
    Restored,
    Skipped,
    Snapshot,
    StoreEvent,
)
from kersey_control.lease import Lease
from kersey_control.netconfig import NetworkConfig
from kersey_control.notice import Notice

__all__ = [
    "Changed",
    "Claim",
    "Inventory",
    "Lost",
    "NodeStore",
    "OwnLease",
    "Remembered",
    "Removed",
    "Restored",
    "Skipped",
    "Snapshot",
    "StoreEvent",
    "StoredLease",
    "SubnetStore",
]


@dataclass(frozen=True, slots=True)
class OwnLease:
    """Our own claim as the store holds it.

    `expires_at` is None for a reservation (it never expires and is never given an expiry).
    `revision` is what the next compare-and-swap must find.
    """

    lease: Lease
    expires_at: Moment | None
    revision: int


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A lease and when it ends: seconds since the epoch, None if never."""

    lease: Lease
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Inventory:
    """Every lease that the store holds, and what could not be read, for a person to look at."""

    leases: tuple[StoredLease, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """What this node asks for: who it is, how it is reached, and the subnet it had before.

    `previous` is the subnet of the last run (from subnet.env); None if unknown.
    """

    node_id: str
    public_ip: IPv4Address
    backend_type: str
    backend_data: bytes
    previous: IPv4Network | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the store says of our node before we write to it: nothing, where it knows us by lease.

    `backend_type` and `backend_data` are our last run's, empty if there is none; a VTEP MAC in
    them is still ours. `subnet` was given to the node, which cannot choose. `node_public_ip` is an
    administrator's, to be taken for `--public-ip`.
    """

    backend_type: str = ""
    backend_data: bytes = b""
    subnet: IPv4Network | None = None
    node_public_ip: IPv4Address | None = None


class SubnetStore(Protocol):
    """Where leases live. Blocking calls; each raises only errors of `kersey_control.errors`."""

    def read_config(self) -> bytes:
        """Return the network config's JSON text.

        Raises StoreError, or InvalidInputError naming the record when it does not exist.
        """
        ...

    def watch_config(self, stop: Event) -> Iterator[bytes]:
        """Yield the config's text whenever it changes, until `stop`; silent about outages."""
        ...

    def acquire(self, claim: Claim, config: NetworkConfig) -> OwnLease:
        """Take, or take back, a subnet for this node.

        Raises StoreError, SubnetsExhaustedError, or DuplicateNodeError when another node id holds
        a live lease for the same public address.
        """
        ...

    def renew(self, own: OwnLease, claim: Claim) -> OwnLease:
        """Extend our lease and write the claim's present data, by compare-and-swap.

        Raises StoreConflictError when the record is gone or is no longer ours as we knew it.
        """
        ...

    def watch(self, stop: Event) -> Iterator[StoreEvent]:
        """Yield a Snapshot, then events, until `stop` is set. Never raises for an outage."""
        ...


class NodeStore(SubnetStore, Protocol):
    """A lease store as a daemon has it: with what some stores know and do besides leases."""

    def remembered(self) -> Remembered:
        """Return what the store says of our node; to be asked before its device is made.

        Raises StoreError, or InvalidInputError naming what the node still lacks.
        """
        ...

    def announce_network(self) -> None:
        """Have the cluster know that this node's pods have their network. Returns at once."""
        ...

    def tell(self, notice: Notice) -> None:
        """Have the cluster's operators see it, where the store has a place for that.

        Returns at once. What cannot be written soon is lost.
        """
        ...

    def close(self) -> None:
        """End all calls and watches in progress; twice does no harm. From any thread."""
        ...
