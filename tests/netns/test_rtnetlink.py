"""Bulk requests against a real kernel, read back by iproute2, and the kernel's traps."""

import errno
import socket
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from kersey_control.addresses import Mac
from kersey_control.errors import KernelError
from kersey_control.reconcile import (
    FdbEntry,
    KernelObject,
    KernelState,
    Nexthop,
    Plan,
    Route,
    StrayRoute,
    plan,
    state_of,
)
from vxlan_lab import NETWORK, Lab, expected_route, ip, peer, run, show


def _objects(lab: Lab, *numbers: int) -> KernelState:
    return state_of(obj for number in numbers for obj in lab.backend.objects(peer(number)))


def _apply(lab: Lab, desired: KernelState) -> None:
    assert lab.rtnl.apply(plan(desired, lab.backend.actual())) == ()


def test_iproute2_shows_what_was_put(ready_lab: Lab) -> None:
    _apply(ready_lab, _objects(ready_lab, 1))
    shown = show("ip route show 10.128.1.0/24")
    shown[0].pop("nh_info", None)  # newer versions of iproute2 repeat the nexthop
    assert shown == [
        {
            "type": "unicast",
            "dst": "10.128.1.0/24",
            "nhid": int(IPv4Address("10.128.1.0")),
            "gateway": "10.128.1.0",
            "dev": "flannel.1",
            "protocol": "75",
            "scope": "global",
            "flags": ["onlink"],
        }
    ]
    assert show("ip neigh show dev flannel.1") == [
        {"dst": "10.128.1.0", "lladdr": "0e:2a:00:00:00:01", "state": ["PERMANENT"]}
    ]
    assert [
        {key: entry[key] for key in ("mac", "dst", "flags", "state")}
        for entry in show("bridge fdb show dev flannel.1")
    ] == [
        {
            "mac": "0e:2a:00:00:00:01",
            "dst": "198.18.0.2",
            "flags": ["self"],
            "state": "permanent",
        }
    ]
    assert ready_lab.holds(peer(1))


def test_ten_thousand_peers_are_put_read_back_and_removed(ready_lab: Lab) -> None:
    desired = _objects(ready_lab, *range(1, 10_001))
    _apply(ready_lab, desired)
    assert ready_lab.backend.actual() == desired
    assert len(ready_lab.routes()) == len(ready_lab.fdb()) == 10_000
    assert len(ready_lab.neighbours()) == len(ready_lab.nexthops()) == 10_000
    _apply(ready_lab, {})
    assert ready_lab.holds()


@pytest.mark.parametrize("position", [0, 399, 400, 1000, 1599])
def test_failing_operation_is_reported_alone(ready_lab: Lab, position: int) -> None:
    good: list[KernelObject] = list(_objects(ready_lab, *range(1, 401)).values())
    bad = Route(IPv4Network("10.129.1.0/24"), 12345)
    failures = ready_lab.rtnl.apply(Plan(put=(*good[:position], bad, *good[position:])))
    assert [(failure.obj, failure.errno) for failure in failures] == [(bad, errno.EINVAL)]
    assert failures[0].reason == "EINVAL: Nexthop id does not exist"
    assert ready_lab.holds(*(peer(number) for number in range(1, 401)))


def test_lost_answers_count_as_failures_and_the_next_request_works(ready_lab: Lab) -> None:
    ready_lab.rtnl._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    bad = tuple(Route(IPv4Network((f"10.129.{i}.0", 24)), 12345) for i in range(200))
    failures = ready_lab.rtnl.apply(Plan(put=bad))
    assert {failure.obj for failure in failures} == set(bad)
    assert errno.ENOBUFS in {failure.errno for failure in failures}
    desired = _objects(ready_lab, 1)
    assert ready_lab.rtnl.apply(plan(desired, {})) == ()
    assert ready_lab.holds(peer(1))


def test_removing_what_is_gone_is_no_failure(ready_lab: Lab) -> None:
    stray = StrayRoute(
        subnet=IPv4Network("10.128.9.0/24"),
        ifindex=ready_lab.backend.ifindex,
        gateway=None,
        nexthop=0,
        protocol=3,
        metric=7,
        tos=0,
        replaceable=False,
    )
    gone = (stray, *_objects(ready_lab, 1, 2).values())
    assert ready_lab.rtnl.apply(Plan(remove=gone)) == ()


def test_kernel_removes_the_routes_of_a_removed_nexthop(ready_lab: Lab) -> None:
    _apply(ready_lab, _objects(ready_lab, 1, 2))
    ip(f"nexthop del id {int(IPv4Address('10.128.1.0'))}")
    assert ready_lab.routes() == [expected_route(peer(2))]
    _apply(ready_lab, _objects(ready_lab, 1, 2))
    assert ready_lab.holds(peer(1), peer(2))


def test_foreign_route_in_the_place_is_not_overwritten(ready_lab: Lab) -> None:
    ip("route add 10.128.1.0/24 via 198.18.0.77 dev up0")
    before = ready_lab.routes()
    failures = ready_lab.rtnl.apply(plan(_objects(ready_lab, 1), ready_lab.backend.actual()))
    assert [(type(f.obj), f.errno) for f in failures] == [(Route, errno.EEXIST)]
    assert ready_lab.routes() == before


