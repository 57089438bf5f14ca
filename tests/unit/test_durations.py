"""Durations by kind, in buckets."""

import pytest
from kersey_control.durations import BOUNDS, Durations, Tally


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (BOUNDS[0], 0), (0.0011, 1), (0.3, 8), (BOUNDS[-1], 12), (11.0, 13)],
)
def test_an_observation_falls_into_the_first_bucket_that_includes_it(
    seconds: float, bucket: int
) -> None:
    tally = Tally().plus(seconds)
    assert tally.counts.index(1) == bucket
    assert sum(tally.counts) == 1
    assert tally.seconds == seconds


def test_observations_add_up_by_kind() -> None:
    durations = Durations()
    for kind, seconds in (("repair", 1.0), ("repair", 2.0), ("events", 4.0)):
        durations.observe(kind, seconds)
    assert {kind: tally.seconds for kind, tally in durations.tallies.items()} == {
        "repair": 3.0,
        "events": 4.0,
    }
    assert sum(durations.tallies["repair"].counts) == 2


def test_what_a_reader_holds_does_not_change_under_it() -> None:
    durations = Durations()
    durations.observe("repair", 1.0)
    held = durations.tallies
    durations.observe("repair", 1.0)
    durations.observe("events", 1.0)
    assert list(held) == ["repair"]
    assert sum(held["repair"].counts) == 1
