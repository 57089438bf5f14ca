"""What the benchmark says about goals: reached, missed, or not proven."""

import pytest
from datapath_bench.figures import STRICT, VXLAN, Load, Mode, Sample, Series, Table, Variant
from datapath_bench.goals import Goal, Outcome, judge

GOAL = Goal(Load.TCP_RR, STRICT, VXLAN, at_least=1.5)


def series(
    variant: Variant, value: float, *, fast: float | None = None, mode: Mode = Mode.PLAIN
) -> Series:
    sample = Sample(value, seconds=1.0, cpu=1.0, fast=fast)
    return Series(mode, Load.TCP_RR, variant, (sample,))


@pytest.mark.parametrize(
    ("value", "outcome"), [(15.0, Outcome.REACHED), (14.9, Outcome.MISSED), (90.0, Outcome.REACHED)]
)
def test_a_goal_is_reached_from_its_limit_on(value: float, outcome: Outcome) -> None:
    table = Table((series(VXLAN, 10), series(STRICT, value, fast=1.0)))

    judgement = judge(GOAL, table, Mode.PLAIN)

    assert (judgement.ratio, judgement.outcome) == (value / 10, outcome)


def test_a_ratio_of_what_was_not_fast_proves_nothing() -> None:
    table = Table((series(VXLAN, 10), series(STRICT, 20, fast=0.5)))

    assert judge(GOAL, table, Mode.PLAIN).outcome is Outcome.UNPROVEN


def test_a_base_that_was_not_fast_proves_nothing() -> None:
    table = Table((series(STRICT, 10, fast=0.5), series(VXLAN, 20)))
    goal = Goal(Load.TCP_RR, VXLAN, STRICT, at_least=1.5)

    assert judge(goal, table, Mode.PLAIN).outcome is Outcome.UNPROVEN


@pytest.mark.parametrize("measured", [VXLAN, STRICT])
def test_a_goal_without_one_of_its_series_has_no_ratio(measured: Variant) -> None:
    judgement = judge(GOAL, Table((series(measured, 10, fast=1.0),)), Mode.PLAIN)

    assert (judgement.ratio, judgement.outcome) == (None, Outcome.UNPROVEN)


def test_both_sides_are_of_the_mode_that_was_asked_for() -> None:
    table = Table(
        (
            series(VXLAN, 10),
            series(STRICT, 20, fast=1.0),
            series(VXLAN, 5, mode=Mode.RULES),
            series(STRICT, 15, fast=1.0, mode=Mode.RULES),
        )
    )

    assert judge(GOAL, table, Mode.RULES).ratio == 3
