"""ICMP errors: to whom one is due, and its bytes."""

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.icmp import Complaint, deserves_answer, error_about
from kersey_control.ipv4 import Header, read_header

SOURCE = 0x0AF40100  # 10.244.1.0


def header_of(packet: bytes) -> Header:
    found = read_header(memoryview(packet))
    assert isinstance(found, Header)
    return found


def packet(
    payload: bytes = b"data",
    *,
    src: str = "10.244.1.2",
    dst: str = "10.244.2.2",
    protocol: int = packets.UDP,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    return packets.ipv4(
        payload, src=src, dst=dst, protocol=protocol, fragment=fragment, options=options
    )


@pytest.mark.parametrize(
    ("about", "due"),
    [
        pytest.param(packet(), True, id="UDP"),
        pytest.param(packet(fragment=0x2000), True, id="first fragment"),
        pytest.param(packet(fragment=0x2001), False, id="middle fragment"),
        pytest.param(packet(fragment=0x0001), False, id="last fragment"),
        pytest.param(packet(fragment=0x4000), True, id="DF"),
        pytest.param(packet(b"\x08\0\0\0", protocol=1), True, id="echo request"),
        pytest.param(packet(b"\x00\0\0\0", protocol=1), True, id="echo reply"),
        *(
            pytest.param(packet(bytes([kind]), protocol=1), False, id=f"ICMP error {kind}")
            for kind in (3, 4, 5, 11, 12)
        ),
        pytest.param(
            packet(b"\x03", protocol=1, options=b"\1\1\1\0"), False, id="error behind options"
        ),
        pytest.param(
            packet(b"\x08", protocol=1, options=b"\3\3\3\3"), True, id="request behind options"
        ),
        pytest.param(packet(b"", protocol=1), False, id="ICMP without a type"),
        pytest.param(packet(dst="224.0.0.251"), False, id="to multicast"),
        pytest.param(packet(dst="255.255.255.255"), False, id="to broadcast"),
        pytest.param(packet(src="0.1.2.3"), False, id="from nobody"),
        pytest.param(packet(src="127.0.0.1"), False, id="from loopback"),
        pytest.param(packet(src="239.1.1.1"), False, id="from multicast"),
        pytest.param(packet(src="255.255.255.255"), False, id="from broadcast"),
    ],
)
def test_an_error_is_sent_only_where_the_rfcs_allow_it(about: bytes, due: bool) -> None:  # noqa: FBT001
    assert deserves_answer(memoryview(about), header_of(about)) is due


@pytest.mark.parametrize(
    ("complaint", "start"),
    [
        (Complaint.NET_UNREACHABLE, "0300"),
        (Complaint.HOST_UNREACHABLE, "0301"),
        (Complaint.FRAGMENTATION_NEEDED, "0304"),
        (Complaint.TTL_EXCEEDED, "0b00"),
    ],
)
def test_an_error_is_this_whole_packet(complaint: Complaint, start: str) -> None:
    about = packet()
    rest = bytes.fromhex("00000578") + about
    head = bytes.fromhex(start)
    message = head + packets.checksum(head + b"\0\0" + rest).to_bytes(2) + rest
    expected = packets.ipv4(
        message, src="10.244.1.0", dst="10.244.1.2", protocol=1, ttl=8, tos=0xC0, ident=0
    )
    found = error_about(memoryview(about), header_of(about), complaint, source=SOURCE, mtu=1400)
    assert found == expected


def test_an_error_is_no_longer_than_576_bytes() -> None:
    about = packet(bytes(1400))
    complaint = Complaint.NET_UNREACHABLE
    found = error_about(memoryview(about), header_of(about), complaint, source=SOURCE)
    assert len(found) == 576
    assert found.endswith(about[:548])


@given(st.binary(max_size=1500), st.integers(0, 1 << 20), st.sampled_from(Complaint))
def test_every_error_is_sound_itself_and_never_answered(
    payload: bytes, mtu: int, complaint: Complaint
) -> None:
    about = packet(payload)
    found = error_about(memoryview(about), header_of(about), complaint, source=SOURCE, mtu=mtu)
    header = header_of(found)
    assert packets.checksum(found[20:]) == 0
    assert not deserves_answer(memoryview(found), header)
