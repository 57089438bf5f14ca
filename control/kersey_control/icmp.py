"""The ICMP errors that a router owes to senders: whether one may be sent, and its bytes. Pure.

Restraint by RFC 1122 section 3.2.2: never about an ICMP error, a later fragment, or a packet to or
from what is not one host's address. How many there may be is the `Allowance`'s.
"""

import struct
from enum import Enum

from kersey_control.ipv4 import LONGEST, OFFSET, Header, checksum

PROTOCOL = 1
TTL = 8
"""That of flannel's errors; they go back a few hops at most."""

_QUOTED = 548
"""Bytes of the packet in the error, so that the whole is 576 at most (RFC 1812 4.3.2.3)."""
_NETWORK_CONTROL = 0xC0  # the precedence of errors: RFC 1812 4.3.2.5
_ERRORS = frozenset((3, 4, 5, 11, 12))
_IPV4 = struct.Struct("!BBHHHBBHII")
_ICMP = struct.Struct("!BBHHH")


class Complaint(Enum):
    """Type and code of an error message (RFC 792)."""

    NET_UNREACHABLE = (3, 0)
    HOST_UNREACHABLE = (3, 1)
    FRAGMENTATION_NEEDED = (3, 4)
    TTL_EXCEEDED = (11, 0)


def deserves_answer(packet: memoryview, header: Header) -> bool:
    """Return whether an error about this sound packet may be sent to its source."""
    if header.fragment & OFFSET:
        return False
    if not _is_one_host(header.source) or not _is_one_host(header.destination):
        return False
    if header.protocol != PROTOCOL:
        return True
    # An ICMP packet too short to show its type could be an error.
    return header.size < header.total and packet[header.size] not in _ERRORS


def _is_one_host(address: int) -> bool:
    """Return whether this is neither 0/8, loopback, multicast, reserved nor broadcast."""
    first = address >> 24
    return 0 < first < 224 and first != 127  # noqa: PLR2004  # the first numbers of those blocks


def error_about(
    packet: memoryview, header: Header, complaint: Complaint, *, source: int, mtu: int = 0
) -> bytes:
    """Return an IPv4 packet to the sender of `packet`, which it quotes.

    `source` is the address that it comes from; `mtu` in bytes, for FRAGMENTATION_NEEDED (RFC 1191).
    """
    quoted = bytes(packet[:_QUOTED])
    kind, code = complaint.value
    message = _ICMP.pack(kind, code, 0, 0, min(mtu, LONGEST)) + quoted
    message = message[:2] + checksum(message).to_bytes(2) + message[4:]
    total = _IPV4.size + len(message)
    addresses = (source, header.source)
    head = _IPV4.pack(0x45, _NETWORK_CONTROL, total, 0, 0, TTL, PROTOCOL, 0, *addresses)
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + message
