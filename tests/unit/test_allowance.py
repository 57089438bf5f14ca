"""An allowance: a burst, its rate, and no more than that over any time."""

from hypothesis import given
from hypothesis import strategies as st
from kersey_control.allowance import Allowance


def test_allowance_gives_a_burst_and_then_its_rate() -> None:
    allowance = Allowance(rate=10, burst=3)
    assert [allowance.take(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert not allowance.take(100.05)
    assert allowance.take(100.11)
    assert not allowance.take(100.11)
    assert [allowance.take(200.0) for _ in range(4)] == [True, True, True, False]


def test_what_costs_more_than_is_left_is_paid_for_by_the_next() -> None:
    allowance = Allowance(rate=10, burst=1)
    assert allowance.take(0.0, count=3)
    assert not allowance.take(0.29)
    assert abs(allowance.wait(0.25) - 0.05) < 1e-9
    assert allowance.take(0.31)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 3)), max_size=200), st.floats(0.5, 50))
def test_no_more_is_taken_than_the_rate_and_a_burst(
    steps: list[tuple[float, int]], rate: float
) -> None:
    allowance, now, taken = Allowance(rate=rate, burst=1), 0.0, 0
    for pause, count in steps:
        now += pause
        taken += count if allowance.take(now, count) else 0
        assert taken <= rate * now + 3 + 1e-6
