"""Lease records: flannel's bytes in and out, and what is refused."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.errors import InvalidInputError
from kersey_control.lease import (
    Lease,
    decode_lease,
    encode_lease,
    parse_subnet_key,
    subnet_key,
)

PLAIN = Lease(subnet=IPv4Network("10.5.52.0/24"), public_ip=IPv4Address("192.168.77.11"))
VXLAN = replace(
    PLAIN,
    backend_type="vxlan",
    backend_data=b'{"VNI":1,"VtepMAC":"76:86:40:50:47:9f"}',
)
DUAL = replace(
    VXLAN,
    subnet_v6=IPv6Network("fd05:0:0:1::/64"),
    public_ipv6=IPv6Address("fd77::11"),
    backend_v6_data=b'{"VNI":1,"VtepMAC":"3a:00:10:20:30:40"}',
)
_START = b'{"PublicIP":"192.168.77.11","PublicIPv6":'
_DATA = b'"BackendData":{"VNI":1,"VtepMAC":"76:86:40:50:47:9f"}'

RECORDS = [
    pytest.param(
        VXLAN,
        "10.5.52.0-24",
        _START + b'null,"BackendType":"vxlan",' + _DATA + b"}",
        id="vxlan",
    ),
    pytest.param(
        DUAL,
        "10.5.52.0-24&fd05:0:0:1::-64",
        _START
        + b'"fd77::11","BackendType":"vxlan",'
        + _DATA
        + b',"BackendV6Data":{"VNI":1,"VtepMAC":"3a:00:10:20:30:40"}}',
        id="vxlan dual stack",
    ),
    pytest.param(
        replace(PLAIN, backend_type="host-gw"),
        "10.5.52.0-24",
        _START + b'null,"BackendType":"host-gw"}',
        id="host-gw",
    ),
    pytest.param(PLAIN, "10.5.52.0-24", _START + b"null}", id="udp and alloc"),
    pytest.param(
        replace(PLAIN, backend_type="ipip"),
        "10.5.52.0-24",
        _START + b'null,"BackendType":"ipip"}',
        id="ipip",
    ),
    pytest.param(
        replace(PLAIN, backend_type="extension", backend_data=b'"out\\n"'),
        "10.5.52.0-24",
        _START + b'null,"BackendType":"extension","BackendData":"out\\n"}',
        id="extension",
    ),
    pytest.param(
        replace(VXLAN, node_id="n1"),
        "10.5.52.0-24",
        _START + b'null,"BackendType":"vxlan",' + _DATA + b',"NodeID":"n1"}',
        id="ours",
    ),
]


@pytest.mark.parametrize(("lease", "key", "value"), RECORDS)
def test_record_has_flannels_bytes(lease: Lease, key: str, value: bytes) -> None:
    assert subnet_key(lease.subnet, lease.subnet_v6) == key
    assert encode_lease(lease) == value


@pytest.mark.parametrize(("lease", "key", "value"), RECORDS)
def test_record_is_read_back(lease: Lease, key: str, value: bytes) -> None:
    assert decode_lease(key, value) == lease


@pytest.mark.parametrize(
    "key",
    [
        "",
        "garbage",
        "a10.5.1.0-24",
        "subnets/10.5.1.0-24",
        "10.5.1.0",
        "10.5.1.0-",
        "10.5.1.0/24",
        "10.5.1.0-24 ",
        "10.5.1.0-24\n",
        "10.5.1.1-24",
        "10.5.1.0-33",
        "10.5.1.0-32",
        "10.5.1.0-0",
        "0.0.0.0-0&fd05:0:0:1::-64",
        "10.5.1.0-024",
        "10.5.256.0-24",
        "10x5x1x0-24",
        "010.5.1.0-24",
        "10.5.1.0-24&",
        "10.5.1.0-24&FD05:0:0:1::-64",
        "10.5.1.0-24&fd05:0:0:1::1-64",
        "10.5.1.0-24&fd05:0:0:1::-129",
        "10.5.1.0-24&fd05:0:0:1:0:0:0:0-64",
        "10.5.1.0-24&:::-64",
        "\u0661\u0660.5.1.0-24",
    ],
)
def test_malformed_key_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(InvalidInputError, match="lease key") as refusal:
        parse_subnet_key(key)
    assert refusal.value.value == key


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        b"[]",
        b"7",
        b'{"PublicIP":7}',
        b'{"PublicIP":"198.18.0.1"',
        b'{"PublicIP":"198.18.0.256"}',
        b'{"PublicIP":"fd77::1"}',
        b'{"PublicIP":"198.18.0.1","PublicIPv6":"198.18.0.1"}',
        b'{"PublicIP":"198.18.0.1","BackendType":["vxlan"]}',
        b'{"PublicIP":"198.18.0.1","BackendData":}',
        b'{"PublicIP":"\xff"}',
    ],
)
def test_malformed_value_is_refused_with_its_key(value: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"lease 10\.5\.52\.0-24"):
        decode_lease("10.5.52.0-24", value)


def test_unknown_fields_and_nulls_of_others_are_accepted() -> None:
    value = b'{"Extra":[1],"PublicIP":"192.168.77.11","BackendType":null,"BackendData":null}'
    assert decode_lease("10.5.52.0-24", value) == PLAIN


_subnets = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 31),
)
_subnets_v6 = st.builds(
    lambda base, length: IPv6Network((base, length), strict=False),
    st.integers(0, 2**128 - 1),
    st.integers(1, 126),
)
_json = st.sampled_from([b"", b'{"VNI":1}', b'"text"', b"[1,2]", b"0", b'{"a":{"b":null}}'])
_leases = st.builds(
    Lease,
    subnet=_subnets,
    public_ip=st.ip_addresses(v=4),
    backend_type=st.text(),
    backend_data=_json,
    node_id=st.text(),
    subnet_v6=st.none() | _subnets_v6,
    public_ipv6=st.none() | st.ip_addresses(v=6),
    backend_v6_data=_json,
)


@given(_leases)
def test_every_lease_survives_the_store(lease: Lease) -> None:
    assert decode_lease(subnet_key(lease.subnet, lease.subnet_v6), encode_lease(lease)) == lease


@given(st.binary(max_size=80))
def test_any_bytes_are_a_lease_or_refused(value: bytes) -> None:
    try:
        lease = decode_lease("10.5.52.0-24", value)
    except InvalidInputError:
        return
    assert lease.subnet == PLAIN.subnet
