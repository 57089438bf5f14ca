"""Probes on the wire: each field in its place, and no bytes that do harm."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.probes.message import (
    SIZE,
    Message,
    decode,
    decode_echo,
    encode,
    encode_echo,
)

QUESTION = Message(
    subnet=IPv4Network("10.244.3.0/24"),
    token=0x1122334455667788,
    asked=7,
    heard_token=0x99AABBCCDDEEFF00,
    newest=5,
    came=0b101,
    answers=0,
)
BYTES = bytes.fromhex(
    "4b707262" "01" "18" "0000" "0af40300" "1122334455667788" "00000007"
    "99aabbccddeeff00" "00000005" "00000005" "00000000"
)  # fmt: skip


def test_a_question_is_these_bytes() -> None:
    assert encode(QUESTION) == BYTES
    assert decode(BYTES) == QUESTION


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(0, b"k", id="magic"),
        pytest.param(4, b"\x02", id="version"),
        pytest.param(5, b"\x21", id="a length above 32"),
        pytest.param(11, b"\x01", id="bits behind the subnet's length"),
        pytest.param(12, bytes(8), id="no token"),
        pytest.param(20, bytes(4), id="a question without a number"),
    ],
)
def test_bytes_that_are_no_probe_are_refused(at: int, value: bytes) -> None:
    assert decode(BYTES[:at] + value + BYTES[at + len(value) :]) is None


@given(st.binary(max_size=SIZE + 4) | st.binary(min_size=SIZE, max_size=SIZE))
def test_no_bytes_do_harm(data: bytes) -> None:
    message = decode(data)
    assert message is None or decode(encode(message)) == message
    decode_echo(data)


@given(st.binary(min_size=SIZE - 12, max_size=SIZE - 12))
def test_what_is_read_is_what_was_written(data: bytes) -> None:
    message = decode(BYTES[:12] + data)
    assert message is None or encode(message) == BYTES[:12] + data


def test_an_echo_request_carries_token_and_subnet() -> None:
    body = encode_echo(5, QUESTION.subnet)
    assert body.hex() == "00000000000000050af4030018"
    assert decode_echo(body) == (5, QUESTION.subnet)
    assert decode_echo(body + b"x") is None
    assert decode_echo(body[:-1] + b"\x30") is None
