"""How long to wait before the next try: exponential, capped, jittered. Pure; the caller sleeps."""

import random


class Backoff:
    """Give delays in seconds that double from `initial` to `cap`.

    Each is spread evenly over its upper half, so that nodes which failed together do not come back
    together.
    """

    def __init__(self, *, initial: float, cap: float, rng: random.Random | None = None) -> None:
        self._initial = initial
        self._cap = cap
        self._rng = rng or random.Random()  # noqa: S311  # spreads load, guards nothing
        self._next = initial

    def delay(self) -> float:
        """Return the next delay and lengthen the one after it."""
        ceiling, self._next = self._next, min(self._next * 2, self._cap)
        return self._rng.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """Start over after a success."""
        self._next = self._initial
