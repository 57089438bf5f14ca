"""The small value types that addresses need beyond the standard library's `ipaddress`. Pure."""

import re
from ipaddress import IPv4Address, IPv4Network
from typing import NewType

from kersey_control.errors import InvalidInputError

Mac = NewType("Mac", str)
"""A unicast Ethernet address as lower-case, colon-separated text, e.g. `0e:2a:00:00:00:01`."""

Vni = NewType("Vni", int)
"""A VXLAN network identifier, 1 to 2**24 - 1 (RFC 7348 section 5)."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def parse_mac(text: str, *, field: str) -> Mac:
    """Return `text` as a unicast MAC; `-` separators and capitals are accepted as Go accepts them.

    Raises InvalidInputError naming `field` for anything else, multicast and all-zero included.
    """
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidInputError(field=field, value=text, expected="a unicast MAC address")
    return Mac(mac)


def mac_bytes(mac: Mac) -> bytes:
    """Return the six bytes of `mac` in wire order."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_from_bytes(raw: bytes) -> Mac:
    """Return the text form of six bytes in wire order."""
    return Mac(raw.hex(":"))


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """Return the address by which a subnet's node is reached in the overlay: its base."""
    return subnet.network_address
