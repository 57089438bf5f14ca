"""How full the maps are, counted now and then on a thread of its own.

A count reads maps through, so neither a scrape nor the control loop ever waits for one: a scrape
takes the last one. It never takes more than a small share of one CPU, however large the maps are.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from kersey_loader.errors import LoaderError
from kersey_loader.occupancy import Occupancy

from kersey_control.status import Status

logger = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds from one count to the next, at least."""

SHARE = 0.005
"""Of one CPU: a count that costs more is followed by a longer rest."""

_WAITING = 1.0
_JOIN_TIMEOUT = 3.0


class Survey:
    """Count while the context lasts."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-survey", daemon=True)
        self._latest: Occupancy | None = None
        self._failures = 0

    @property
    def latest(self) -> Occupancy | None:
        """Return the last count; None before the first one and without a fast path."""
        return self._latest

    @property
    def failures(self) -> int:
        """Return how often a count failed."""
        return self._failures

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_JOIN_TIMEOUT)

    def _run(self) -> None:
        while not self._stop.wait(self._count()):
            pass

    def _count(self) -> float:
        """Count once, and return after how many seconds to count again."""
        if self._status.occupancy is None:
            return _WAITING
        began = time.thread_time()
        try:
            self._latest = self._status.occupancy()
        except (LoaderError, OSError) as error:
            self._failures += 1
            self._latest = None
            logger.debug("maps not counted", extra={"reason": str(error)})
        return max(INTERVAL, (time.thread_time() - began) / SHARE)
