"""Which backend a network config asks for. Makes it, and touches nothing yet."""

from dataclasses import dataclass
from ipaddress import IPv4Network

from kersey_control.backends.alloc import AllocBackend
from kersey_control.backends.base import Backend
from kersey_control.backends.extension import ExtensionBackend
from kersey_control.backends.hostgw import HostGwBackend
from kersey_control.backends.ipip import IpipBackend
from kersey_control.backends.pumped import PumpOptions
from kersey_control.backends.udp import UdpBackend
from kersey_control.backends.vxlan import VxlanBackend
from kersey_control.netconfig import (
    AllocConfig,
    ExtensionConfig,
    HostGwConfig,
    IpipConfig,
    NetworkConfig,
    UdpConfig,
    VxlanConfig,
)
from kersey_control.netlink import Links
from kersey_control.rtnetlink import Rtnl
from kersey_control.underlay import Underlay


@dataclass(frozen=True, slots=True)
class Host:
    """What a backend works with on this node.

    `last_type` and `last_data` are what our lease said before this run, empty where unknown.
    """

    node_id: str
    links: Links
    rtnl: Rtnl
    underlay: Underlay
    pump: PumpOptions
    last_type: str = ""
    last_data: bytes = b""


def backend_of(config: NetworkConfig, host: Host) -> Backend:
    """Return the backend of a network."""
    network: IPv4Network = config.network
    match config.backend:
        case VxlanConfig() as settings:
            return VxlanBackend(
                settings,
                network=network,
                subnet_len=config.subnet_len,
                node_id=host.node_id,
                links=host.links,
                rtnl=host.rtnl,
                underlay=host.underlay,
                last_data=host.last_data if host.last_type == VxlanBackend.lease_type else b"",
            )
        case HostGwConfig():
            return HostGwBackend(
                network=network,
                subnet_len=config.subnet_len,
                rtnl=host.rtnl,
                underlay=host.underlay,
            )
        case UdpConfig() as settings:
            return UdpBackend(
                settings, network=network, links=host.links, rtnl=host.rtnl, pump=host.pump
            )
        case IpipConfig() as settings:
            return IpipBackend(
                settings,
                network=network,
                subnet_len=config.subnet_len,
                links=host.links,
                rtnl=host.rtnl,
                underlay=host.underlay,
                pump=host.pump,
            )
        case AllocConfig():
            return AllocBackend(network, host.rtnl)
        case ExtensionConfig() as settings:
            return ExtensionBackend(settings, network, host.rtnl)
