"""Delays between tries."""

import random

from hypothesis import given
from hypothesis import strategies as st
from kersey_control.backoff import Backoff


@given(st.integers())
def test_delays_double_within_jitter_up_to_the_cap_and_start_over(seed: int) -> None:
    backoff = Backoff(initial=1.0, cap=5.0, rng=random.Random(seed))
    for ceiling in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert ceiling / 2 <= backoff.delay() <= ceiling
    backoff.reset()
    assert backoff.delay() <= 1.0
