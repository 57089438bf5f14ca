"""A lease: one node's claim on one subnet, and the exact key and value bytes that flannel uses.

Pure: text in, values out. It never talks to a store. Formats: flannel pkg/subnet/subnet.go and
pkg/lease/lease.go; unknown fields in a value are ignored by flannel and by us, which is what makes
room for `NodeID`.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

import msgspec

from kersey_control.errors import InvalidInputError

_Address = TypeVar("_Address", IPv4Address, IPv6Address)
_NO_ADDRESS = str(IPv4Address(0))  # what flannel writes where a node has no IPv4 address
_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?")


@dataclass(frozen=True, slots=True)
class Lease:
    """One node's claim: the subnet, where the node is, and what its backend needs to be reached.

    `backend_type` is empty for udp and alloc, as flannel writes them. `backend_data` is compact
    JSON text, empty where the backend has none. `node_id` is empty in leases that flannel wrote.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str = ""
    backend_data: bytes = b""
    node_id: str = ""
    subnet_v6: IPv6Network | None = None
    public_ipv6: IPv6Address | None = None
    backend_v6_data: bytes = b""


class _LeaseValue(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Mirror the JSON value of a lease; the field order is flannel's byte order."""

    public_ip: str = msgspec.field(name="PublicIP")
    public_ipv6: str | None = msgspec.field(name="PublicIPv6")
    backend_type: str = msgspec.field(name="BackendType", default="")
    # Unset, not empty: msgspec does not take an empty Raw for its default and writes `"Name":,`.
    backend_data: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="BackendData")
    backend_v6_data: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="BackendV6Data")
    node_id: str = msgspec.field(name="NodeID", default="")


class _ForeignLeaseValue(msgspec.Struct):
    """Read what others wrote: every field may be missing or null, unknown ones are ignored."""

    public_ip: str | None = msgspec.field(name="PublicIP", default=None)
    public_ipv6: str | None = msgspec.field(name="PublicIPv6", default=None)
    backend_type: str | None = msgspec.field(name="BackendType", default=None)
    backend_data: msgspec.Raw = msgspec.field(name="BackendData", default=msgspec.Raw(b""))
    backend_v6_data: msgspec.Raw = msgspec.field(name="BackendV6Data", default=msgspec.Raw(b""))
    node_id: str | None = msgspec.field(name="NodeID", default=None)


_decode_value = msgspec.json.Decoder(_ForeignLeaseValue).decode
_encode_value = msgspec.json.Encoder().encode


def subnet_key(subnet: IPv4Network, subnet_v6: IPv6Network | None = None) -> str:
    """Return the last part of a lease's key: `10.5.52.0-24`, or with `&fd05:0:0:1::-64` behind."""
    key = f"{subnet.network_address}-{subnet.prefixlen}"
    if subnet_v6 is not None:
        key += f"&{subnet_v6.network_address}-{subnet_v6.prefixlen}"
    return key


def parse_subnet_key(key: str) -> tuple[IPv4Network, IPv6Network | None]:
    """Return the subnets that `key` (the part behind `subnets/`) names.

    Stricter than flannel, which anchors only the end: a key with anything before the address, with
    host bits set, with an IPv4 length outside 1 to 31 (0 is what flannel writes for IPv6 alone) or
    spelled otherwise than `subnet_key` spells it is refused with InvalidInputError.
    """
    match = _KEY.fullmatch(key)
    try:
        if match is None:
            raise ValueError  # noqa: TRY301  # one message for every way to be wrong
        v4 = IPv4Network(f"{match[1]}/{match[2]}")
        v6 = IPv6Network(f"{match[3]}/{match[4]}") if match[3] else None
        if not 1 <= v4.prefixlen <= 31 or subnet_key(v4, v6) != key:  # noqa: PLR2004  # see above
            raise ValueError  # noqa: TRY301  # as above
    except ValueError:
        raise InvalidInputError(
            field="lease key", value=key, expected="<IPv4 base>-<length>[&<IPv6 base>-<length>]"
        ) from None
    return v4, v6


def encode_lease(lease: Lease) -> bytes:
    """Return the lease's value: compact JSON, flannel's bytes plus NodeID where one is set."""
    return _encode_value(
        _LeaseValue(
            public_ip=str(lease.public_ip),
            public_ipv6=None if lease.public_ipv6 is None else str(lease.public_ipv6),
            backend_type=lease.backend_type,
            backend_data=_optional(lease.backend_data),
            backend_v6_data=_optional(lease.backend_v6_data),
            node_id=lease.node_id,
        )
    )


def decode_lease(key: str, value: bytes) -> Lease:
    """Return the lease of one store record. Raises InvalidInputError naming what is wrong."""
    subnet, subnet_v6 = parse_subnet_key(key)
    try:
        raw = _decode_value(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(
            field=f"lease {key}", value=value[:200], expected=f"a JSON lease ({error})"
        ) from None
    return Lease(
        subnet=subnet,
        public_ip=_address(IPv4Address, raw.public_ip or _NO_ADDRESS, f"lease {key}: PublicIP"),
        backend_type=raw.backend_type or "",
        backend_data=_present(raw.backend_data),
        node_id=raw.node_id or "",
        subnet_v6=subnet_v6,
        public_ipv6=(
            _address(IPv6Address, raw.public_ipv6, f"lease {key}: PublicIPv6")
            if raw.public_ipv6
            else None
        ),
        backend_v6_data=_present(raw.backend_v6_data),
    )


def _optional(text: bytes) -> msgspec.Raw | msgspec.UnsetType:
    return msgspec.Raw(text) if text else msgspec.UNSET


def _present(raw: msgspec.Raw) -> bytes:
    """Return the field's JSON text; `null` counts as absent."""
    text = bytes(raw)
    return b"" if text == b"null" else text


def _address(kind: type[_Address], text: str, field: str) -> _Address:
    try:
        return kind(text)
    except ValueError:
        raise InvalidInputError(field=field, value=text, expected=f"an {kind.__name__}") from None
