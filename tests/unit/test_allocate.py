"""Which subnet a node gets, as plain calls."""

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.allocate import (
    Adopt,
    Create,
    Decision,
    Discard,
    choose_subnet,
    decide,
    free_subnets,
    is_compatible,
)
from kersey_control.errors import DuplicateNodeError, SubnetsExhaustedError
from kersey_control.lease import Lease
from kersey_control.netconfig import NetworkConfig, parse_network_config

CONFIG = parse_network_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
DUAL = parse_network_config(
    b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48",'
    b' "Backend": {"Type": "vxlan"}}'
)
OURS = IPv4Address("198.18.0.1")
THEIRS = IPv4Address("198.18.0.2")


def _lease(subnet: str, *, address: IPv4Address = OURS, node_id: str = "", v6: str = "") -> Lease:
    return Lease(
        subnet=IPv4Network(subnet),
        public_ip=address,
        node_id=node_id,
        subnet_v6=IPv6Network(v6) if v6 else None,
    )


def _decide(*leases: Lease, previous: str = "", config: NetworkConfig = CONFIG) -> Decision:
    return decide(
        leases,
        unreadable=(),
        public_ip=OURS,
        node_id="us",
        previous=[IPv4Network(previous)] if previous else [],
        config=config,
        rng=random.Random(1),
    )


def _between(low: str, high: str) -> NetworkConfig:
    return replace(CONFIG, subnet_min=IPv4Address(low), subnet_max=IPv4Address(high))


@pytest.mark.parametrize("node_id", ["", "us"])
def test_lease_of_our_address_is_adopted_before_the_previous_subnet(node_id: str) -> None:
    own = _lease("10.5.9.0/24", node_id=node_id)
    assert _decide(own, previous="10.5.3.0/24") == Adopt(own)


@pytest.mark.parametrize("subnet", ["10.5.16.0/20", "10.5.0.0/24", "10.6.1.0/24", "10.5.1.0/25"])
def test_own_lease_outside_the_networks_cut_is_discarded(subnet: str) -> None:
    assert _decide(_lease(subnet)) == Discard(_lease(subnet))


def test_lease_of_our_address_by_another_node_is_refused_even_beside_our_own() -> None:
    with pytest.raises(DuplicateNodeError, match=r"'us'.*'them'.*10\.5\.9\.0-24"):
        _decide(_lease("10.5.8.0/24", node_id="us"), _lease("10.5.9.0/24", node_id="them"))


def test_lease_of_another_address_is_not_ours_whatever_its_node_id() -> None:
    decision = _decide(_lease("10.5.9.0/24", address=THEIRS, node_id="us"))
    assert isinstance(decision, Create)


def test_previous_subnet_is_taken_if_free() -> None:
    assert _decide(previous="10.5.77.0/24") == Create(IPv4Network("10.5.77.0/24"))


@pytest.mark.parametrize(
    "previous",
    [
        pytest.param("10.5.9.0/24", id="leased"),
        pytest.param("10.5.0.0/24", id="below SubnetMin"),
        pytest.param("10.5.32.0/20", id="other length"),
        pytest.param("10.9.1.0/24", id="other network"),
    ],
)
def test_unfit_previous_subnet_is_not_taken(previous: str) -> None:
    decision = _decide(_lease("10.5.9.0/24", address=THEIRS), previous=previous)
    assert isinstance(decision, Create)
    assert decision.subnet != IPv4Network(previous)


def test_random_choice_is_among_the_first_hundred_free() -> None:
    taken = [IPv4Network("10.5.2.0/24")]
    picked = {
        choose_subnet(taken, previous=(), config=CONFIG, rng=random.Random(seed))
        for seed in range(2000)
    }
    expected = {IPv4Network((f"10.5.{n}.0", 24)) for n in range(1, 102)} - set(taken)
    assert picked == expected


def test_last_free_subnet_is_found_and_then_exhaustion_reported() -> None:
    config = _between("10.5.4.0", "10.5.6.0")
    taken = [_lease(f"10.5.{n}.0/24", address=THEIRS) for n in (4, 6)]
    assert _decide(*taken, config=config) == Create(IPv4Network("10.5.5.0/24"))
    with pytest.raises(SubnetsExhaustedError, match=r"10\.5\.4\.0 to 10\.5\.6\.0: 3 leases"):
        _decide(*taken, _lease("10.5.5.0/24", address=THEIRS), config=config)


def test_minimum_above_maximum_is_exhausted_from_the_start() -> None:
    with pytest.raises(SubnetsExhaustedError):
        _decide(config=_between("10.5.6.0", "10.5.4.0"))


def test_unreadable_records_keep_their_subnet() -> None:
    with pytest.raises(SubnetsExhaustedError):
        decide(
            [],
            unreadable=[IPv4Network("10.5.4.0/24")],
            public_ip=OURS,
            node_id="us",
            previous=[],
            config=_between("10.5.4.0", "10.5.4.0"),
            rng=random.Random(1),
        )


@pytest.mark.parametrize(
    ("v6", "config", "fits"),
    [
        ("", CONFIG, True),
        ("fd05:0:0:7::/64", CONFIG, False),
        ("fd05:0:0:7::/64", DUAL, True),
        ("fd05:0:0:7::/80", DUAL, False),
        ("fd06:0:0:7::/64", DUAL, False),
        ("", DUAL, True),
    ],
)
def test_ipv6_part_must_fit_the_ipv6_network(v6: str, config: NetworkConfig, *, fits: bool) -> None:
    assert is_compatible(_lease("10.5.9.0/24", v6=v6), config) is fits


_networks = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False),
    st.integers(int(IPv4Address("10.4.255.0")), int(IPv4Address("10.5.8.0"))),
    st.integers(18, 30),
)


@given(taken=st.lists(_networks, max_size=12), length=st.integers(22, 28))
def test_free_subnets_are_exactly_those_that_overlap_no_lease(
    taken: list[IPv4Network], length: int
) -> None:
    config = replace(_between("10.5.0.0", "10.5.7.0"), subnet_len=length)
    last = int(config.subnet_max)
    expected = [
        subnet
        for subnet in IPv4Network("10.5.0.0/20").subnets(new_prefix=length)
        if int(subnet.network_address) <= last and not any(map(subnet.overlaps, taken))
    ]
    assert list(free_subnets(taken, config)) == expected
