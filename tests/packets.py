"""Packets as bytes, built layer by layer in plain Python, checksums included.

A second opinion on every wire format that the programs read or write; shares no code with them.
"""

import struct
from ipaddress import IPv4Address

TCP = 6
UDP = 17
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000

_IPV4 = 0x0800


def checksum(data: bytes) -> int:
    """Return the Internet checksum of `data` (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac(text: str) -> bytes:
    """Return the six bytes of a colon-separated address."""
    return bytes.fromhex(text.replace(":", ""))


def ethernet(payload: bytes, *, dst: str, src: str, kind: int = _IPV4) -> bytes:
    """Return an Ethernet II frame without its check sequence."""
    return mac(dst) + mac(src) + struct.pack("!H", kind) + payload


def ipv4(
    payload: bytes,
    *,
    src: str,
    dst: str,
    protocol: int = UDP,
    ttl: int = 64,
    tos: int = 0,
    ident: int = 0x1234,
    fragment: int = 0,
    options: bytes = b"",
    length: int | None = None,
) -> bytes:
    """Return an IPv4 packet (RFC 791); `length` overrides the true total length."""
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x40 | words, tos, 4 * words + len(payload) if length is None else length),
        *(ident, fragment, ttl, protocol, 0),
        *(IPv4Address(src).packed, IPv4Address(dst).packed),
    )
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def udp(payload: bytes, *, src: int, dst: int, length: int | None = None) -> bytes:
    """Return a UDP datagram without checksum (RFC 768); `length` overrides the true length."""
    size = 8 + len(payload) if length is None else length
    return struct.pack("!HHHH", src, dst, size, 0) + payload


def tcp(payload: bytes, *, src: int, dst: int, flags: int = ACK) -> bytes:
    """Return a TCP segment without options, its checksum left zero (RFC 9293)."""
    return struct.pack("!HHIIBBHHH", src, dst, 1, 1, 5 << 4, flags, 65535, 0, 0) + payload


def vxlan(payload: bytes, *, vni: int = 1, flags: int = 0x08000000) -> bytes:
    """Return a VXLAN header with `payload`, an Ethernet frame, behind it (RFC 7348)."""
    return struct.pack("!II", flags, vni << 8) + payload


def hop(packet: bytes) -> bytes:
    """Return a plain IPv4 packet as the next router sends it: TTL one lower, checksum right."""
    header = packet[:8] + bytes([packet[8] - 1]) + packet[9:10] + b"\0\0" + packet[12:20]
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + packet[20:]


def kind_of(packet: bytes) -> int:
    """Return what a flow remembers of an IPv4 packet: DSCP << 8 (ECN left out) and TTL."""
    return (packet[1] & 0xFC) << 8 | packet[8]
