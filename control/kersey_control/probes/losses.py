"""Which of one direction's numbered questions came, and what that makes of loss. Pure.

The receiver keeps the newest number and a bit for each of the 31 before it; whoever knows how many
were sent computes the loss from that, on either side.
"""

from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 32
"""How many of the last questions count."""

_ALL = (1 << WINDOW) - 1
_LATEST, _ENOUGH = 0b1111, 3


@dataclass(slots=True)
class Came:
    """The questions that came: bit i of `bits` is number `newest` - i."""

    newest: int = 0
    bits: int = 0

    def note(self, number: int) -> None:
        """Take note of one; late and repeated ones do no harm."""
        ahead = number - self.newest
        if ahead > 0:
            self.newest = number
            self.bits = (self.bits << min(ahead, WINDOW) | 1) & _ALL
        elif -ahead < WINDOW:
            self.bits |= 1 << -ahead


class Loss(NamedTuple):
    """How many of the last questions that can be judged did not come."""

    lost: int = 0
    judged: int = 0
    is_cut: bool = False
    """Whether none of the latest came, and there were enough to say so."""

    @property
    def ratio(self) -> float | None:
        """Return the share that was lost, None where nothing can be said."""
        return self.lost / self.judged if self.judged else None


NOTHING = Loss()
"""What is known of a direction before anything was sent."""


def loss(*, newest: int, bits: int, sent: int, since: int) -> Loss:
    """Return the loss of the questions after number `since` up to `sent`, of the last `WINDOW`.

    The very last one may be on its way still, so it only counts if it came.
    """
    behind = min(sent - newest, WINDOW)
    came = (bits << behind if behind > 0 else bits >> -behind) & _ALL
    span = max(0, min(sent - since, WINDOW))
    judged = ((1 << span) - 1) & (~1 | came)
    missing = judged & ~came
    latest = judged & _LATEST
    return Loss(
        lost=missing.bit_count(),
        judged=judged.bit_count(),
        is_cut=latest.bit_count() >= _ENOUGH and latest == missing & _LATEST,
    )
