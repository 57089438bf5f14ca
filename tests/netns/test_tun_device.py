"""The TUN device on a real kernel: it outlives its holder, and is refused clearly."""

import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import packets
import pytest
from kersey_control.errors import InvalidInputError
from kersey_control.tun import Tun, TunError, TunGoneError
from testbed import Namespace, wait_until

_numbers = count(1)
FAR, OWN = "10.244.2.2", "10.244.1.0"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x1, 0x1000, 0x4000, 0x100
_TUN_F_CSUM, _TUN_F_TSO4 = 0x1, 0x2


@pytest.fixture
def node(requires: Callable[..., None]) -> Iterator[Namespace]:
    """Give a test an empty namespace."""
    requires("ip")
    with Namespace(f"tun{next(_numbers)}") as namespace:
        yield namespace


def hold(node: Namespace, name: str = "flannel0") -> Tun:
    return node.call(lambda: Tun(name))


def set_up(node: Namespace, name: str = "flannel0") -> None:
    node.ip(
        f"address add {OWN}/32 dev {name}",
        f"link set {name} mtu 1472 up",
        f"route add 10.244.0.0/16 dev {name}",
    )


def device(node: Namespace, name: str = "flannel0") -> dict[str, Any]:
    shown = json.loads(node.run("ip", "-d", "-j", "link", "show", name).stdout)
    found: dict[str, Any] = shown[0]
    return found


def state(node: Namespace) -> tuple[str, str]:
    addresses = node.run("ip", "-br", "address", "show", "flannel0").stdout.split()[2:]
    routes = node.run("ip", "-o", "route", "show", "dev", "flannel0").stdout
    return " ".join(addresses), routes.removesuffix(" linkdown \n").strip()


def send(node: Namespace, payload: bytes, to: str = FAR) -> None:
    with node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.bind((OWN, 5000))
        sender.sendto(payload, (to, 5001))


def read(tun: Tun) -> bytes:
    """Return the next packet that is not a router solicitation or the like."""
    room = memoryview(bytearray(65536))
    length = wait_until(lambda: tun.read_into(room), timeout=5, what="a packet from the stack")
    return bytes(room[:length])


def test_a_device_is_made_plain_and_persistent(node: Namespace) -> None:
    with hold(node):
        data = device(node)["linkinfo"]
    assert data["info_kind"] == "tun"
    expected = {"type": "tun", "pi": False, "vnet_hdr": False, "multi_queue": False}
    assert expected.items() <= data["info_data"].items()
    assert data["info_data"]["persist"]


def test_packets_of_the_stack_are_read_and_written_whole(node: Namespace) -> None:
    with hold(node) as tun:
        set_up(node)
        assert tun.read_into(memoryview(bytearray(100))) is None
        send(node, b"x" * 1000)
        found = read(tun)
        assert found[28:] == b"x" * 1000
        assert found[12:20] == socket.inet_aton(OWN) + socket.inet_aton(FAR)
        with node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver:
            receiver.settimeout(5)
            receiver.bind((OWN, 5000))
            datagram = packets.udp(b"answer", src=5001, dst=5000)
            assert tun.write(memoryview(packets.ipv4(datagram, src=FAR, dst=OWN)))
            assert receiver.recv(100) == b"answer"


def test_device_address_and_route_outlive_the_holder(node: Namespace) -> None:
    with hold(node):
        set_up(node)
        before, number = state(node), device(node)["ifindex"]
    assert before == (f"{OWN}/32", "10.244.0.0/16 scope link")
    assert "NO-CARRIER" in device(node)["flags"]
    assert (state(node), device(node)["ifindex"]) == (before, number)
    with hold(node) as tun:
        assert (state(node), device(node)["ifindex"]) == (before, number)
        send(node, b"again")
        assert read(tun)[28:] == b"again"


