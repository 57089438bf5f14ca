"""net-conf.json: flannel's defaults and rules, row by row, and nothing but InvalidInputError."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kersey_control.addresses import Vni
from kersey_control.errors import InvalidInputError
from kersey_control.netconfig import (
    AllocConfig,
    BackendConfig,
    ExtensionConfig,
    HostGwConfig,
    IpipConfig,
    NetworkConfig,
    UdpConfig,
    VxlanConfig,
    apply_live,
    compare,
    parse_network_config,
)

BASE = b'{"Network": "10.244.0.0/16"}'


def parse(**fields: object) -> NetworkConfig:
    return parse_network_config(json.dumps({"Network": "10.0.0.0/8"} | fields).encode())


def refusal(text: bytes) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        parse_network_config(text)
    return caught.value


def refusal_of(**fields: object) -> InvalidInputError:
    return refusal(json.dumps({"Network": "10.0.0.0/8"} | fields).encode())


def test_a_bare_network_gets_every_default() -> None:
    assert parse_network_config(BASE) == NetworkConfig(
        network=IPv4Network("10.244.0.0/16"),
        subnet_len=24,
        subnet_min=IPv4Address("10.244.1.0"),
        subnet_max=IPv4Address("10.244.255.0"),
        backend=VxlanConfig(
            vni=Vni(1), port=8472, mtu=None, gbp=False, learning=False, direct_routing=False
        ),
    )


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ({"Type": "udp"}, UdpConfig(port=8285)),
        ({"Type": "UDP", "Port": 9000, "VNI": 7}, UdpConfig(port=9000)),
        ({"Type": "host-gw"}, HostGwConfig()),
        ({"Type": "ipip"}, IpipConfig(direct_routing=False)),
        ({"Type": "ipip", "DirectRouting": True}, IpipConfig(direct_routing=True)),
        ({"Type": "alloc"}, AllocConfig()),
        (
            {
                "Type": "extension",
                "PreStartupCommand": "echo 'a b' $HOME",
                "SubnetAddCommand": ["ip", "route", "add"],
            },
            ExtensionConfig(
                pre_startup=("echo", "a b", "$HOME"),
                post_startup=(),
                subnet_add=("ip", "route", "add"),
                subnet_remove=(),
            ),
        ),
    ],
)
def test_each_backend_has_its_own_settings(
    backend: dict[str, object], settings: BackendConfig
) -> None:
    assert parse(Backend=backend).backend == settings


def test_another_backend_needs_a_restart_whatever_it_says_of_mtu() -> None:
    old, new = parse(Backend={"Type": "vxlan", "MTU": 1400}), parse(Backend={"Type": "udp"})
    change = compare(old, new)
    assert change.live == ()
    assert {"Backend.Type", "Backend.Port", "Backend.MTU"} <= set(change.restart)
    assert apply_live(old, new) == old


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ("10.5.3.7/16", 24, "10.5.1.0", "10.5.255.0"),
        ("255.255.0.0/16", 24, "255.255.1.0", "255.255.255.0"),
    ],
)
def test_a_network_is_cut_as_flannel_cuts_it(
    network: str, length: int, first: str, last: str
) -> None:
    config = parse(Network=network)
    assert config.subnet_len == length
    assert (str(config.subnet_min), str(config.subnet_max)) == (first, last)


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("fd00::/56", 64, "fd00:0:0:1::", "fd00:0:0:ff::"),
        ("fd00::/62", 64, "fd00:0:0:1::", "fd00:0:0:3::"),
        ("fd00::/63", 65, "fd00:0:0:0:8000::", "fd00:0:0:1:8000::"),
        ("fd00::/124", 126, "fd00::4", "fd00::c"),
    ],
)
def test_a_v6_network_is_cut_as_flannel_cuts_it(
    network: str, length: int, first: str, last: str
) -> None:
    config = parse(EnableIPv6=True, IPv6Network=network)
    assert config.network_v6 == IPv6Network(network)
    assert config.subnet_len_v6 == length
    assert config.subnet_min_v6 == IPv6Address(first)
    assert config.subnet_max_v6 == IPv6Address(last)


def test_explicit_range_and_length_are_kept() -> None:
    config = parse(
        Network="10.5.0.0/16", SubnetLen=26, SubnetMin="10.5.0.0", SubnetMax="10.5.9.192"
    )
    assert (config.subnet_len, str(config.subnet_min), str(config.subnet_max)) == (
        26,
        "10.5.0.0",
        "10.5.9.192",
    )


def test_all_zero_addresses_and_lengths_count_as_unset() -> None:
    zeroes = parse(SubnetMin="0.0.0.0", SubnetMax="0.0.0.0", SubnetLen=0)  # noqa: S104  # not a bind
    assert zeroes == parse()


def test_field_names_match_in_any_case_and_the_last_one_wins() -> None:
    text = (
        b'{"network":"10.1.0.0/16","NETWORK":"10.2.0.0/16","network":"10.3.0.0/16","nEtWoRk":null}'
    )
    assert parse_network_config(text).network == IPv4Network("10.3.0.0/16")


def test_unknown_fields_are_ignored_and_null_means_default() -> None:
    nothing = dict.fromkeys(
        ["SubnetLen", "SubnetMin", "Backend", "EnableIPv4", "EnableNFTables", "IPv6Network"]
    )
    assert parse(Extra=[{"deep": 1}], **nothing) == parse()


@pytest.mark.parametrize("backend", [{}, {"Type": None}, {"Type": ""}, {"Type": "VXLAN"}])
def test_vxlan_is_the_backend_when_none_is_named(backend: dict[str, object]) -> None:
    assert parse(Backend=backend) == parse()


def test_every_vxlan_field_is_read() -> None:
    config = parse(
        EnableNFTables=True,
        backend={
            "type": "vxlan",
            "vni": 4096,
            "port": 4789,
            "mtu": 9000,
            "gbp": True,
            "learning": True,
            "directrouting": True,
        },
    )
    assert config.enable_nftables
    assert config.backend == VxlanConfig(
        vni=Vni(4096), port=4789, mtu=9000, gbp=True, learning=True, direct_routing=True
    )


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"Network": None}, "Network", "required"),
        ({"Network": "0.0.0.0/0"}, "Network", "required"),
        ({"Network": "10.0.0.0"}, "Network", "IPv4 network"),
        ({"Network": "10.0.0.0/255.0.0.0"}, "Network", "IPv4 network"),
        ({"Network": "fd00::/56"}, "Network", "IPv4 network"),
        ({"Network": 10}, "Network", "a string"),
        ({"Network": "10.0.0.0/29"}, "Network", "at most 28"),
        ({"Network": "10.0.0.0/29", "SubnetLen": 30}, "Network", "at most 28"),
        ({"SubnetLen": 31}, "SubnetLen", "from 10 to 30"),
        ({"SubnetLen": 9}, "SubnetLen", "from 10 to 30"),
        ({"SubnetLen": -1}, "SubnetLen", "an integer from 0"),
        ({"SubnetLen": 24.0}, "SubnetLen", "an integer"),
        ({"SubnetLen": True}, "SubnetLen", "an integer"),
        ({"SubnetLen": "24"}, "SubnetLen", "an integer"),
        ({"SubnetMin": "11.0.0.0"}, "SubnetMin", "inside 10.0.0.0/8"),
        ({"SubnetMax": "11.0.0.0"}, "SubnetMax", "inside 10.0.0.0/8"),
        ({"SubnetMin": "10.1.1.1"}, "SubnetMin", "base address of a /24"),
        ({"SubnetMax": "10.1.1.1"}, "SubnetMax", "base address of a /24"),
        ({"SubnetMin": "10.9.0.0", "SubnetMax": "10.8.0.0"}, "SubnetMin", "SubnetMin <= SubnetMax"),
        ({"SubnetMax": "10.0.0.0"}, "SubnetMax", "SubnetMin <= SubnetMax"),
        ({"SubnetMin": ""}, "SubnetMin", "an IPv4 address"),
        ({"SubnetMin": "fd00::"}, "SubnetMin", "an IPv4 address"),
        ({"EnableIPv4": False}, "EnableIPv4", "not supported"),
        ({"EnableIPv4": 1}, "EnableIPv4", "true or false"),
        ({"EnableNFTables": "yes"}, "EnableNFTables", "true or false"),
        ({"EnableIPv6": True}, "IPv6Network", "required"),
        ({"EnableIPv6": True, "IPv6Network": "::/0"}, "IPv6Network", "required"),
        ({"EnableIPv6": True, "IPv6Network": "10.0.0.0/8"}, "IPv6Network", "IPv6 network"),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/125"}, "IPv6Network", "at most 124"),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetLen": 127},
            "IPv6SubnetLen",
            "from 58 to 126",
        ),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetMin": "fd01::"},
            "IPv6SubnetMin",
            "inside fd00::/56",
        ),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetMax": "fd00::1"},
            "IPv6SubnetMax",
            "base address of a /64",
        ),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetMin": "fd00:0:0:1::%eth0"},
            "IPv6SubnetMin",
            "an IPv6 address",
        ),
        ({"IPv6Network": "nonsense"}, "IPv6Network", "IPv6 network"),
        ({"Backend": "vxlan"}, "Backend", "a JSON object"),
        ({"Backend": {"Type": 1}}, "Backend.Type", "a string"),
        ({"Backend": {"Type": "wireguard"}}, "Backend.Type", "flannel alone has this one"),
        ({"Backend": {"Type": "IPsec"}}, "Backend.Type", "one of vxlan, udp, host-gw, ipip"),
        ({"Backend": {"Type": "udp", "Port": 0}}, "Backend.Port", "from 1 to 65535"),
        ({"Backend": {"Type": "ipip", "DirectRouting": 1}}, "Backend.DirectRouting", "true or"),
        (
            {"Backend": {"Type": "extension", "SubnetAddCommand": "ip 'route"}},
            "Backend.SubnetAddCommand",
            "balanced quotes",
        ),
        (
            {"Backend": {"Type": "extension", "SubnetAddCommand": ["ip", 1]}},
            "Backend.SubnetAddCommand",
            "a string or a list of strings",
        ),
        (
            {"Backend": {"Type": "extension", "PreStartupCommand": ["", "x"]}},
            "Backend.PreStartupCommand",
            "a program and its arguments",
        ),
        ({"Backend": {"Type": "vxlam"}}, "Backend.Type", "no backend has this name"),
        ({"Backend": {"VNI": 0}}, "Backend.VNI", "from 1 to 16777215"),
        ({"Backend": {"VNI": 2**24}}, "Backend.VNI", "from 1 to 16777215"),
        ({"Backend": {"Port": 65536}}, "Backend.Port", "from 0 to 65535"),
        ({"Backend": {"MTU": -1}}, "Backend.MTU", "from 0 to 65535"),
        ({"Backend": {"MTU": 117}}, "Backend.MTU", "from 626 to 65535"),
        ({"Backend": {"GBP": 1}}, "Backend.GBP", "true or false"),
    ],
)
def test_a_refusal_names_field_value_and_rule(
    fields: dict[str, object], field: str, rule: str
) -> None:
    error = refusal_of(**fields)
    assert error.field == field
    assert rule in error.expected
    assert repr(error.value) in str(error)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b'{"Network": "\xff"}',
        b"\xef\xbb\xbf" + BASE,
        BASE.decode().encode("utf-16"),
        b'{"Network": "10.0.0.0/8", "SubnetLen": NaN}',
        b'{"Network": "10.0.0.0/8", "SubnetLen": Infinity}',
        b'{"Network": "10.0.0.0/8", "SubnetLen": 1e999}',
        b'{"Network": "10.0.0.0/8", "SubnetLen": ' + b"9" * 5000 + b"}",
        b'{"Network": "10.0.0.0/8", "Backend": {"VNI": ' + b"9" * 4000 + b"}}",
        b'{"Network": ' + b"[" * 100_000,
        b'{"Network": ' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"Network": "\\ud800"}',
        b'{"Network": "10.0.0.0/8", "SubnetMin": "\\u0661.0.0.0"}',
        BASE + b"x",
    ],
)
def test_a_hostile_text_is_refused_like_any_other(text: bytes) -> None:
    assert len(str(refusal(text))) < 10_000


_text = st.text("aZ0.:/%-\u0661", max_size=12)  # all of Unicode takes seconds to set up
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(
    [
        "Network",
        "SubnetLen",
        "SubnetMin",
        "SubnetMax",
        "EnableIPv4",
        "EnableIPv6",
        "EnableNFTables",
        "IPv6Network",
        "IPv6SubnetLen",
        "IPv6SubnetMin",
        "IPv6SubnetMax",
        "Backend",
    ]
)
_near_misses = st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 130)) | st.builds(
    str, st.ip_addresses()
)


@given(st.binary(max_size=60))
@example(b"\x00")
def test_any_bytes_give_a_config_or_invalid_input(text: bytes) -> None:
    _parses_or_refuses(text)


@given(st.dictionaries(_names, _near_misses | st.integers(0, 140) | st.booleans() | _json))
def test_any_json_gives_a_config_that_holds_its_own_rules_or_invalid_input(
    fields: dict[str, object],
) -> None:
    _parses_or_refuses(json.dumps({"Network": "10.0.0.0/8"} | fields).encode())


def _parses_or_refuses(text: bytes) -> None:
    try:
        config = parse_network_config(text)
    except InvalidInputError:
        return
    assert config.network.prefixlen + 2 <= config.subnet_len <= 30
    for base in (config.subnet_min, config.subnet_max):
        subnet = IPv4Network((base, config.subnet_len))
        assert subnet.subnet_of(config.network)
        assert config.contains_lease_subnet(subnet)


def test_a_lease_subnet_has_the_right_length_and_lies_in_the_range() -> None:
    config = parse(Network="10.5.0.0/16", SubnetMin="10.5.4.0", SubnetMax="10.5.8.0")
    inside = ["10.5.4.0/24", "10.5.8.0/24"]
    outside = ["10.5.3.0/24", "10.5.9.0/24", "10.5.4.0/25", "10.5.4.0/23", "10.6.4.0/24"]
    assert all(config.contains_lease_subnet(IPv4Network(subnet)) for subnet in inside)
    assert not any(config.contains_lease_subnet(IPv4Network(subnet)) for subnet in outside)


@pytest.mark.parametrize("length", [16, 24, 26, 31])
def test_a_given_subnet_is_what_the_network_is_cut_by_whatever_the_text_says(length: int) -> None:
    subnet = IPv4Network(f"10.244.0.0/{length}")
    texts = (
        BASE,
        b'{"Network": "10.244.0.0/16", "SubnetLen": 17, "SubnetMin": "192.0.2.0"}',
        b'{"Network": "10.244.0.0/16", "SubnetLen": 25, "SubnetMax": "nowhere"}',
    )
    configs = [parse_network_config(text, subnet) for text in texts]
    assert all(config == configs[0] for config in configs)
    assert configs[0].subnet_len == length
    assert configs[0].contains_lease_subnet(subnet)


@pytest.mark.parametrize("subnet", ["10.245.1.0/24", "10.0.0.0/8"])
def test_a_given_subnet_outside_of_the_network_is_refused(subnet: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^podCIDR: got '{subnet}', expected a subnet of"):
        parse_network_config(BASE, IPv4Network(subnet))


def test_equal_configs_have_no_change() -> None:
    change = compare(parse(), parse(Backend={"Port": 8472}))
    assert (change.live, change.restart) == ((), ())


def test_range_and_mtu_can_be_followed_live() -> None:
    old, new = parse(), parse(SubnetMin="10.2.0.0", SubnetMax="10.3.0.0", Backend={"MTU": 1400})
    change = compare(old, new)
    assert change.live == ("SubnetMin", "SubnetMax", "Backend.MTU")
    assert change.restart == ()
    assert apply_live(old, new) == new


def test_what_needs_a_restart_is_named_and_not_applied() -> None:
    old = parse()
    new = parse(
        EnableNFTables=True,
        EnableIPv6=True,
        IPv6Network="fd00::/56",
        Backend={"VNI": 7, "Port": 4789, "GBP": True, "Learning": True, "DirectRouting": True},
    )
    change = compare(old, new)
    assert change.live == ()
    assert {"EnableNFTables", "EnableIPv6", "IPv6Network"} < set(change.restart)
    assert {
        f"Backend.{name}" for name in ("VNI", "Port", "GBP", "Learning", "DirectRouting")
    } < set(change.restart)
    assert apply_live(old, new) == old


def test_a_range_of_another_network_is_never_applied_to_this_one() -> None:
    old, new = parse(), parse(Network="10.9.0.0/16", Backend={"MTU": 9000})
    change = compare(old, new)
    assert change.live == ("Backend.MTU",)
    assert change.restart == ("Network", "SubnetMin", "SubnetMax")
    assert apply_live(old, new) == replace(old, backend=new.backend)
