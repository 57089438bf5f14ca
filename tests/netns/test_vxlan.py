"""The overlay device: made, adopted, repaired, refused; and which leases become peers."""

import json
import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from kersey_control.addresses import Vni
from kersey_control.backends.vxlan import derive_mac
from kersey_control.errors import KernelError, PeerRefusedError
from kersey_control.lease import Lease
from vxlan_lab import CONFIG, Lab, ip, peer, show, vxlan_backend

UPLINK_ADDRESS = IPv4Address("198.18.0.1")

FLANNEL = (
    "link add flannel.1 address da:86:87:c5:fb:1d mtu 1450 type vxlan id 1 local 198.18.0.1"
    " dev up0 dstport 8472 nolearning"
)


def _device() -> dict[str, object]:
    """Return what matters of flannel.1."""
    link = show("ip link show flannel.1")[0]
    info = link["linkinfo"]["info_data"]
    wanted = ("id", "local", "link", "port", "learning", "udp_csum", "gbp", "port_range", "ttl")
    return {
        "up": "UP" in link["flags"],
        "mtu": link["mtu"],
        "mac": link["address"],
        **{name: info[name] for name in wanted if name in info},
    }


def _addresses() -> list[str]:
    found = show("ip -4 address show dev flannel.1")[0]["addr_info"]
    return [f"{address['local']}/{address['prefixlen']}" for address in found]


def _ifindex() -> int:
    return socket.if_nametoindex("flannel.1")


def test_device_has_the_attributes_of_flannels_except_the_outer_checksum(lab: Lab) -> None:
    lab.ready()
    assert _device() == {
        "up": True,
        "mtu": 1450,
        "mac": derive_mac("node-1", UPLINK_ADDRESS, Vni(1)),
        "id": 1,
        "local": "198.18.0.1",
        "link": "up0",
        "port": 8472,
        "port_range": {"low": 0, "high": 0},
        "learning": False,
        "udp_csum": False,
        "ttl": 0,
    }
    assert _addresses() == ["10.128.0.0/32"]
    assert Path("/proc/sys/net/ipv6/conf/flannel.1/accept_ra").read_text() == "0\n"
    assert lab.backend.mtu == 1450
    mac = derive_mac("node-1", UPLINK_ADDRESS, Vni(1))
    assert lab.backend.lease_data == f'{{"VNI":1,"VtepMAC":"{mac}"}}'.encode()


def test_derived_mac_is_stable_unicast_local_and_of_one_node_and_vni() -> None:
    here, there = IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")
    nodes = [("a", here, Vni(1)), ("b", here, Vni(1)), ("a", there, Vni(1)), ("a", here, Vni(2))]
    macs = [derive_mac(*node) for node in nodes]
    assert len(set(macs)) == 4
    assert derive_mac("a", here, Vni(1)) == macs[0]
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)


def test_second_preparation_changes_nothing(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.ready()
    before = (_ifindex(), _device(), _addresses())
    caplog.set_level("DEBUG", logger="kersey_control")
    caplog.clear()
    lab.ready()
    assert (_ifindex(), _device(), _addresses()) == before
    assert caplog.messages == []


def test_flannels_device_is_adopted_with_its_mac(lab: Lab) -> None:
    ip(FLANNEL)
    before = _ifindex()
    lab.ready()
    assert _ifindex() == before == lab.backend.ifindex
    assert _device()["mac"] == lab.backend.tunnel.mac.hex(":") == "da:86:87:c5:fb:1d"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("link set flannel.1 down", {"up": False}),
        ("link set flannel.1 mtu 1300", {"mtu": 1300}),
        ("link set flannel.1 address 0e:00:00:00:00:77", {"mac": "0e:00:00:00:00:77"}),
        ("link set flannel.1 type vxlan learning", {"learning": True}),
        ("link set flannel.1 type vxlan local 198.18.9.9", {"local": "198.18.9.9"}),
    ],
)
def test_changed_device_is_repaired_in_place(
    lab: Lab, change: str, wrong: dict[str, object]
) -> None:
    lab.ready()
    before = (_ifindex(), _device())
    ip(change)
    assert _device() == {**before[1], **wrong}
    lab.ready()
    assert (_ifindex(), _device()) == before


