"""IPv4 headers read, judged and changed, against `packets` as the second opinion."""

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.ipv4 import (
    CE,
    ECT_0,
    ECT_1,
    NOT_ECT,
    Drop,
    Header,
    amended,
    checksum,
    merged_ecn,
    outer_ecn,
    read_header,
    set_tos,
    take_hops,
)

SOUND = packets.ipv4(b"payload", src="10.244.1.2", dst="10.244.2.2")
ADDRESSES = st.ip_addresses(v=4).map(str)
SOUND_PACKETS = st.builds(
    packets.ipv4,
    st.binary(max_size=60),
    src=ADDRESSES,
    dst=ADDRESSES,
    protocol=st.integers(0, 255),
    ttl=st.integers(0, 255),
    tos=st.integers(0, 255),
    ident=st.integers(0, 0xFFFF),
    fragment=st.integers(0, 0xFFFF),
    options=st.sampled_from([b"", b"\x01\x01\x01\x00", bytes(40)]),
)


def view(packet: bytes) -> memoryview:
    return memoryview(bytearray(packet))


def changed(at: int, value: int) -> bytes:
    """Return the sound packet with one byte changed, its checksum left as it was."""
    return SOUND[:at] + bytes([value]) + SOUND[at + 1 :]


def test_header_fields_are_the_packets() -> None:
    packet = packets.ipv4(
        b"x", src="10.244.1.2", dst="10.244.2.3", ttl=7, tos=0x2E, ident=9, fragment=0x4000
    )
    header = read_header(view(packet))
    assert isinstance(header, Header)
    assert header == (0x45, 0x2E, 21, 9, 0x4000, 7, 17, header.checksum, 0x0AF40102, 0x0AF40203)
    assert header.size == 20
    assert Header.of(view(packet)) == header


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        pytest.param(b"", Drop.TRUNCATED, id="empty"),
        pytest.param(SOUND[:19], Drop.TRUNCATED, id="less than a header"),
        pytest.param(changed(0, 0x65), Drop.NOT_IPV4, id="version 6"),
        pytest.param(changed(0, 0x44), Drop.MALFORMED, id="header of 16 bytes"),
        pytest.param(changed(0, 0x4F), Drop.MALFORMED, id="header longer than the packet"),
        pytest.param(changed(3, 19), Drop.MALFORMED, id="total length less than the header"),
        pytest.param(SOUND[:-1], Drop.TRUNCATED, id="less than the total length"),
        pytest.param(SOUND + b"\0", Drop.LENGTH, id="more than the total length"),
        pytest.param(changed(8, 63), Drop.MALFORMED, id="checksum of another TTL"),
        pytest.param(changed(10, 0), Drop.MALFORMED, id="wrong checksum"),
    ],
)
def test_unsound_packets_have_a_reason(packet: bytes, reason: Drop) -> None:
    assert read_header(view(packet)) is reason


@given(SOUND_PACKETS)
def test_every_sound_packet_is_read(packet: bytes) -> None:
    assert isinstance(read_header(view(packet)), Header)


@given(st.binary(max_size=100))
def test_no_bytes_raise(packet: bytes) -> None:
    assert isinstance(read_header(view(packet)), Header | Drop)


def rewritten(packet: bytes, at: int, value: int) -> bytes:
    """Return the packet with one byte of its header changed and the checksum made anew."""
    size = (packet[0] & 15) * 4
    head = packet[:at] + bytes([value]) + packet[at + 1 : size]
    head = head[:10] + b"\0\0" + head[12:]
    return head[:10] + packets.checksum(head).to_bytes(2) + head[12:] + packet[size:]


@given(SOUND_PACKETS, st.integers(0, 2))
def test_taking_hops_changes_ttl_and_checksum_alone(packet: bytes, hops: int) -> None:
    mine = view(packet)
    if packet[8] > hops:
        take_hops(mine, Header.of(mine), hops)
        assert bytes(mine) == rewritten(packet, 8, packet[8] - hops)


@given(SOUND_PACKETS, st.integers(0, 255))
def test_another_tos_changes_tos_and_checksum_alone(packet: bytes, tos: int) -> None:
    mine = view(packet)
    set_tos(mine, tos)
    assert bytes(mine) == rewritten(packet, 1, tos)


@given(st.binary(min_size=1, max_size=99).filter(any))
def test_checksum_is_the_internet_checksum(data: bytes) -> None:
    assert checksum(data) == packets.checksum(data)


def test_amending_is_the_example_of_rfc_1624() -> None:
    """Section 4: 0xDD2F with 0x5555 made 0x3285 is 0x0000, never 0xFFFF."""
    assert amended(0xDD2F, 0x5555, 0x3285) == 0x0000


@pytest.mark.parametrize(("inner", "outer"), [(0xB8, 0), (0xB9, 1), (0xBA, 2), (0xBB, 2)])
def test_outer_ecn_is_the_inner_one_but_for_marks(inner: int, outer: int) -> None:
    assert outer_ecn(inner) == outer


RFC_6040: dict[int, dict[int, int | None]] = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: None},
    ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
    ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
    CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
}
"""Figure 4 of the RFC: inner, outer, and what comes out."""


@pytest.mark.parametrize("inner", RFC_6040)
@pytest.mark.parametrize("outer", RFC_6040)
def test_ecn_of_both_headers_is_merged_by_rfc_6040(inner: int, outer: int) -> None:
    found = merged_ecn(outer=outer | 0xFC, inner=inner | 0x28)
    assert found == RFC_6040[inner][outer]
