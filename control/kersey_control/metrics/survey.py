"""What is looked at without being scraped, now and then, on a thread of its own.

How full the maps are: a count reads them through, so neither a scrape nor the control loop ever
waits for one. And the traffic: its sums begin when the fast path opens, and a peer that goes takes
little of them, however seldom a scrape comes. It takes a small share of one CPU, however large the
maps are.
"""

import threading
import time
from types import TracebackType
from typing import Self

from kersey_control.metrics.history import History
from kersey_control.metrics.readings import Reader

INTERVAL = 10.0
"""Seconds from one look to the next, at least."""

SHARE = 0.005
"""Of one CPU: a look that costs more is followed by a longer rest."""

_WAITING = 1.0
_JOIN_TIMEOUT = 3.0


class Survey:
    """Look while the context lasts, and keep a history if there is to be one."""

    def __init__(self, reader: Reader, history: History | None = None) -> None:
        self._reader = reader
        self._history = history
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-survey", daemon=True)

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
        while not self._stop.wait(self._look()):
            pass

    def _look(self) -> float:
        """Look once, and return after how many seconds to look again."""
        began = time.thread_time()
        self._reader.count()
        readings = self._reader.read()
        if self._history is not None:
            self._history.add(readings, time.monotonic())
        if readings.occupancy is None:
            return _WAITING  # no fast path, or not yet
        return max(INTERVAL, (time.thread_time() - began) / SHARE)
