"""Signals in the testbed's own programs: every polite way to end one ends in an orderly close."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, as Python turns SIGINT into KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def undisturbed_afterwards() -> Iterator[None]:
    """Ignore further signals from the end of the block on: what follows it is the clean-up."""
    try:
        yield
    finally:
        for number in _POLITE:
            signal.signal(number, signal.SIG_IGN)
