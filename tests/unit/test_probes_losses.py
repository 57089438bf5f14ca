"""Loss of one direction, against a plain count of the same questions."""

from hypothesis import given
from hypothesis import strategies as st
from kersey_control.probes.losses import WINDOW, Came, loss


def heard(numbers: list[int]) -> Came:
    came = Came()
    for number in numbers:
        came.note(number)
    return came


@given(
    st.lists(st.integers(1, 120), max_size=100),
    st.integers(0, 150),
    st.integers(0, 40),
)
def test_loss_is_what_counting_says(numbers: list[int], since: int, more: int) -> None:
    came = heard(numbers)
    sent = max([since, *numbers]) + more
    found = loss(newest=came.newest, bits=came.bits, sent=sent, since=since)
    known = {number for number in numbers if number > came.newest - WINDOW}
    window = range(max(since, sent - WINDOW) + 1, sent + 1)
    judged = [number for number in window if number < sent or number in known]
    lost = [number for number in judged if number not in known]
    assert (found.lost, found.judged) == (len(lost), len(judged))
    latest = [number for number in judged if number > sent - 4]
    assert found.is_cut == (len(latest) >= 3 and not known.intersection(latest))
    assert found.ratio == (len(lost) / len(judged) if judged else None)


def test_the_last_question_is_not_lost_while_it_may_be_on_its_way() -> None:
    assert loss(newest=9, bits=0b111, sent=10, since=6) == (0, 3, False)
    assert loss(newest=9, bits=0b111, sent=11, since=6) == (1, 4, False)


def test_nothing_can_be_said_before_anything_was_sent() -> None:
    assert loss(newest=5, bits=0, sent=5, since=5).ratio is None


def test_a_report_of_questions_that_were_never_sent_does_no_harm() -> None:
    assert loss(newest=1 << 31, bits=1, sent=3, since=0).judged == 2


def test_late_and_repeated_questions_are_counted_once() -> None:
    assert heard([3, 1, 3, 1]).bits == 0b101
    assert heard([100, 1]) == Came(100, 1)
    assert heard([1, 1 << 31]) == Came(1 << 31, 1)
