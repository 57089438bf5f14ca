"""The choice of the uplink: flannel's order, better refusals. Pure values."""

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest
from kersey_control.errors import UplinkError
from kersey_control.options import Options
from kersey_control.uplink import (
    DefaultRoute,
    HostNetwork,
    LinkAddress,
    LinkInfo,
    RouteLookup,
    choose_uplink,
)

A, B, C = (IPv4Address(f"198.18.{n}.2") for n in range(3))
GATEWAY = IPv4Address("198.18.0.1")


def link(index: int, *addresses: IPv4Address, name: str = "", mtu: int = 1500) -> LinkInfo:
    return LinkInfo(
        ifindex=index,
        name=name or f"eth{index}",
        mtu=mtu,
        up=True,
        loopback=False,
        addresses=tuple(map(LinkAddress, addresses)),
    )


LO = LinkInfo(
    1, "lo", 65536, up=True, loopback=True, addresses=(LinkAddress(IPv4Address("127.0.0.1")),)
)
HOST = HostNetwork(
    links=(LO, link(2, A), link(3, B), link(4, C)),
    default_routes=(DefaultRoute("eth3", GATEWAY, 200), DefaultRoute("eth2", GATEWAY, 100)),
)


@dataclass(frozen=True)
class Wish:
    """The four options that matter, without the others."""

    iface: tuple[str, ...] = ()
    iface_regex: tuple[re.Pattern[str], ...] = ()
    iface_can_reach: IPv4Address | None = None
    public_ip: IPv4Address | None = None


def test_the_default_route_with_the_lowest_metric_decides() -> None:
    uplink = choose_uplink(Options(), HOST)
    assert (uplink.ifindex, uplink.name, uplink.address, uplink.public_ip) == (2, "eth2", A, A)
    assert uplink.mtu == 1500
    assert uplink.reason == "default route via 198.18.0.1 metric 100"


def test_of_equal_metrics_the_first_in_the_kernels_order_decides() -> None:
    routes = (DefaultRoute("eth4", None, 0), DefaultRoute("eth2", None, 0))
    uplink = choose_uplink(Wish(), replace(HOST, default_routes=routes))
    assert (uplink.name, uplink.reason) == ("eth4", "default route metric 0")


def test_a_default_route_over_a_dead_interface_gives_way_to_the_next() -> None:
    links = (LO, replace(link(2, A), up=False), link(3, B))
    assert choose_uplink(Wish(), replace(HOST, links=links)).name == "eth3"


@pytest.mark.parametrize(
    ("wish", "name", "address", "reason"),
    [
        (Wish(iface=("eth4",)), "eth4", C, "--iface eth4"),
        (Wish(iface=(str(C),)), "eth4", C, f"--iface {C}"),
        (Wish(iface=("nope", "eth3", "eth4")), "eth3", B, "--iface eth3"),
        (Wish(iface=("nope",), iface_regex=(re.compile("h4"),)), "eth4", C, "--iface-regex h4 "),
        (
            Wish(iface_regex=(re.compile("nope"), re.compile(r"\.2\.2$"))),
            "eth4",
            C,
            r"--iface-regex \.2\.2$ matches 198.18.2.2",
        ),
        # "2" is in the name eth2 and in every address: addresses are tried on all links first.
        (Wish(iface_regex=(re.compile("2$"),)), "eth2", A, "--iface-regex 2$ matches 198.18.0.2"),
        (Wish(iface_can_reach=GATEWAY), "eth3", B, f"--iface-can-reach {GATEWAY}"),
        (Wish(iface=("eth4",), iface_can_reach=GATEWAY), "eth4", C, "--iface eth4"),
        (Wish(public_ip=C), "eth4", C, f"it has --public-ip {C}"),
        (Wish(public_ip=C, iface=("eth3",)), "eth3", B, "--iface eth3"),
    ],
)
def test_what_was_asked_for_is_tried_in_flannels_order(
    wish: Wish, name: str, address: IPv4Address, reason: str
) -> None:
    uplink = choose_uplink(wish, replace(HOST, reach=RouteLookup(ifindex=3, source=B)))
    assert (uplink.name, uplink.address) == (name, address)
    assert uplink.reason.startswith(reason)
    assert uplink.public_ip == (wish.public_ip or address)


