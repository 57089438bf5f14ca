"""Ends by two clocks: the earlier counts, and what is shown is of the wall clock as it is."""

import time

import pytest
from kersey_control.clocks import Moment

NOW = Moment(wall=1000.0, boot=10.0)


def test_a_moment_is_of_both_clocks() -> None:
    before = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    now = Moment.now()
    after = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before[0] <= now.wall <= after[0]
    assert before[1] <= now.boot <= after[1]
    assert NOW.after(50) == Moment(wall=1050.0, boot=60.0)


@pytest.mark.parametrize(
    ("later", "seconds", "epoch"),
    [
        (NOW.after(50), 50, 1050),
        (Moment(wall=1050.0, boot=40.0), 30, 1030),
        (Moment(wall=1030.0, boot=60.0), 30, 1030),
        (Moment(wall=900.0, boot=60.0), -100, 900),
    ],
)
def test_the_earlier_end_counts(later: Moment, seconds: float, epoch: float) -> None:
    assert NOW.until(later) == seconds
    assert NOW.epoch(later) == epoch
