"""How often something may be done: so many times a second, and some at once. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Allowance:
    """Allow `rate` a second on average, and `burst` at once. `now` is monotonic, in seconds."""

    rate: float
    burst: float
    _left: float = 0.0
    _since: float | None = None

    def take(self, now: float, count: int = 1) -> bool:
        """Return whether one more is allowed now, and count it.

        What it costs may be more than is left: the next one then waits for that, too.
        """
        self._earn(now)
        if self._left < 1:
            return False
        self._left -= count
        return True

    def wait(self, now: float) -> float:
        """Return after how many seconds one more is allowed, 0 if it is now."""
        self._earn(now)
        return max(0.0, (1 - self._left) / self.rate)

    def _earn(self, now: float) -> None:
        if self._since is None:
            self._left = self.burst
        else:
            self._left = min(self.burst, self._left + (now - self._since) * self.rate)
        self._since = now