def test_an_address_pattern_picks_the_address_that_matches() -> None:
    links = (LO, link(2, A, B))
    wish = Wish(iface_regex=(re.compile(re.escape(str(B))),))
    assert choose_uplink(wish, replace(HOST, links=links)).address == B


def test_the_routes_own_source_address_is_taken_for_can_reach() -> None:
    links = (LO, link(2, A, B))
    host = HostNetwork(links, reach=RouteLookup(ifindex=2, source=B))
    assert choose_uplink(Wish(iface_can_reach=GATEWAY), host).address == B
    host = HostNetwork(links, reach=RouteLookup(ifindex=2, source=None))
    assert choose_uplink(Wish(iface_can_reach=GATEWAY), host).address == A


def test_a_public_address_behind_nat_is_advertised_over_the_default_route() -> None:
    outside = IPv4Address("203.0.113.9")
    uplink = choose_uplink(Wish(public_ip=outside), HOST)
    assert (uplink.name, uplink.address, uplink.public_ip) == ("eth2", A, outside)


def test_a_public_address_on_loopback_is_advertised_over_the_default_route() -> None:
    anycast = IPv4Address("203.0.113.9")
    lo = replace(LO, addresses=(*LO.addresses, LinkAddress(anycast)))
    uplink = choose_uplink(Wish(public_ip=anycast), replace(HOST, links=(lo, *HOST.links[1:])))
    assert (uplink.name, uplink.address, uplink.public_ip) == ("eth2", A, anycast)


LINK_LOCAL = LinkAddress(IPv4Address("169.254.0.2"))


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        ((LinkAddress(A), LinkAddress(B)), A),
        ((LINK_LOCAL, LinkAddress(B)), B),
        ((LINK_LOCAL,), LINK_LOCAL.address),
        ((LINK_LOCAL, LinkAddress(A, permanent=False, temporary=True)), A),
        ((LinkAddress(A, permanent=False), LinkAddress(B)), B),
        ((LinkAddress(A, permanent=False), LinkAddress(B, temporary=True)), B),
        ((LinkAddress(A, temporary=True), LinkAddress(B)), B),
        ((LinkAddress(A, deprecated=True), LINK_LOCAL), LINK_LOCAL.address),
        ((LinkAddress(IPv4Address("127.0.0.9")), LINK_LOCAL), LINK_LOCAL.address),
    ],
)
def test_the_best_address_of_the_interface_is_taken(
    addresses: tuple[LinkAddress, ...], best: IPv4Address
) -> None:
    host = HostNetwork((replace(link(2), addresses=addresses),))
    assert choose_uplink(Wish(iface=("eth2",)), host).address == best


@pytest.mark.parametrize(
    ("bad", "trouble"),
    [
        (replace(link(2, A), up=False), "eth2, --iface eth2: is down"),
        (replace(link(2, A), loopback=True), "eth2, --iface eth2: is a loopback interface"),
        (replace(link(2, A), mtu=0), "eth2, --iface eth2: has MTU 0"),
        (link(2), "eth2, --iface eth2: has no usable IPv4 address"),
        (
            replace(link(2), addresses=(LinkAddress(A, deprecated=True),)),
            "eth2, --iface eth2: has no usable IPv4 address",
        ),
        (link(3, A), "--iface eth2: fits no interface"),
    ],
)
def test_an_unusable_interface_is_refused_with_its_reason(bad: LinkInfo, trouble: str) -> None:
    with pytest.raises(UplinkError, match=re.escape(trouble)):
        choose_uplink(Wish(iface=("eth2",)), HostNetwork((bad,)))


def test_an_interface_asked_for_is_never_replaced_by_the_default_routes() -> None:
    with pytest.raises(UplinkError) as caught:
        choose_uplink(
            Wish(
                iface=("lo", "fd00::1"),
                iface_regex=(re.compile("wlan"),),
                iface_can_reach=IPv4Address("203.0.113.1"),
            ),
            HOST,
        )
    for considered in (
        "lo, --iface lo: is a loopback interface",
        "--iface fd00::1: fits no interface",
        "--iface-regex wlan: fits no interface",
        "--iface-can-reach 203.0.113.1: fits no interface",
    ):
        assert considered in str(caught.value)


def test_a_host_without_default_route_is_told_so() -> None:
    with pytest.raises(UplinkError, match="default route: fits no interface"):
        choose_uplink(Wish(), replace(HOST, default_routes=()))
