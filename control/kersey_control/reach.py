"""Whether a peer answers over the overlay, as a value: what probes find out and others show."""

from dataclasses import dataclass
from enum import StrEnum


class Answering(StrEnum):
    """What is known of a peer."""

    UNKNOWN = "unknown"
    """Not asked yet, or not often enough to say."""
    ANSWERS = "answers"
    SILENT = "silent"
    """Asked several times in a row, and not one answer came."""


@dataclass(frozen=True, slots=True)
class Reach:
    """One peer's probes so far. Times are seconds, losses are 0 to 1 over the last probes.

    `loss_out` and `loss_in` tell the two directions apart; None where the peer does not say what it
    received (flannel, or nothing heard of it yet).
    """

    answering: Answering = Answering.UNKNOWN
    round_trip: float | None = None
    loss: float | None = None
    """Of whole round trips."""
    loss_out: float | None = None
    loss_in: float | None = None
    answered_at: float | None = None
    """Monotonic; None: never."""
