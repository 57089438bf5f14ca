"""TCP and UDP as they come out of a tunnel on a virtual link: finished and cut to size. Pure.

Between virtual machines and namespaces a packet crosses whole as its sender's stack left it for a
network card: with a checksum that covers only the pseudo-header, and as one TCP packet of up to
64 KiB. A receiving kernel also merges the TCP packets inside IP-in-IP. A TUN device takes neither.
"""

import struct
from collections.abc import Iterator

from kersey_control.ipv4 import MORE_FRAGMENTS, OFFSET, Header, checksum

TCP, UDP = 6, 17

_WORD = struct.Struct("!H")
_CHECKSUM_AT = {TCP: 16, UDP: 6}
_TCP_HEADER = 20
_FIN, _SYN, _RST, _PSH, _URG, _CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80


def is_unfinished(packet: memoryview, header: Header) -> bool:
    """Return whether a TCP or UDP checksum covers the pseudo-header alone.

    A right checksum can look like that by chance; finishing it does not change it then.
    """
    at = _CHECKSUM_AT.get(header.protocol)
    if at is None or header.fragment & (OFFSET | MORE_FRAGMENTS):
        return False
    at += header.size
    if at + 2 > header.total:
        return False
    found: int = _WORD.unpack_from(packet, at)[0]
    # 2**16 is 1 modulo 0xFFFF, so that whole addresses add up as their words do.
    return found != 0 and found % 0xFFFF == _pseudo_sum(header, header.total - header.size)


def finish(packet: memoryview, header: Header) -> None:
    """Complete an unfinished checksum, in place."""
    at = header.size + _CHECKSUM_AT[header.protocol]
    _WORD.pack_into(packet, at, checksum(packet[header.size :]) or 0xFFFF)


def tcp_segments(packet: memoryview, header: Header, *, mtu: int) -> Iterator[memoryview]:
    """Yield an unfinished TCP packet cut into packets of `mtu` bytes at most, as a card would.

    Anything that cannot be cut comes back whole: the kernel then answers or fragments.
    """
    start = _payload_start(packet, header)
    room = mtu - start
    if not start or room <= 0:
        yield packet
        return
    for number, offset in enumerate(range(start, header.total, room)):
        piece = bytearray(packet[:start]) + packet[offset : offset + room]
        is_last = offset + room >= header.total
        _renumber(piece, header, number=number, offset=offset - start, is_last=is_last)
        yield memoryview(piece)


def _payload_start(packet: memoryview, header: Header) -> int:
    """Return where the data of a TCP packet that can be cut begins, 0 if it cannot be."""
    if header.protocol != TCP or header.size + _TCP_HEADER > header.total:
        return 0
    length = (packet[header.size + 12] >> 4) * 4
    flags = packet[header.size + 13]
    start = header.size + length
    if length < _TCP_HEADER or start >= header.total or flags & (_SYN | _RST | _URG):
        return 0
    return start


def _renumber(piece: bytearray, header: Header, *, number: int, offset: int, is_last: bool) -> None:
    """Make headers copied from the whole those of its piece that begins at `offset` of the data."""
    at = header.size
    struct.pack_into("!HH", piece, 2, len(piece), (header.ident + number) & 0xFFFF)
    struct.pack_into("!H", piece, 10, 0)
    struct.pack_into("!H", piece, 10, checksum(piece[:at]))
    (sequence,) = struct.unpack_from("!I", piece, at + 4)
    struct.pack_into("!I", piece, at + 4, (sequence + offset) & 0xFFFFFFFF)
    kept = 0xFF if is_last else ~(_FIN | _PSH)
    piece[at + 13] &= kept & (0xFF if number == 0 else ~_CWR) & 0xFF
    struct.pack_into("!H", piece, at + 16, _pseudo_sum(header, len(piece) - at))
    struct.pack_into("!H", piece, at + 16, checksum(piece[at:]))


def _pseudo_sum(header: Header, length: int) -> int:
    return (header.source + header.destination + header.protocol + length) % 0xFFFF