@pytest.mark.parametrize(
    "existing",
    [
        "type vxlan id 2 local 198.18.0.1 dev up0 dstport 8472 nolearning",
        "type vxlan id 1 local 198.18.0.1 dev up0 dstport 4789 nolearning",
        "type vxlan id 1 local 198.18.0.1 dstport 8472 nolearning",
        "type vxlan id 1 local 198.18.0.1 dev up0 dstport 8472 nolearning gbp",
        "type vxlan id 1 local 198.18.0.1 dev up0 dstport 8472 nolearning remote 198.18.0.5",
        "type vxlan external dstport 8472",
    ],
)
def test_unusable_device_is_made_again_with_the_same_mac(lab: Lab, existing: str) -> None:
    ip(f"link add flannel.1 address da:86:87:c5:fb:1d {existing}")
    before = _ifindex()
    lab.ready()
    assert _ifindex() != before
    device = _device()
    assert (device["mac"], device["id"], device["port"]) == ("da:86:87:c5:fb:1d", 1, 8472)
    assert ("gbp" in device, device["link"], device["up"]) == (False, "up0", True)


def test_device_of_another_kind_is_replaced(lab: Lab) -> None:
    ip("link add flannel.1 type bridge")
    lab.ready()
    assert _device()["id"] == 1


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (b'{"VNI":1,"VtepMAC":"0e:2a:00:00:00:77"}', "0e:2a:00:00:00:77"),
        (b'{"VNI":2,"VtepMAC":"0e:2a:00:00:00:77"}', None),
        (b'{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}', None),
        (b'{"VNI":1}', None),
        pytest.param(b"[" * 100_000, None, id="nested"),
        (b"", None),
    ],
)
def test_new_device_takes_the_mac_that_our_lease_said_before(
    lab: Lab, last: bytes, expected: str | None
) -> None:
    vxlan_backend(lab.links, lab.rtnl, last_data=last).prepare(lab.uplink)
    assert _device()["mac"] == (expected or derive_mac("node-1", UPLINK_ADDRESS, Vni(1)))


def test_existing_device_keeps_its_mac_whatever_our_lease_said(lab: Lab) -> None:
    ip(FLANNEL)
    last = b'{"VNI":1,"VtepMAC":"0e:2a:00:00:00:77"}'
    vxlan_backend(lab.links, lab.rtnl, last_data=last).prepare(lab.uplink)
    assert _device()["mac"] == "da:86:87:c5:fb:1d"


def test_deleted_device_comes_back_with_an_adopted_mac(lab: Lab) -> None:
    ip(FLANNEL)
    lab.ready()
    ip("link del flannel.1")
    lab.ready()
    assert _device()["mac"] == "da:86:87:c5:fb:1d"
    assert _addresses() == ["10.128.0.0/32"]


def test_gbp_is_set_where_configured(lab: Lab) -> None:
    lab.restart(replace(CONFIG, gbp=True))
    lab.ready()
    lab.restart(replace(CONFIG, gbp=True))
    before = _ifindex()
    lab.ready()
    assert (_device()["gbp"], _ifindex()) == (True, before)


def test_changed_subnet_replaces_the_address_and_leaves_foreign_ones(lab: Lab) -> None:
    lab.ready()
    ip("address add 10.128.0.1/24 dev flannel.1")
    ip("address add 192.0.2.1/32 dev flannel.1")
    lab.backend.assign(IPv4Network("10.128.8.0/24"))
    assert sorted(_addresses()) == ["10.128.8.0/32", "192.0.2.1/32"]


@pytest.mark.parametrize(
    ("configured", "uplink", "expected"),
    [(None, 9000, 8950), (1400, 1500, 1350), (9000, 1500, 1450), (None, 626, 576)],
)
def test_mtu_is_the_smaller_of_configured_and_uplink_less_the_overhead(
    lab: Lab, configured: int | None, uplink: int, expected: int
) -> None:
    lab.restart(replace(CONFIG, mtu=configured))
    ip(f"link set up0 mtu {uplink}")
    lab.change_uplink(mtu=uplink)
    lab.ready()
    assert lab.backend.mtu == _device()["mtu"] == expected


def test_mtu_follows_the_uplink(lab: Lab) -> None:
    lab.ready()
    before = _ifindex()
    lab.change_uplink(mtu=1400)
    lab.ready()
    assert (lab.backend.mtu, _device()["mtu"], _ifindex()) == (1350, 1350, before)


