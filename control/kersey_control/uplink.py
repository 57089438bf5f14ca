"""The uplink: the node's external interface, and the address that others reach it by."""

from dataclasses import dataclass
from ipaddress import IPv4Address


@dataclass(frozen=True, slots=True)
class Uplink:
    """The chosen interface. `public_ip` is what the lease says; it differs from `address` behind NAT."""

    ifindex: int
    name: str
    address: IPv4Address
    public_ip: IPv4Address
    mtu: int
    reason: str
    """Why this interface was chosen, for the log and `kersey status`."""
