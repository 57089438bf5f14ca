"""Instants by two clocks at once, for ends that must not be missed.

Each clock alone can make an end seem farther away than it is: the wall clock when it is set back,
boot time when a virtual machine is paused. Where both say how long it is, the shorter one counts.
"""

import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant, in seconds: `wall` since the epoch, `boot` since boot, suspension included."""

    wall: float
    boot: float

    @classmethod
    def now(cls) -> Self:
        """Return this instant."""
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))

    def after(self, seconds: float) -> "Moment":
        """Return the instant that many seconds later."""
        return Moment(self.wall + seconds, self.boot + seconds)

    def until(self, later: "Moment") -> float:
        """Return the seconds to a later instant, by the clock that says fewer."""
        return min(later.wall - self.wall, later.boot - self.boot)

    def epoch(self, later: "Moment") -> float:
        """Return when a later instant is, in seconds since the epoch as the wall clock is now."""
        return min(later.wall, self.wall + later.boot - self.boot)
