"""Peers without a tunnel: who is a neighbour, the routes to them, and flannel's in their place."""

import socket
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.backends.hostgw import HostGwBackend
from kersey_control.errors import KernelError, PeerRefusedError
from kersey_control.forwarding import Condition, Forwarding
from kersey_control.lease import Lease
from kersey_control.reconcile import DeviceRoute, Plan
from kersey_control.rtnetlink import Hop
from kersey_control.tun import Tun
from kersey_control.underlay import Underlay
from vxlan_lab import CONFIG, HOME, NETWORK, SUBNET, UPLINK_ADDRESS, Lab, ip, show, vxlan_backend

NEIGHBOUR = IPv4Address("198.18.0.2")
FAR = IPv4Address("198.51.100.9")


@dataclass
class DirectLab:
    """A vxlan lab's namespace with a host-gw backend at work in it."""

    base: Lab
    underlay: Underlay
    backend: HostGwBackend
    forwarding: Forwarding

    def routes(self) -> list[tuple[str, ...]]:
        return self.base.routes()


@pytest.fixture
def direct(lab: Lab) -> DirectLab:
    underlay = Underlay(lab.rtnl)
    backend = HostGwBackend(network=NETWORK, subnet_len=24, rtnl=lab.rtnl, underlay=underlay)
    backend.prepare(lab.uplink)
    return DirectLab(lab, underlay, backend, Forwarding(backend, lab.rtnl, HOME))


def lease(number: int, node: IPv4Address, backend_type: str = "host-gw") -> Lease:
    subnet = IPv4Network((int(NETWORK.network_address) + (number << 8), 24))
    return Lease(subnet=subnet, public_ip=node, backend_type=backend_type)


def set_leases(direct: DirectLab, *leases: Lease) -> None:
    direct.underlay.survey(each.public_ip for each in leases)
    direct.forwarding.set_peers([direct.backend.peer(each) for each in leases], now=0.0)


def test_the_kernel_says_who_is_a_neighbour_on_which_device(lab: Lab) -> None:
    ip("route add 198.51.100.0/24 via 198.18.0.77")
    ip("route add unreachable 203.0.113.1")
    ip("route add 203.0.113.2 via inet6 fe80::1 dev up0")
    asked = [NEIGHBOUR, FAR, *map(IPv4Address, ("203.0.113.1", "203.0.113.2", "203.0.113.3"))]
    assert lab.rtnl.hops([*asked, UPLINK_ADDRESS]) == {
        NEIGHBOUR: Hop(lab.uplink.ifindex, is_on_link=True),
        FAR: Hop(lab.uplink.ifindex, is_on_link=False),
        IPv4Address("203.0.113.2"): Hop(lab.uplink.ifindex, is_on_link=False),
    }


def test_thousands_of_nodes_are_asked_for_in_a_few_calls(lab: Lab) -> None:
    nodes = [UPLINK_ADDRESS + number for number in range(1, 5001)]
    assert lab.rtnl.hops(nodes) == dict.fromkeys(nodes, Hop(lab.uplink.ifindex, is_on_link=True))


def test_a_survey_is_kept_until_the_next_and_knows_that_it_is_old(lab: Lab) -> None:
    underlay = Underlay(lab.rtnl)
    underlay.survey([NEIGHBOUR, FAR])
    assert underlay.is_neighbour(NEIGHBOUR, lab.uplink.ifindex)
    assert not underlay.is_neighbour(FAR, lab.uplink.ifindex)
    assert not underlay.has_changed()
    ip(f"route add {NEIGHBOUR} via 198.18.0.77")
    assert underlay.has_changed()
    assert underlay.is_neighbour(NEIGHBOUR, lab.uplink.ifindex)
    underlay.survey([NEIGHBOUR])
    assert not underlay.is_neighbour(NEIGHBOUR, lab.uplink.ifindex)
    assert not underlay.has_changed()


def test_a_neighbour_gets_a_plain_route(direct: DirectLab) -> None:
    set_leases(direct, lease(1, NEIGHBOUR))
    assert direct.routes() == [
        ("10.128.1.0/24", "up0", str(NEIGHBOUR), "75", str(int(IPv4Address("10.128.1.0"))))
    ]
    set_leases(direct)
    assert direct.routes() == []
    assert direct.base.nexthops() == []


def test_routes_follow_the_uplink_to_another_device(direct: DirectLab) -> None:
    set_leases(direct, lease(1, NEIGHBOUR), lease(2, NEIGHBOUR + 1))
    # As where an administrator puts the uplink into a bridge: it stays up, without its address.
    ip("link add br0 type bridge")
    ip("link set br0 up")
    ip("addr flush dev up0")
    ip(f"addr add {UPLINK_ADDRESS}/15 dev br0")
    uplink = replace(direct.base.uplink, name="br0", ifindex=socket.if_nametoindex("br0"))
    direct.backend.prepare(uplink)
    set_leases(direct, lease(1, NEIGHBOUR))
    assert [route[:3] for route in direct.routes()] == [("10.128.1.0/24", "br0", str(NEIGHBOUR))]
    (status,) = direct.forwarding.statuses()
    assert status.condition is Condition.PROGRAMMED
    assert len(direct.base.nexthops()) == 1


