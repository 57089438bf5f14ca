"""What can be known of a node without its daemon: subnet.env, kernel objects, places."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace

import pytest
from kersey_control.addresses import Mac
from kersey_control.node_view import SubnetEnv, peers_in_kernel, pins_of, read_subnet_env
from kersey_control.reconcile import (
    FdbEntry,
    KernelObject,
    Neighbour,
    Nexthop,
    Route,
    state_of,
)
from kersey_control.told import ToldPeer
from operator_values import node_view

OVERLAY, UPLINK = 3, 2
PEER = IPv4Network("10.244.2.0/24")
BASE, NODE = PEER.network_address, IPv4Address("198.18.0.12")
MAC = Mac("0e:00:00:00:00:02")
ROUTE = Route(PEER, int(BASE))
NEXTHOP = Nexthop(int(BASE), OVERLAY, BASE, onlink=True)
NEIGHBOUR = Neighbour(OVERLAY, BASE, MAC)
ENTRY = FdbEntry(OVERLAY, MAC, NODE)


@pytest.mark.parametrize(
    ("objects", "via", "expected"),
    [
        (
            (ROUTE, NEXTHOP, NEIGHBOUR, ENTRY),
            "vxlan",
            ToldPeer(str(PEER), str(NODE), "vxlan", "programmed", mac=MAC),
        ),
        (
            (ROUTE, NEXTHOP, ENTRY),
            "vxlan",
            ToldPeer(str(PEER), "", "vxlan", "failing", "no neighbour entry for 10.244.2.0"),
        ),
        (
            (ROUTE, NEXTHOP, NEIGHBOUR),
            "vxlan",
            ToldPeer(str(PEER), "", "vxlan", "failing", f"no forwarding entry for {MAC}"),
        ),
        (
            (ROUTE, NEIGHBOUR, ENTRY),
            "vxlan",
            ToldPeer(str(PEER), "", "vxlan", "failing", "its nexthop object is missing"),
        ),
        (
            (ROUTE, Nexthop(int(BASE), UPLINK, NODE, onlink=False)),
            "host-gw",
            ToldPeer(str(PEER), str(NODE), "direct", "programmed"),
        ),
        (
            (ROUTE, Nexthop(int(BASE), OVERLAY, NODE, onlink=True)),
            "ipip",
            ToldPeer(str(PEER), str(NODE), "ipip", "programmed"),
        ),
    ],
)
def test_peers_are_read_off_the_kernel(
    objects: tuple[KernelObject, ...], via: str, expected: ToldPeer
) -> None:
    assert peers_in_kernel(state_of(objects), overlay=OVERLAY, via=via) == [expected]


def test_the_one_route_of_udp_names_no_peer() -> None:
    network = IPv4Network("10.244.0.0/16")
    identity = int(network.network_address)
    objects = (Route(network, identity), Nexthop(identity, OVERLAY, IPv4Address(0), onlink=False))
    assert peers_in_kernel(state_of(objects), overlay=OVERLAY, via="udp") == []


def test_subnet_env_is_read(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    file.write_text(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.9.1/24\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert read_subnet_env(file) == SubnetEnv(
        IPv4Network("10.244.0.0/16"), IPv4Network("10.244.9.0/24"), 1450, masquerade=True
    )


@pytest.mark.parametrize("content", ["", "FLANNEL_NETWORK=x\n", "FLANNEL_SUBNET=10.0.0.1/24\n"])
def test_a_subnet_env_that_says_nothing_usable_is_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "subnet.env"
    assert read_subnet_env(file) is None
    file.write_text(content)
    assert read_subnet_env(file) is None


def test_pins_are_those_of_the_daemon_with_this_subnet_file() -> None:
    def places(name: str) -> SimpleNamespace:
        return SimpleNamespace(subnet_file=Path(name), state_dir=Path("/x"), bpf_dir=Path("/bpf"))

    one, two = pins_of(places("/run/a/subnet.env")), pins_of(places("/run/b/subnet.env"))
    assert one.parent == Path("/bpf")
    assert one.name.startswith("instance-")
    assert one != two


def test_a_view_without_a_daemon_knows_what_subnet_env_and_the_device_say() -> None:
    view = node_view()
    assert (view.backend, view.port, view.overhead) == ("vxlan", 8472, 50)
    assert (view.network, view.subnet) == (
        IPv4Network("10.244.0.0/16"),
        IPv4Network("10.244.1.0/24"),
    )
    assert view.address is None