def test_mtu_too_small_for_pods_is_refused(lab: Lab) -> None:
    lab.change_uplink(mtu=625)
    with pytest.raises(KernelError, match=r"MTU of flannel.1: got 575 .*expected at least 576"):
        lab.ready()


def test_outer_source_is_the_public_address_only_where_the_host_has_it(lab: Lab) -> None:
    lab.change_uplink(public_ip=IPv4Address("203.0.113.9"))
    lab.ready()
    assert _device()["local"] == "198.18.0.1"
    ip("address add 203.0.113.9/32 dev lo")
    lab.ready()
    assert _device()["local"] == "203.0.113.9"


def test_second_device_with_our_vni_and_port_is_named(lab: Lab) -> None:
    ip("link add other type vxlan id 1 dstport 8472 dev up0")
    with pytest.raises(KernelError, match="got device other with the same VNI 1 and port 8472"):
        lab.ready()


def test_device_that_holds_the_port_with_other_settings_is_named(lab: Lab) -> None:
    ip("link add other type vxlan id 7 dstport 8472 dev up0 gbp")
    ip("link set other up")
    with pytest.raises(KernelError, match="UDP port 8472 held by device other with other settings"):
        lab.ready()


def test_program_that_holds_the_port_is_reported_and_survived(lab: Lab) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("0.0.0.0", 8472))  # noqa: S104  # as a tunnel endpoint binds it
        with pytest.raises(KernelError, match="UDP port 8472 held by another program"):
            lab.ready()
    lab.ready()
    assert _device()["up"] is True


def _lease(**fields: object) -> Lease:
    lease = Lease(
        subnet=IPv4Network("10.128.1.0/24"),
        public_ip=IPv4Address("198.18.0.2"),
        backend_type="vxlan",
        backend_data=b'{"VNI":1,"VtepMAC":"0e:2a:00:00:00:01"}',
    )
    return replace(lease, **fields)  # type: ignore[arg-type]  # names are checked by replace


def test_lease_becomes_a_peer(ready_lab: Lab) -> None:
    assert ready_lab.backend.peer(_lease()) == peer(1)
    extra = b'{"New":[1],"VNI":1,"VtepMAC":"0E:2A:00:00:00:01"}'
    assert ready_lab.backend.peer(_lease(backend_data=extra)) == peer(1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"backend_type": "host-gw"}, "BackendType: got 'host-gw', expected 'vxlan'"),
        ({"backend_data": b""}, "BackendData: got b''"),
        ({"backend_data": b"[]"}, "BackendData: got b'\\[\\]'"),
        ({"backend_data": b'{"VNI":1}'}, "VtepMAC"),
        ({"backend_data": b'{"VNI":"1","VtepMAC":"0e:2a:00:00:00:01"}'}, "VNI"),
        (
            {"backend_data": b'{"VNI":2,"VtepMAC":"0e:2a:00:00:00:01"}'},
            "BackendData.VNI: got 2, expected our VNI 1",
        ),
        ({"backend_data": b'{"VNI":1,"VtepMAC":"01:2a:00:00:00:01"}'}, "a unicast MAC"),
        ({"backend_data": b'{"VNI":1,"VtepMAC":"nonsense"}'}, "a unicast MAC"),
        ({"public_ip": IPv4Address(0)}, "PublicIP: got '0.0.0.0'"),
        ({"public_ip": IPv4Address("224.0.0.1")}, "PublicIP: got '224.0.0.1'"),
    ],
)
def test_lease_that_cannot_be_reached_is_refused_with_the_reason(
    ready_lab: Lab, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(PeerRefusedError, match=reason):
        ready_lab.backend.peer(_lease(**fields))


def test_lease_with_our_own_mac_is_refused(ready_lab: Lab) -> None:
    data = json.dumps({"VNI": 1, "VtepMAC": ready_lab.backend.tunnel.mac.hex(":")}).encode()
    with pytest.raises(PeerRefusedError, match="expected one that is not our own"):
        ready_lab.backend.peer(_lease(backend_data=data))


def test_nothing_is_known_before_preparation(lab: Lab) -> None:
    backend = vxlan_backend(lab.links, lab.rtnl)
    for question in (lambda: backend.mtu, lambda: backend.lease_data, backend.actual):
        with pytest.raises(KernelError, match="not prepared yet"):
            question()
