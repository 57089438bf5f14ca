"""ICMP echo, which every host answers: requests as bytes, and a socket that hears only replies."""

import socket
import struct
from ipaddress import IPv4Address
from typing import NamedTuple

from kersey_control.ipv4 import checksum

HEADERS = 28
"""Bytes of IPv4 and ICMP header in front of a request's own."""

_REQUEST, _REPLY = 8, 0
_HEADER = struct.Struct("!BBHHH")
_IPV4, _SOURCE = 20, slice(12, 16)  # RFC 791: the shortest header, and where it says the source
_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/icmp.h: a set bit keeps that type out
_ALL_BUT_REPLIES = struct.pack("=I", 0xFFFFFFFF & ~(1 << _REPLY))


class Reply(NamedTuple):
    """What came back, and from where: the request's identity and number, and its own bytes."""

    sender: IPv4Address
    identity: int
    number: int
    body: bytes


def open_echo_socket() -> socket.socket:
    """Return a raw socket that gets echo replies only. Raises PermissionError without the right."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.setsockopt(_SOL_RAW, _ICMP_FILTER, _ALL_BUT_REPLIES)
    return raw


def request(identity: int, number: int, body: bytes) -> bytes:
    """Return an ICMP message; `identity` and `number` have 16 bits."""
    message = _HEADER.pack(_REQUEST, 0, 0, identity, number) + body
    return message[:2] + checksum(message).to_bytes(2) + message[4:]


def read_reply(packet: bytes) -> Reply | None:
    """Return what an IPv4 packet answers, None if it is no echo reply."""
    start = (packet[0] & 15) * 4 if packet else 0
    if start < _IPV4 or len(packet) < start + _HEADER.size:
        return None
    kind, _, _, identity, number = _HEADER.unpack_from(packet, start)
    if kind != _REPLY:
        return None
    sender = IPv4Address(packet[_SOURCE])
    return Reply(sender, identity, number, packet[start + _HEADER.size :])
