"""The network's configuration (`net-conf.json`): parsing, defaults and rules. Pure."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from kersey_control.addresses import Vni


@dataclass(frozen=True, slots=True)
class VxlanConfig:
    """The vxlan backend's settings; `mtu` is the underlay's and None means the uplink's."""

    vni: Vni
    port: int
    mtu: int | None
    gbp: bool
    learning: bool
    direct_routing: bool


BackendConfig: TypeAlias = VxlanConfig


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """One valid network: the pod network, how it is cut into subnets, and the backend."""

    network: IPv4Network
    subnet_len: int
    subnet_min: IPv4Address
    subnet_max: IPv4Address
    backend: BackendConfig
    enable_nftables: bool = False
    network_v6: IPv6Network | None = None
    subnet_len_v6: int | None = None
    subnet_min_v6: IPv6Address | None = None
    subnet_max_v6: IPv6Address | None = None


def parse_network_config(text: bytes) -> NetworkConfig:
    """Return the network that `text` describes; InvalidInputError names field, value and rule."""
    raise NotImplementedError
