"""A network namespace with an uplink, and the parts of the slow path at work in it.

Promises to leave nothing behind: the namespace has no name and ends with the last process in it.
What the kernel holds is read by iproute2, never by our own code.
"""

import ctypes
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from kersey_control.addresses import Mac, Vni, mac_from_bytes
from kersey_control.backends.vxlan import VxlanBackend
from kersey_control.forwarding import Forwarding, Home
from kersey_control.netconfig import VxlanConfig
from kersey_control.netlink import Links
from kersey_control.peer import Peer, Via
from kersey_control.rtnetlink import Rtnl
from kersey_control.underlay import Underlay
from kersey_control.uplink import Uplink
from testbed.waiting import wait_until

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

NETWORK = IPv4Network("10.128.0.0/10")
SUBNET = IPv4Network("10.128.0.0/24")
UPLINK_ADDRESS = IPv4Address("198.18.0.1")
HOME = Home(network=NETWORK, subnet=SUBNET, addresses=frozenset([UPLINK_ADDRESS]))
CONFIG = VxlanConfig(
    vni=Vni(1), port=8472, mtu=None, gbp=False, learning=False, direct_routing=False
)


@contextmanager
def new_network() -> Iterator[None]:
    """Put the calling thread, and what it starts, into a network namespace of its own."""
    with ExitStack() as undo:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        undo.callback(os.close, before)
        _check(_libc.unshare(_CLONE_NEWNET))
        undo.callback(lambda: _check(_libc.setns(before, _CLONE_NEWNET)))
        yield


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(*command: str) -> str:
    """Run a program that must succeed and return what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ip(text: str) -> None:
    """Run one `ip` command."""
    run("ip", *text.split())


def show(text: str) -> list[dict[str, Any]]:
    """Return what an iproute2 program shows, e.g. `bridge fdb show dev flannel.1`."""
    program, *rest = text.split()
    found: list[dict[str, Any]] = json.loads(run(program, "-j", "-d", *rest) or "[]")
    return found


def peer(number: int, *, mac: Mac | None = None, node: str | None = None) -> Peer:
    """Return the peer with the number-th /24 of the network; number 0 is our own subnet."""
    return Peer(
        subnet=IPv4Network((int(NETWORK.network_address) + (number << 8), 24)),
        node=IPv4Address(node) if node else UPLINK_ADDRESS + number,
        via=Via.VXLAN,
        mac=mac or mac_from_bytes(bytes([0x0E, 0x2A]) + number.to_bytes(4, "big")),
    )


@dataclass
class Lab:
    """One node's slow path, and means to look at it and to disturb it."""

    uplink: Uplink
    links: Links
    rtnl: Rtnl
    backend: VxlanBackend
    forwarding: Forwarding

    def restart(self, config: VxlanConfig = CONFIG) -> None:
        """Forget everything that a daemon forgets when it ends; the kernel forgets nothing."""
        self.backend = vxlan_backend(self.links, self.rtnl, config)
        self.forwarding = Forwarding(self.backend, self.rtnl, HOME)

    def ready(self) -> None:
        """Bring the device up as the daemon does before it has peers."""
        self.backend.prepare(self.uplink)
        self.backend.assign(SUBNET)

    def change_uplink(self, **fields: Any) -> None:
        self.uplink = replace(self.uplink, **fields)

    def routes(self) -> list[tuple[str, ...]]:
        """Return (subnet, device, gateway, protocol, nhid) of all routes but connected ones."""
        return sorted(
            (
                route["dst"],
                route.get("dev", ""),
                route.get("gateway", ""),
                str(route.get("protocol", "")),
                str(route.get("nhid", "")),
            )
            for route in show("ip route show")
            if route.get("protocol") != "kernel"
        )

    def neighbours(self) -> list[tuple[str, str]]:
        """Return (address, MAC) of the permanent neighbours on the device."""
        found = show("ip neigh show nud permanent dev flannel.1")
        return sorted((entry["dst"], entry["lladdr"]) for entry in found)

    def fdb(self) -> list[tuple[str, str]]:
        """Return (MAC, node) of the forwarding entries of the device."""
        found = show("bridge fdb show dev flannel.1")
        return sorted((entry["mac"], entry.get("dst", "")) for entry in found)

    def nexthops(self) -> list[int]:
        """Return the ids of all nexthop objects."""
        return sorted(nexthop["id"] for nexthop in show("ip nexthop show"))

    def holds(self, *peers: Peer) -> bool:
        """Return whether the kernel holds exactly what these peers need, and nothing else."""
        return (
            self.routes() == sorted(expected_route(each) for each in peers)
            and self.neighbours() == sorted((str(each.subnet[0]), str(each.mac)) for each in peers)
            and self.fdb() == sorted({(str(each.mac), str(each.node)) for each in peers})
            and self.nexthops() == sorted(int(each.subnet[0]) for each in peers)
        )


def expected_route(each: Peer) -> tuple[str, ...]:
    """Return how `Lab.routes` shows a peer's route."""
    base = each.subnet.network_address
    return (str(each.subnet), "flannel.1", str(base), "75", str(int(base)))


def vxlan_backend(
    links: Links,
    rtnl: Rtnl,
    config: VxlanConfig = CONFIG,
    underlay: Underlay | None = None,
    *,
    last_data: bytes = b"",
) -> VxlanBackend:
    """Return a backend that has not looked at the kernel yet."""
    return VxlanBackend(
        config,
        network=NETWORK,
        subnet_len=24,
        node_id="node-1",
        links=links,
        rtnl=rtnl,
        underlay=underlay or Underlay(rtnl),
        last_data=last_data,
    )


@contextmanager
def open_lab() -> Iterator[Lab]:
    """Make a namespace with a cabled uplink; no overlay device yet."""
    with new_network():
        ip("link set lo up")
        ip("link add up0 type veth peer name far0")
        ip(f"address add {UPLINK_ADDRESS}/15 dev up0")
        ip("link set up0 up")
        ip("link set far0 up")
        uplink = Uplink(
            ifindex=socket.if_nametoindex("up0"),
            name="up0",
            address=UPLINK_ADDRESS,
            public_ip=UPLINK_ADDRESS,
            mtu=1500,
            reason="test",
        )
        with Links() as links, Rtnl() as rtnl:
            backend = vxlan_backend(links, rtnl)
            yield Lab(uplink, links, rtnl, backend, Forwarding(backend, rtnl, HOME))


def wait_told() -> None:
    """Wait until the kernel has told that the uplink is up: it does up to a second later."""
    wait_until(_is_cabled, timeout=30, what="the uplink is up")


def _is_cabled() -> bool:
    return all(
        link["operstate"] == "UP"
        for name in ("up0", "far0")
        for link in show(f"ip link show {name}")
    )


def now() -> float:
    """Return the time that forwarding goes by."""
    return time.monotonic()
