"""What is wanted of one variant against another, and whether a run reached it. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from datapath_bench.figures import Load, Mode, Table, Variant, ratio_of_rounds


class Outcome(StrEnum):
    """What became of a goal."""

    REACHED = "reached"
    MISSED = "missed"
    UNPROVEN = "not proven"
    """Not measured, or what should have been fast was not."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Under `load` the variant reaches at least so many times what `base` does."""

    load: Load
    variant: Variant
    base: Variant
    at_least: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """A goal and what was measured; no ratio where one of the two was not."""

    goal: Goal
    ratio: float | None
    outcome: Outcome


def judge(goal: Goal, table: Table, mode: Mode) -> Judgement:
    """Return what a run says about a goal."""
    series = table.find(mode, goal.load, goal.variant)
    base = table.find(mode, goal.load, goal.base)
    if series is None or base is None:
        return Judgement(goal, None, Outcome.UNPROVEN)
    ratio = ratio_of_rounds(series, base)
    if not (series.is_proven and base.is_proven):
        return Judgement(goal, ratio, Outcome.UNPROVEN)
    reached = ratio >= goal.at_least
    return Judgement(goal, ratio, Outcome.REACHED if reached else Outcome.MISSED)
