"""The one route to all peers behind a TUN device, and what is said where it is missing."""

from ipaddress import IPv4Address, IPv4Network

from kersey_control.backends.pumped import PumpOptions
from kersey_control.backends.udp import UdpBackend
from kersey_control.forwarding import Condition, Forwarding, PeerStatus
from kersey_control.netconfig import UdpConfig
from kersey_control.netlink import Links
from kersey_control.options import SpoofCheck
from kersey_control.peer import Peer, Via
from vxlan_lab import HOME, NETWORK, SUBNET, Lab, ip

PEER = Peer(IPv4Network("10.128.1.0/24"), IPv4Address("198.18.0.2"), Via.UDP)


def test_peers_without_the_networks_route_are_not_called_programmed(lab: Lab) -> None:
    ip(f"route add blackhole {NETWORK} proto static")
    options = PumpOptions(has_programs=False, check=SpoofCheck.DROP)
    with Links() as links:
        backend = UdpBackend(
            UdpConfig(port=8285), network=NETWORK, links=links, rtnl=lab.rtnl, pump=options
        )
        backend.prepare(lab.uplink)
        backend.assign(SUBNET)
        forwarding = Forwarding(backend, lab.rtnl, HOME)
        forwarding.set_peers([PEER], now=0.0)
        (status,) = forwarding.statuses()
        assert status.condition is Condition.FAILING
        assert "no foreign one in its place" in status.reason
        ip(f"route del blackhole {NETWORK}")
        forwarding.retry_due(now=10.0)
        assert list(forwarding.statuses()) == [PeerStatus(PEER, Condition.PROGRAMMED)]
        backend.close()
