"""Unfinished TCP and UDP packets, as they cross virtual links: finished and cut."""

import struct

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.ipv4 import Header, read_header
from kersey_control.transport import finish, is_unfinished, tcp_segments
from packets import ACK, FIN, PSH, RST, SYN, TCP, UDP

SRC, DST = "10.244.1.2", "10.244.2.2"
URG, ECE, CWR = 0x20, 0x40, 0x80


def pseudo(segment: bytes, protocol: int) -> bytes:
    addresses = bytes([10, 244, 1, 2, 10, 244, 2, 2])
    return addresses + struct.pack("!BBH", 0, protocol, len(segment))


def at_of(protocol: int) -> int:
    return 16 if protocol == TCP else 6


def with_sum(segment: bytes, protocol: int, value: int) -> bytes:
    at = at_of(protocol)
    return segment[:at] + value.to_bytes(2) + segment[at + 2 :]


def left_open(segment: bytes, protocol: int) -> bytes:
    """Return a segment as a stack leaves it for a network card: the pseudo-header's sum."""
    return with_sum(segment, protocol, ~packets.checksum(pseudo(segment, protocol)) & 0xFFFF)


def complete(segment: bytes, protocol: int) -> bytes:
    blank = with_sum(segment, protocol, 0)
    return with_sum(segment, protocol, packets.checksum(pseudo(blank, protocol) + blank) or 0xFFFF)


def tcp(data: bytes, *, flags: int = ACK, sequence: int = 1, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack("!HHIIBBHHH", 80, 81, sequence, 7, words << 4, flags, 512, 0, 0)
    return head + options + data


def inside(segment: bytes, protocol: int, *, fragment: int = 0, ident: int = 9) -> memoryview:
    made = packets.ipv4(
        segment, src=SRC, dst=DST, protocol=protocol, fragment=fragment, ident=ident
    )
    return memoryview(bytearray(made))


def header_of(packet: memoryview) -> Header:
    found = read_header(packet)
    assert isinstance(found, Header)
    return found


SEGMENTS = st.one_of(
    st.tuples(st.just(TCP), st.binary(max_size=90).map(tcp)),
    st.tuples(st.just(UDP), st.binary(max_size=90).map(lambda d: packets.udp(d, src=1, dst=2))),
)


@given(SEGMENTS)
def test_an_unfinished_checksum_is_found_and_finished(made: tuple[int, bytes]) -> None:
    protocol, segment = made
    packet = inside(left_open(segment, protocol), protocol)
    assert is_unfinished(packet, header_of(packet))
    finish(packet, header_of(packet))
    assert packet == inside(complete(segment, protocol), protocol)


@given(SEGMENTS)
def test_a_right_checksum_stays(made: tuple[int, bytes]) -> None:
    protocol, segment = made
    packet = inside(complete(segment, protocol), protocol)
    before = bytes(packet)
    if is_unfinished(packet, header_of(packet)):  # by chance, once in 65,536
        finish(packet, header_of(packet))
    assert bytes(packet) == before


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(inside(complete(tcp(b"data"), TCP), TCP), id="finished"),
        pytest.param(inside(with_sum(tcp(b"data"), TCP, 0x1234), TCP), id="wrong"),
        pytest.param(inside(packets.udp(b"data", src=1, dst=2), UDP), id="UDP without"),
        pytest.param(inside(left_open(tcp(b"data"), TCP), 47), id="another protocol"),
        pytest.param(inside(left_open(tcp(b""), TCP), TCP, fragment=0x2000), id="fragment"),
        pytest.param(inside(left_open(tcp(b""), TCP), TCP, fragment=0x0003), id="last fragment"),
        pytest.param(inside(bytes(7), UDP), id="too short for UDP"),
        pytest.param(inside(bytes(17), TCP), id="too short for TCP"),
        pytest.param(inside(b"", TCP), id="empty"),
    ],
)
def test_all_else_is_left_as_it_is(packet: memoryview) -> None:
    assert not is_unfinished(packet, header_of(packet))


def cut(data: bytes, *, mtu: int, flags: int = ACK, sequence: int = 1) -> list[memoryview]:
    packet = inside(left_open(tcp(data, flags=flags, sequence=sequence), TCP), TCP)
    return list(tcp_segments(packet, header_of(packet), mtu=mtu))


def test_a_long_tcp_packet_is_cut_as_a_card_would() -> None:
    flags = ACK | PSH | FIN | CWR | ECE
    found = cut(bytes(range(250)), mtu=140, flags=flags, sequence=0xFFFFFFC0)
    expected = [
        (bytes(range(100)), ACK | CWR | ECE, 0xFFFFFFC0, 9),
        (bytes(range(100, 200)), ACK | ECE, 0x24, 10),
        (bytes(range(200, 250)), flags & ~CWR, 0x88, 11),
    ]
    assert [bytes(piece) for piece in found] == [
        bytes(inside(complete(tcp(data, flags=f, sequence=s), TCP), TCP, ident=i))
        for data, f, s, i in expected
    ]


def test_options_are_in_every_piece() -> None:
    segment = tcp(bytes(30), options=b"\1\1\1\0")
    packet = inside(left_open(segment, TCP), TCP)
    found = list(tcp_segments(packet, header_of(packet), mtu=64))
    assert [len(piece) for piece in found] == [64, 54]
    assert all(bytes(piece[40:44]) == b"\1\1\1\0" for piece in found)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(inside(tcp(bytes(200), flags=SYN), TCP), id="SYN"),
        pytest.param(inside(tcp(bytes(200), flags=RST), TCP), id="RST"),
        pytest.param(inside(tcp(bytes(200), flags=URG), TCP), id="URG"),
        pytest.param(inside(packets.udp(bytes(200), src=1, dst=2), UDP), id="UDP"),
        pytest.param(inside(tcp(b""), TCP), id="no data"),
        pytest.param(inside(bytes(200), TCP), id="header length 0"),
        pytest.param(inside(b"\xff" * 30, TCP), id="header length beyond the packet"),
        pytest.param(inside(bytes(10), TCP), id="less than a header"),
    ],
)
def test_what_cannot_be_cut_stays_whole(packet: memoryview) -> None:
    assert list(tcp_segments(packet, header_of(packet), mtu=100)) == [packet]


def test_an_mtu_without_room_for_data_cuts_nothing() -> None:
    assert len(cut(bytes(100), mtu=40)) == 1


@given(st.binary(min_size=1, max_size=400), st.integers(41, 500))
def test_cut_pieces_add_up_to_the_whole(data: bytes, mtu: int) -> None:
    pieces = cut(data, mtu=mtu)
    assert b"".join(bytes(piece[40:]) for piece in pieces) == data
    for piece in pieces:
        header = header_of(piece)
        assert header.total <= mtu
        segment = bytes(piece[20:])
        assert packets.checksum(pseudo(segment, TCP) + segment) == 0


@given(st.binary(max_size=80), st.sampled_from([TCP, UDP, 1]), st.integers(21, 100))
def test_no_bytes_raise(payload: bytes, protocol: int, mtu: int) -> None:
    packet = inside(payload, protocol)
    header = header_of(packet)
    if is_unfinished(packet, header):
        finish(packet, header)
    assert list(tcp_segments(packet, header, mtu=mtu))