def test_foreign_nexthop_with_our_id_is_not_overwritten(ready_lab: Lab) -> None:
    identity = int(IPv4Address("10.128.1.0"))
    ip(f"nexthop add id {identity} via 198.18.0.77 dev up0")
    before = show("ip nexthop show")
    failures = ready_lab.rtnl.apply(plan(_objects(ready_lab, 1), ready_lab.backend.actual()))
    assert (Nexthop, errno.EEXIST) in [(type(f.obj), f.errno) for f in failures]
    assert show("ip nexthop show") == before


@pytest.mark.parametrize(
    "disturbance",
    [
        "route append 10.128.1.0/24 via 10.128.7.0 dev flannel.1 onlink",
        "route prepend 10.128.1.0/24 via 10.128.7.0 dev flannel.1 onlink",
        "route add 10.128.1.0/24 via 10.128.7.0 dev flannel.1 onlink metric 100",
        "route add 10.128.1.0/24 via 10.128.7.0 dev flannel.1 onlink tos 0x10",
        "route replace 10.128.1.0/24 via 10.128.7.0 dev flannel.1 onlink proto static",
        "route replace 10.128.1.0/24 dev flannel.1 scope link",
        "route add 10.128.1.4/32 via 10.128.1.0 dev flannel.1 onlink",
        "route add 172.16.0.0/12 dev flannel.1",
    ],
)
def test_stray_routes_on_the_device_are_removed(ready_lab: Lab, disturbance: str) -> None:
    desired = _objects(ready_lab, 1)
    _apply(ready_lab, desired)
    ip(disturbance)
    assert not ready_lab.holds(peer(1))
    _apply(ready_lab, desired)
    assert ready_lab.holds(peer(1))


def test_removed_stray_leaves_a_foreign_route_to_the_same_subnet(ready_lab: Lab) -> None:
    ip("route add 10.128.5.0/24 via 198.18.0.77 dev up0")
    ip("route append 10.128.5.0/24 via 10.128.5.0 dev flannel.1 onlink")
    _apply(ready_lab, {})
    assert ready_lab.routes() == [("10.128.5.0/24", "up0", "198.18.0.77", "boot", "")]


def test_routes_of_the_uplink_count_only_with_our_mark_and_id(ready_lab: Lab) -> None:
    ours, other = int(IPv4Address("10.128.5.0")), int(IPv4Address("172.16.5.0"))
    for identity, protocol in ((ours, 75), (other, 75), (77, 4)):
        ip(f"nexthop add id {identity} via 198.18.0.77 dev up0 proto {protocol}")
    ip(f"route add 10.128.5.0/24 nhid {ours} proto 75")
    ip(f"route add 172.16.5.0/24 nhid {other} proto 75")
    ip("route add 10.128.6.0/24 nhid 77 proto static")
    ip("route add 10.128.7.0/24 via 198.18.0.77 dev up0 proto boot")
    _apply(ready_lab, {})
    assert [route[0] for route in ready_lab.routes()] == [
        "10.128.6.0/24",
        "10.128.7.0/24",
        "172.16.5.0/24",
    ]
    assert ready_lab.nexthops() == [77, other]


def test_forwarding_entry_is_removed_whatever_node_it_names_by_now(ready_lab: Lab) -> None:
    mac = Mac("0e:2a:00:00:00:01")
    run("bridge", "fdb", "add", mac, "dev", "flannel.1", "dst", "198.18.0.9", "self")
    stale = FdbEntry(ready_lab.backend.ifindex, mac, IPv4Address("198.18.0.2"))
    assert ready_lab.rtnl.apply(Plan(remove=(stale,))) == ()
    assert ready_lab.fdb() == []


def test_forwarding_entry_with_a_port_of_its_own_is_put_right(ready_lab: Lab) -> None:
    desired = _objects(ready_lab, 1)
    _apply(ready_lab, desired)
    mac, node = "0e:2a:00:00:00:01", "198.18.0.2"
    run(*f"bridge fdb replace {mac} dev flannel.1 dst {node} port 9 self".split())
    _apply(ready_lab, desired)
    assert "port" not in show("bridge fdb show dev flannel.1")[0]
    assert ready_lab.holds(peer(1))


def test_flood_entries_are_removed_with_all_their_nodes(ready_lab: Lab) -> None:
    for node in ("198.18.0.7", "198.18.0.8"):
        run(*f"bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst {node} self".split())
    assert len(ready_lab.fdb()) == 2
    _apply(ready_lab, {})
    assert ready_lab.fdb() == []


def test_learned_neighbours_are_left_alone(ready_lab: Lab) -> None:
    ip("neigh add 10.128.3.3 lladdr 0e:00:00:00:00:33 nud stale dev flannel.1")
    _apply(ready_lab, {})
    assert [entry["dst"] for entry in show("ip neigh show dev flannel.1")] == ["10.128.3.3"]


def test_nexthop_messages_without_device_are_read_too(ready_lab: Lab) -> None:
    Path("/proc/sys/net/ipv4/nexthop_compat_mode").write_text("0")
    desired = _objects(ready_lab, 1)
    _apply(ready_lab, desired)
    assert ready_lab.backend.actual() == desired


def test_reading_a_device_that_is_gone_is_an_error_not_emptiness(ready_lab: Lab) -> None:
    ip("link del flannel.1")
    with pytest.raises(KernelError):
        ready_lab.rtnl.owned(
            overlay=ready_lab.backend.ifindex, uplink=ready_lab.uplink.ifindex, network=NETWORK
        )
