"""A probe on the wire: 44 bytes, question and answer alike, in network byte order. Pure.

    4  magic "Kprb"          1  version (1)        1  length of the subnet     2  zero
    4  the sender's subnet   8  its token: a random number of this run, not 0
    4  how many questions it asked the receiver so far: the number of the last one
    8  the receiver's token as the sender heard it, 0 if it did not
    4  the number of the newest of the receiver's questions that came    4  which of the 31 before:
       bit 0 is the newest itself
    4  in an answer the number of the question, in a question 0

Only questions to the address that a peer is asked at are numbered and taken note of.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Network

_LAYOUT = struct.Struct("!4sBBxxIQIQIII")
_ECHO = struct.Struct("!QIB")
_MAGIC, _VERSION = b"Kprb", 1

SIZE = _LAYOUT.size
"""Bytes of every message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One probe. Every one says what its sender asked, and what it received of the other."""

    subnet: IPv4Network
    token: int
    asked: int
    heard_token: int
    newest: int
    came: int
    answers: int
    """The number of the question that this answers; 0 makes it a question."""


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    return _LAYOUT.pack(
        _MAGIC,
        _VERSION,
        message.subnet.prefixlen,
        int(message.subnet.network_address),
        message.token,
        message.asked,
        message.heard_token,
        message.newest,
        message.came,
        message.answers,
    )


def decode(data: bytes) -> Message | None:
    """Return the message that these bytes are, None if they are none."""
    if len(data) != SIZE:
        return None
    magic, version, length, address, *numbers = _LAYOUT.unpack(data)
    subnet = _subnet(address, length)
    if (magic, version) != (_MAGIC, _VERSION) or subnet is None:
        return None
    message = Message(subnet, *numbers)
    # A question without a number could not be told from its answer.
    return message if message.token and message.asked | message.answers else None


def encode_echo(token: int, subnet: IPv4Network) -> bytes:
    """Return what we put into an echo request to the peer of a subnet."""
    return _ECHO.pack(token, int(subnet.network_address), subnet.prefixlen)


def decode_echo(body: bytes) -> tuple[int, IPv4Network] | None:
    """Return token and subnet of an echo request of ours, None for other bytes."""
    if len(body) != _ECHO.size:
        return None
    token, address, length = _ECHO.unpack(body)
    subnet = _subnet(address, length)
    return None if subnet is None else (token, subnet)


def _subnet(address: int, length: int) -> IPv4Network | None:
    try:
        return IPv4Network((address, length))
    except ValueError:
        return None
