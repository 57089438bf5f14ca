"""Which node has which address."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.node_table import NodeTable
from kersey_control.peer import Peer, Via

NETWORK = IPv4Network("10.244.0.0/16")


def peer(subnet: str, node: str) -> Peer:
    return Peer(IPv4Network(subnet), IPv4Address(node), Via.UDP)


TABLE = NodeTable.of(
    [
        peer("10.244.1.0/24", "198.18.0.1"),
        peer("10.244.2.0/24", "198.18.0.2"),
        peer("10.244.2.128/25", "198.18.0.3"),
        peer("10.244.128.0/17", "198.18.0.4"),
        peer("10.244.130.0/24", "198.18.0.2"),
    ],
    network=NETWORK,
)


@pytest.mark.parametrize(
    ("address", "node"),
    [
        ("10.244.1.0", "198.18.0.1"),
        ("10.244.1.255", "198.18.0.1"),
        ("10.244.2.127", "198.18.0.2"),
        ("10.244.2.128", "198.18.0.3"),
        ("10.244.129.9", "198.18.0.4"),
        ("10.244.130.9", "198.18.0.2"),
        ("10.244.0.255", None),
        ("10.244.3.0", None),
        ("10.245.1.1", None),
        ("0.0.0.1", None),
        ("255.255.255.255", None),
    ],
)
def test_the_longest_prefix_decides(address: str, node: str | None) -> None:
    found = TABLE.node_of(int(IPv4Address(address)))
    assert found == (int(IPv4Address(node)) if node else None)


def test_nodes_and_pods_are_known() -> None:
    assert TABLE.is_node(int(IPv4Address("198.18.0.3")))
    assert not TABLE.is_node(int(IPv4Address("198.18.0.5")))
    assert TABLE.is_pod(int(IPv4Address("10.244.77.1")))
    assert not TABLE.is_pod(int(IPv4Address("10.243.255.255")))
    assert not TABLE.is_pod(int(IPv4Address("10.245.0.0")))


def test_a_node_with_an_address_in_a_lease_has_no_way() -> None:
    peers = [
        peer("10.244.1.0/24", "10.244.2.7"),
        peer("10.244.2.0/24", "198.18.0.2"),
        peer("10.244.3.0/25", "10.244.3.3"),
        peer("10.244.4.0/24", "10.244.200.1"),  # of the network, but nobody's
    ]
    table = NodeTable.of(peers, network=NETWORK)
    found = {each: table.node_of(int(each.subnet[1])) for each in peers}
    assert list(found.values()) == [None, int(peers[1].node), None, int(peers[3].node)]
    assert [table.is_node(int(each.node)) for each in peers] == [False, True, False, True]


def test_leases_of_one_size_are_one_look_up() -> None:
    peers = [peer(f"10.244.{n}.0/24", "198.18.0.1") for n in range(200)]
    assert [shift for shift, _ in NodeTable.of(peers, network=NETWORK).levels] == [8]


@given(st.lists(st.tuples(st.integers(17, 32), st.integers(0, 0xFFFF)), max_size=8), st.data())
def test_the_table_agrees_with_comparing_every_prefix(
    prefixes: list[tuple[int, int]], data: st.DataObject
) -> None:
    base = int(NETWORK.network_address)
    subnets = {IPv4Network((base + low, length), strict=False) for length, low in prefixes}
    peers = [Peer(subnet, IPv4Address(n + 1), Via.UDP) for n, subnet in enumerate(subnets)]
    address = IPv4Address(base + data.draw(st.integers(0, 0xFFFF)))
    having = [p for p in peers if address in p.subnet]
    best = max(having, key=lambda p: p.subnet.prefixlen, default=None)
    found = NodeTable.of(peers, network=NETWORK).node_of(int(address))
    assert found == (int(best.node) if best else None)


def test_no_peers_know_nothing() -> None:
    table = NodeTable.of([], network=NETWORK)
    assert table.node_of(int(IPv4Address("10.244.1.1"))) is None
    assert not table.is_node(0)