def test_programs_on_egress_see_packets_while_nobody_holds_the_device(
    node: Namespace, requires: Callable[..., None]
) -> None:
    requires("tc")
    with hold(node):
        set_up(node)
    with hold(node, "probe0") as probe:
        node.ip("link set probe0 up")
        to_probe = "u32 match u32 0 0 action mirred egress redirect dev probe0"
        for line in (
            "qdisc add dev flannel0 clsact",
            f"filter add dev flannel0 egress protocol ip {to_probe}",
        ):
            node.run("tc", *line.split())
        send(node, b"seen")
        assert read(probe)[28:] == b"seen"


def test_an_adopted_device_loses_what_its_last_holder_asked_for(node: Namespace) -> None:
    """With offloads left on, one read would be an unfinished packet of 64 KiB."""
    with node.call(lambda: open("/dev/net/tun", "r+b", buffering=0)) as other:  # noqa: PTH123
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(other, _TUNSETIFF, struct.pack("16sH22x", b"flannel0", flags))
        fcntl.ioctl(other, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
        fcntl.ioctl(other, _TUNSETPERSIST, 1)
        set_up(node)
    with hold(node) as tun:
        send(node, b"payload")
        found = read(tun)
        assert len(found) == 35
        pseudo = found[12:20] + b"\0\x11\0\x0f"
        assert packets.checksum(pseudo + found[20:]) == 0
        features = node.run("ethtool", "-k", "flannel0").stdout
        assert "tcp-segmentation-offload: off" in features


def test_a_device_that_another_holds_is_refused(node: Namespace) -> None:
    with hold(node), pytest.raises(TunError, match=r"flannel0: EBUSY \(another process") as refused:
        hold(node)
    assert refused.value.errno == errno.EBUSY
    hold(node).close()


@pytest.mark.parametrize(
    "made",
    [
        "link add flannel0 type veth peer name other0",
        "link add flannel0 type bridge",
        "tuntap add flannel0 mode tap",
        "tuntap add flannel0 mode tun multi_queue",
    ],
)
def test_a_device_of_another_kind_is_refused_and_left_alone(node: Namespace, made: str) -> None:
    node.ip(made)
    before = device(node)
    with pytest.raises(TunError, match=r"flannel0: EINVAL \(there is a device of this name"):
        hold(node)
    assert device(node) == before


@pytest.mark.parametrize("name", ["", "a" * 16, "tun%d", "a/b", "a b", "a:b", ".", ".."])
def test_a_name_that_no_device_can_have_is_refused(node: Namespace, name: str) -> None:
    with pytest.raises(InvalidInputError, match="a device name"):
        hold(node, name)


def test_a_failed_attempt_leaves_no_descriptor(node: Namespace) -> None:
    node.ip("link add flannel0 type bridge")

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = descriptors()
    for _ in range(3):
        with pytest.raises(TunError):
            hold(node)
    assert descriptors() == before


def test_a_deleted_device_is_told_from_one_that_is_down(node: Namespace) -> None:
    packet = memoryview(packets.ipv4(b"data", src=FAR, dst=OWN))
    room = memoryview(bytearray(100))
    with hold(node) as tun:
        assert not tun.write(packet)
        assert tun.read_into(room) is None
        assert tun.is_alive
        node.ip("link set flannel0 up")
        assert tun.write(packet)
        node.ip("link del flannel0")
        assert not tun.is_alive
        with pytest.raises(TunGoneError, match="flannel0: deleted"):
            tun.write(packet)
        with pytest.raises(TunGoneError):
            tun.read_into(room)
        with pytest.raises(TunGoneError):
            _ = tun.mtu
        with hold(node) as another:
            assert another.is_alive
            assert not tun.is_alive


def test_mtu_is_that_of_now_whatever_the_name(node: Namespace) -> None:
    with hold(node) as tun:
        node.ip("link set flannel0 mtu 1400")
        assert tun.mtu == 1400
        node.ip("link set flannel0 name other0 mtu 1300")
        assert tun.mtu == 1300


def test_closing_twice_does_no_harm(node: Namespace) -> None:
    with closing(hold(node)) as tun:
        tun.close()
    assert device(node)["ifname"] == "flannel0"
