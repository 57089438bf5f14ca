"""Whether a peer answers over the overlay, as a value: what probes find out and others show."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address


class Answering(StrEnum):
    """What is known of a peer."""

    UNKNOWN = "unknown"
    """Not asked yet, or not often enough to say."""
    ANSWERS = "answers"
    SILENT = "silent"
    """Asked several times in a row, and not one answer came."""


class OneWay(StrEnum):
    """Which packets are lost, all of them, while those of the other direction arrive."""

    OUT = "out"
    """Ours to the peer."""
    IN = "in"
    """The peer's to us."""


class Means(StrEnum):
    """What a peer was asked by."""

    PROBE = "probe"
    """Our own datagrams, which another kerseyd answers."""
    ECHO = "echo"
    """ICMP echo, which the peer's kernel answers."""


@dataclass(frozen=True, slots=True)
class Reach:
    """One peer's probes so far. Times are seconds, losses are 0 to 1 over the last probes.

    `loss_out` and `loss_in` tell the two directions apart; None where the peer does not say what it
    received (flannel, or nothing heard of it lately).
    """

    answering: Answering = Answering.UNKNOWN
    round_trip: float | None = None
    loss: float | None = None
    """Of whole round trips."""
    loss_out: float | None = None
    loss_in: float | None = None
    one_way: OneWay | None = None
    """Of a silent peer: the direction that is cut, where only one is and the peer could say so."""
    answered_at: float | None = None
    """Monotonic; None: never."""
    asked: IPv4Address | None = None
    """The address that is asked: the peer's in the overlay, else its node's."""
    means: Means = Means.PROBE
    """What the last answer came by."""
