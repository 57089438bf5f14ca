"""Waiting for a condition with a deadline. Never a bare sleep in place of a condition."""

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_INTERVAL = 0.02


def wait_until(condition: Callable[[], _T], *, timeout: float, what: str) -> _T:
    """Return the first true value of `condition`; after `timeout` seconds, TimeoutError."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s (last value: {value!r})")
        time.sleep(_INTERVAL)
