"""What every backend offers: its own device, and what one peer becomes in the kernel.

A backend decides and owns devices; per-peer kernel objects are values that `forwarding` carries
out, so that bulk programming, repair and audit are the same for all backends. Backends do not know
each other or the lease stores.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar, Protocol

from kersey_loader.tunnel import Tunnel

from kersey_control.addresses import gateway_of
from kersey_control.errors import PeerRefusedError
from kersey_control.lease import Lease
from kersey_control.netconfig import BackendConfig
from kersey_control.peer import Peer
from kersey_control.reconcile import KernelObject, KernelState, Nexthop, Route
from kersey_control.uplink import Uplink

_BROADCAST = IPv4Address("255.255.255.255")


class PeerFollower(Protocol):
    """Somebody who must know the peers besides the kernel: programs, a pump, a command."""

    def replace_peers(self, peers: Iterable[Peer]) -> None:
        """Make these all the peers."""
        ...

    def put_peer(self, peer: Peer) -> None:
        """Take one in, before the kernel's route leads there."""
        ...

    def remove_peer(self, subnet: IPv4Network) -> None:
        """Forget one, after the kernel's route is gone."""
        ...


class Backend(ABC):
    """One way of carrying packets between nodes. One thread at a time.

    What is not abstract is as a backend without a device of its own has it.
    """

    name: ClassVar[str]
    """The backend's name in the network config."""

    lease_type: ClassVar[str]
    """What our lease says as its BackendType; empty for those of flannel's that say nothing."""

    overhead: ClassVar[int] = 0
    """Bytes that the tunnel puts in front of a pod's IP packet, 0 without a tunnel."""

    device_name: str | None = None
    """The name of our device."""

    @property
    def ifindex(self) -> int | None:
        """Return our device's ifindex: another one after it was made again; None without one."""
        return None

    @property
    def tunnel(self) -> Tunnel | None:
        """Return what programs put in front of a packet, None where nothing is."""
        return None

    @property
    def source(self) -> IPv4Address | None:
        """Return the source address of the outer header, None where there is none."""
        return None

    @property
    def carrier(self) -> int:
        """Return our device's ifindex if only a user-space pump carries its packets, else 0."""
        return 0

    @property
    def has_direct_peers(self) -> bool:
        """Return whether peers may be reached without a tunnel."""
        return False

    @property
    def followers(self) -> tuple[PeerFollower, ...]:
        """Return those parts of the backend that must know every peer."""
        return ()

    @property
    def lease_data(self) -> bytes:
        """Return our lease's BackendData as compact JSON, empty if none."""
        return b""

    @property
    @abstractmethod
    def mtu(self) -> int:
        """Return the MTU that pods must use, in bytes of IP packet."""

    def configure(self, config: BackendConfig) -> None:  # noqa: B027  # most can follow nothing
        """Follow what can be followed of another config, from the next `prepare` on."""

    @abstractmethod
    def prepare(self, uplink: Uplink) -> None:
        """Create, adopt or repair our device for this uplink. Idempotent. Raises KernelError."""

    def assign(self, subnet: IPv4Network) -> None:  # noqa: B027  # nothing to do without a device
        """Give our device the subnet's address. Idempotent. Raises KernelError."""

    @abstractmethod
    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes.

        Raises PeerRefusedError with the reason, KernelError if the kernel cannot be asked.
        """

    def common_objects(self) -> Iterable[KernelObject]:
        """Return what the kernel must hold for all peers together."""
        return ()

    @abstractmethod
    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return what the kernel must hold for this peer. Raises PeerRefusedError."""

    @abstractmethod
    def actual(self) -> KernelState:
        """Read back every kernel object that is ours to keep or remove. Raises KernelError."""

    def close(self) -> None:  # noqa: B027  # most run nothing in this process
        """End what runs in this process; the kernel's state stays."""


def refusal(field: str, value: object, expected: str) -> PeerRefusedError:
    """Return the error that names what is wrong with a lease."""
    return PeerRefusedError(f"{field}: got {value!r}, expected {expected}")


def check_lease(lease: Lease, accepted: frozenset[str]) -> None:
    """Raise PeerRefusedError unless the lease is of an accepted type and has a usable address."""
    if lease.backend_type not in accepted:
        expected = " or ".join(repr(each) if each else "none" for each in sorted(accepted))
        raise refusal("BackendType", lease.backend_type, expected)
    node = lease.public_ip
    if node.is_unspecified or node.is_multicast or node.is_loopback or node == _BROADCAST:
        raise refusal("PublicIP", str(node), "a unicast address")


def routed_by(
    peer: Peer, ifindex: int, gateway: IPv4Address, *, onlink: bool
) -> tuple[Nexthop, Route]:
    """Return the route to a peer's subnet through a device and a gateway."""
    identity = int(gateway_of(peer.subnet))
    return Nexthop(identity, ifindex, gateway, onlink=onlink), Route(peer.subnet, identity)
