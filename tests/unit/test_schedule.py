"""When the control loop does what."""

from hypothesis import given
from hypothesis import strategies as st
from kersey_control.schedule import Schedule, Task

TIMES = st.floats(min_value=0, max_value=1e6)


@given(st.lists(st.tuples(st.sampled_from(Task), TIMES)), TIMES)
def test_a_task_is_due_once_and_at_the_earliest_time_that_was_asked_for(
    wishes: list[tuple[Task, float]], now: float
) -> None:
    schedule = Schedule()
    earliest: dict[Task, float] = {}
    for task, due in wishes:
        schedule.by(task, due)
        earliest[task] = min(due, earliest.get(task, due))
    assert set(schedule.take(now)) == {task for task, due in earliest.items() if due <= now}
    assert schedule.take(now) == ()


def test_the_delay_is_bounded_and_never_negative() -> None:
    schedule = Schedule()
    assert schedule.delay(10.0, at_most=1.0) == 1.0
    schedule.by(Task.RULES, 10.25)
    assert schedule.delay(10.0, at_most=1.0) == 0.25
    assert schedule.delay(99.0, at_most=1.0) == 0.0
