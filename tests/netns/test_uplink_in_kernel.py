"""The uplink as read from a real kernel, one namespace per test."""

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from itertools import count

import pytest
from kersey_control.errors import UplinkError
from kersey_control.host_network import find_uplink, read_host_network
from kersey_control.options import Options
from kersey_control.uplink import DefaultRoute, LinkAddress, RouteLookup, Uplink
from testbed import Namespace

_numbers = count(1)
A, B = IPv4Address("198.18.0.2"), IPv4Address("198.18.1.2")
VIA_A, VIA_B = IPv4Address("198.18.0.1"), IPv4Address("198.18.1.1")


@pytest.fixture
def host(requires: Callable[..., None]) -> Iterator[Namespace]:
    """Give a test a host with two interfaces and no default route."""
    requires("ip")
    with Namespace(f"uplink{next(_numbers)}") as namespace:
        namespace.ip(
            "link add wan0 mtu 1400 type veth peer name far0",
            "link add wan1 type veth peer name far1",
            f"address add {A}/24 dev wan0",
            f"address add {B}/24 dev wan1",
            *(f"link set {name} up" for name in ("wan0", "wan1", "far0", "far1")),
        )
        yield namespace


def uplink(host: Namespace, options: Options | None = None) -> Uplink:
    return host.call(lambda: find_uplink(options or Options()))


def test_the_preferred_default_route_is_found_among_many_routes(host: Namespace) -> None:
    host.ip(
        f"route add default via {VIA_B} metric 4294967295",
        f"route add default via {VIA_A} metric 100",
        f"route add 0.0.0.0/1 via {VIA_B}",
        "route add unreachable default metric 1",
        f"route add default via {VIA_B} table 7",
        *(f"route add 10.{n}.0.0/16 via {VIA_B}" for n in range(50)),
    )
    network = host.call(read_host_network)
    assert network.default_routes == (
        DefaultRoute("wan0", VIA_A, 100),
        DefaultRoute("wan1", VIA_B, 4294967295),
    )
    found = uplink(host)
    assert (found.name, found.address, found.mtu) == ("wan0", A, 1400)
    assert found.reason == "default route via 198.18.0.1 metric 100"
    assert host.run("cat", f"/sys/class/net/{found.name}/ifindex").stdout.strip() == str(
        found.ifindex
    )


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("default dev wan1", DefaultRoute("wan1", None, 0)),
        (
            f"default metric 5 nexthop via {VIA_A} nexthop via {VIA_B}",
            DefaultRoute("wan0", VIA_A, 5),
        ),
    ],
)
def test_unusual_default_routes_are_read(
    host: Namespace, route: str, expected: DefaultRoute
) -> None:
    host.ip(f"route add {route}")
    assert host.call(read_host_network).default_routes == (expected,)


def test_a_host_without_default_route_has_no_uplink(host: Namespace) -> None:
    host.ip(f"route add 0.0.0.0/1 via {VIA_A}")
    with pytest.raises(UplinkError, match="default route: fits no interface"):
        uplink(host)


def test_address_flags_are_the_kernels(host: Namespace) -> None:
    host.ip(
        "address add 198.18.0.3/24 dev wan0",
        "address add 198.18.2.1 peer 198.18.2.9/32 dev wan0",
        "address add 198.18.3.1/24 dev wan0 valid_lft 3600 preferred_lft 3600",
        "address add 198.18.4.1/24 dev wan0 valid_lft 3600 preferred_lft 0",
    )
    links = {link.name: link for link in host.call(read_host_network).links}
    assert set(links["wan0"].addresses) == {
        LinkAddress(A, prefixlen=24),
        LinkAddress(IPv4Address("198.18.0.3"), temporary=True, prefixlen=24),
        LinkAddress(IPv4Address("198.18.2.1")),
        LinkAddress(IPv4Address("198.18.3.1"), permanent=False, prefixlen=24),
        LinkAddress(IPv4Address("198.18.4.1"), permanent=False, deprecated=True, prefixlen=24),
    }
    assert links["lo"].loopback
    assert not links["wan0"].loopback


def test_the_route_lookup_names_interface_and_source(host: Namespace) -> None:
    target = IPv4Address("203.0.113.1")
    host.ip("address add 198.18.1.7/24 dev wan1", f"route add {target} via {VIA_B} src 198.18.1.7")
    network = host.call(lambda: read_host_network(target))
    index = next(link.ifindex for link in network.links if link.name == "wan1")
    assert network.reach == RouteLookup(index, IPv4Address("198.18.1.7"))
    found = uplink(host, Options(iface_can_reach=target))
    assert (found.name, found.address) == ("wan1", IPv4Address("198.18.1.7"))


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
def test_a_target_without_a_way_is_refused(host: Namespace, kind: str) -> None:
    target = IPv4Address("203.0.113.1")
    host.ip(f"route add {kind} {target}")
    with pytest.raises(UplinkError, match=r"--iface-can-reach 203\.0\.113\.1: fits no interface"):
        uplink(host, Options(iface_can_reach=target))


def test_an_own_address_is_no_way_to_find_the_uplink(host: Namespace) -> None:
    with pytest.raises(UplinkError, match=r"lo, --iface-can-reach 198\.18\.0\.2: is a loopback"):
        uplink(host, Options(iface_can_reach=A))


def test_the_choice_follows_what_changes_at_runtime(host: Namespace) -> None:
    host.ip(f"route add default via {VIA_A} metric 1", f"route add default via {VIA_B} metric 2")
    assert uplink(host).mtu == 1400
    host.ip("link set wan0 mtu 1300")
    assert uplink(host).mtu == 1300
    host.ip(
        "address add 198.18.0.9/24 dev wan0",
        f"address delete {A}/24 dev wan0",
        "address replace 198.18.0.9/24 dev wan0",
        f"route replace default via {VIA_A} metric 1",
    )
    assert uplink(host).address == IPv4Address("198.18.0.9")
    host.ip("link set wan0 down")
    assert (uplink(host).name, uplink(host).address) == ("wan1", B)
    with pytest.raises(UplinkError, match="wan0, --iface wan0: is down"):
        uplink(host, Options(iface=("wan0",)))
