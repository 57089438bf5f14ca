"""What every backend offers: its own device, and what one peer becomes in the kernel.

A backend decides and owns devices; per-peer kernel objects are values that `forwarding` carries
out, so that bulk programming, repair and audit are the same for all backends. Backends do not know
each other or the lease stores.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Protocol

from kersey_control.lease import Lease
from kersey_control.peer import Peer
from kersey_control.reconcile import KernelObject, KernelState
from kersey_control.uplink import Uplink


class Backend(Protocol):
    """One way of carrying packets between nodes."""

    lease_type: str
    """The lease's BackendType; leases of another type are not ours to program."""

    def prepare(self, uplink: Uplink) -> None:
        """Create, adopt or repair our device for this uplink. Idempotent. Raises KernelError."""
        ...

    def assign(self, subnet: IPv4Network) -> None:
        """Give our device the subnet's address. Idempotent. Raises KernelError."""
        ...

    @property
    def lease_data(self) -> bytes:
        """Return our lease's BackendData as compact JSON, empty if none."""
        ...

    @property
    def mtu(self) -> int:
        """Return the MTU that pods must use, in bytes of IP packet."""
        ...

    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes. Raises PeerRefusedError with the reason."""
        ...

    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return what the kernel must hold for this peer."""
        ...

    def actual(self) -> KernelState:
        """Read back every kernel object that is ours to keep or remove. Raises KernelError."""
        ...

    def remove(self) -> None:
        """Take our device and everything on it out of the kernel."""
        ...