def test_a_node_behind_a_router_is_refused_by_itself(direct: DirectLab) -> None:
    ip("route add 198.51.100.0/24 via 198.18.0.77")
    with pytest.raises(PeerRefusedError, match="expected a node on the link of up0"):
        direct.backend.peer(lease(1, FAR))
    with pytest.raises(PeerRefusedError, match="got 'vxlan', expected 'host-gw'"):
        direct.backend.peer(lease(1, NEIGHBOUR, "vxlan"))


def test_an_address_that_others_cannot_route_to_is_refused(direct: DirectLab) -> None:
    uplink = replace(direct.base.uplink, public_ip=FAR)
    with pytest.raises(KernelError, match="expected up0's own address"):
        direct.backend.prepare(uplink)


def test_flannels_routes_are_taken_over_or_removed_and_others_stay(direct: DirectLab) -> None:
    ip(f"route add 10.128.1.0/24 via {NEIGHBOUR} dev up0")
    ip("route add 10.128.2.0/24 via 198.18.0.99 dev up0")
    ip(f"route add {SUBNET} via 198.18.0.98 dev up0")  # stale, of our own subnet
    ip("route add 10.128.3.0/24 via 198.18.0.97 dev up0 proto static")
    ip("route add 10.128.4.0/25 via 198.18.0.97 dev up0")
    set_leases(direct, lease(1, NEIGHBOUR), lease(2, NEIGHBOUR + 1))
    assert [(route[0], route[2], route[3]) for route in direct.routes()] == [
        ("10.128.1.0/24", str(NEIGHBOUR), "75"),
        ("10.128.2.0/24", str(NEIGHBOUR + 1), "75"),
        ("10.128.3.0/24", "198.18.0.97", "static"),
        ("10.128.4.0/25", "198.18.0.97", "boot"),
    ]


def test_an_administrators_static_route_makes_the_peer_fail_and_stays(direct: DirectLab) -> None:
    ip("route add 10.128.1.0/24 via 198.18.0.97 dev up0 proto static")
    set_leases(direct, lease(1, NEIGHBOUR))
    (status,) = direct.forwarding.statuses()
    assert status.condition is Condition.FAILING
    assert "no foreign one in its place" in status.reason
    assert direct.routes()[0][3] == "static"


def test_direct_routing_decides_for_each_peer_and_anew_at_each_survey(lab: Lab) -> None:
    underlay = Underlay(lab.rtnl)
    backend = vxlan_backend(lab.links, lab.rtnl, replace(CONFIG, direct_routing=True), underlay)
    backend.prepare(lab.uplink)
    backend.assign(SUBNET)
    forwarding = Forwarding(backend, lab.rtnl, HOME)
    near, far = _vxlan_lease(1, NEIGHBOUR), _vxlan_lease(2, FAR)
    ip("route add 198.51.100.0/24 via 198.18.0.77")

    def program() -> list[tuple[str, ...]]:
        underlay.survey([NEIGHBOUR, FAR])
        forwarding.set_peers([backend.peer(near), backend.peer(far)], now=0.0)
        return [route[:3] for route in lab.routes() if route[0].startswith("10.128")]

    plain = ("10.128.1.0/24", "up0", str(NEIGHBOUR))
    assert program() == [plain, ("10.128.2.0/24", "flannel.1", "10.128.2.0")]
    assert [mac for mac, _ in lab.fdb()] == ["0e:2a:00:00:00:02"]
    ip(f"route add {NEIGHBOUR} via 198.18.0.77")
    assert program()[0] == ("10.128.1.0/24", "flannel.1", "10.128.1.0")
    ip(f"route del {NEIGHBOUR}")
    assert program()[0] == plain
    assert [mac for mac, _ in lab.fdb()] == ["0e:2a:00:00:00:02"]


def test_a_route_by_its_device_alone_outlives_the_carrier(lab: Lab) -> None:
    ip("tuntap add dev flannel0 mode tun")
    ip("link set flannel0 up")
    ifindex = socket.if_nametoindex("flannel0")
    route = DeviceRoute(NETWORK, ifindex)
    assert lab.rtnl.apply(Plan(put=(route,))) == ()

    def ours() -> list[object]:
        uplink = lab.uplink.ifindex
        return list(lab.rtnl.owned(overlay=ifindex, uplink=uplink, network=NETWORK).values())

    assert ours() == [route]
    with Tun("flannel0"):
        assert ours() == [route]
    assert "NO-CARRIER" in show("ip link show flannel0")[0]["flags"]
    assert ours() == [route]
    assert show("ip route get 10.128.77.1")[0]["dev"] == "flannel0"
    assert lab.rtnl.apply(Plan(remove=(route,))) == ()
    assert ours() == []


def _vxlan_lease(number: int, node: IPv4Address) -> Lease:
    data = b'{"VNI":1,"VtepMAC":"0e:2a:00:00:00:%02x"}' % number
    return replace(lease(number, node, "vxlan"), backend_data=data)
