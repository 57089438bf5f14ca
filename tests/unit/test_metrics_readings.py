"""What is read of the maps for the metrics: sums that never fall, failures that stay apart."""

import threading
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.metrics import survey as survey_module
from kersey_control.metrics.readings import Reader, Totals
from kersey_control.metrics.survey import Survey
from kersey_control.status import Status
from kersey_loader.errors import BpfError
from kersey_loader.occupancy import MapUse, Occupancy
from kersey_loader.peers import Sums
from testbed import wait_until

ONE, TWO = "10.244.1.0/24", "10.244.2.0/24"
FULL = Occupancy({"flows": MapUse(1, 2)}, admitted_flows=1)


def fast(packets: int, size: int = 0) -> Sums:
    return Sums(fast_sent_packets=packets, fast_sent_bytes=size)


def test_totals_begin_at_nothing_whatever_the_maps_held_at_the_start() -> None:
    totals = Totals()
    assert totals.update({ONE: fast(1000, 9000)}) == Sums()
    assert totals.update({ONE: fast(1001, 9060)}) == fast(1, 60)


def test_a_new_peer_counts_from_its_first_packet() -> None:
    totals = Totals()
    totals.update({})
    assert totals.update({ONE: fast(5)}) == fast(5)


def test_a_peer_that_goes_takes_nothing_away() -> None:
    totals = Totals()
    totals.update({ONE: fast(10), TWO: fast(10)})
    totals.update({ONE: fast(15), TWO: fast(20)})
    assert totals.update({ONE: fast(16)}) == fast(16)
    assert totals.update({}) == fast(16)


def test_a_peer_that_comes_back_counts_on() -> None:
    totals = Totals()
    totals.update({})
    totals.update({ONE: fast(100)})
    assert totals.update({ONE: fast(3)}) == fast(103)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([ONE, TWO]), st.builds(fast, st.integers(0, 9), st.integers(0, 9))
        )
    )
)
def test_totals_never_fall(looks: list[dict[str, Sums]]) -> None:
    totals, before = Totals(), 0
    for look in looks:
        packets = totals.update(look).packets
        assert packets >= before
        before = packets


def peers(packets: int) -> Mapping[str, Sums]:
    return {ONE: fast(packets)}


def reader(
    *,
    verdicts: Callable[[], Mapping[tuple[str, str], int]] | None = None,
    traffic: Callable[[], Mapping[str, Sums]] | None = None,
) -> Reader:
    return Reader(Status(verdicts=verdicts, traffic=traffic))


def test_without_a_fast_path_nothing_is_read_and_nothing_has_failed() -> None:
    found = reader().read()
    assert (found.verdicts, found.peers, found.total, found.occupancy) == (None, None, None, None)
    assert set(found.failures.values()) == {0}


def test_a_map_that_cannot_be_read_is_counted_and_costs_nothing_else() -> None:
    def closed() -> Mapping[str, Sums]:
        raise BpfError("read peer_counters", 9, "Bad file descriptor")

    failing = reader(verdicts=lambda: {("from_pod", "fast"): 1}, traffic=closed)
    failing.read()
    found = failing.read()
    assert found.verdicts == {("from_pod", "fast"): 1}
    assert (found.peers, found.total) == (None, None)
    assert found.failures == {"verdicts": 0, "traffic": 2, "occupancy": 0}


def test_totals_go_on_after_a_reading_that_failed() -> None:
    answers: list[Mapping[str, Sums] | None] = [
        peers(1),
        None,
        peers(4),
    ]

    def traffic() -> Mapping[str, Sums]:
        answer = answers.pop(0)
        if answer is None:
            raise OSError
        return answer

    uneven = reader(traffic=traffic)
    assert [found.total and found.total.packets for found in (uneven.read() for _ in range(3))] == [
        0,
        None,
        3,
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have surveys that do not rest."""
    for name in ("INTERVAL", "_WAITING"):
        monkeypatch.setattr(survey_module, name, 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_survey_waits_for_a_fast_path_that_comes_later() -> None:
    status = Status()
    late = Reader(status)
    with Survey(late):
        assert late.read().occupancy is None
        status.occupancy = lambda: FULL
        wait_until(lambda: late.read().occupancy == FULL, timeout=10, what="the first count")


@pytest.mark.usefixtures("impatient")
def test_a_count_that_fails_takes_the_last_one_away_and_the_next_brings_it_back() -> None:
    broken = threading.Event()

    def occupancy() -> Occupancy:
        if broken.is_set():
            raise BpfError("read flows", 9, "Bad file descriptor")
        return FULL

    shaky = Reader(Status(occupancy=occupancy))
    with Survey(shaky):
        wait_until(lambda: shaky.read().occupancy, timeout=10, what="a count")
        broken.set()
        wait_until(lambda: shaky.read().failures["occupancy"], timeout=10, what="a failure")
        assert shaky.read().occupancy is None
        broken.clear()
        wait_until(lambda: shaky.read().occupancy, timeout=10, what="a count again")


def test_totals_begin_when_the_fast_path_opens_and_not_with_the_first_scrape() -> None:
    looked = threading.Event()

    def traffic() -> Mapping[str, Sums]:
        if looked.is_set():
            return peers(7)
        looked.set()
        return {}

    opened = Reader(Status(occupancy=lambda: FULL, traffic=traffic))
    with Survey(opened):
        assert looked.wait(10)
        total = opened.read().total
    assert total is not None
    assert total.packets == 7


def test_a_survey_ends_with_its_context() -> None:
    with Survey(Reader(Status(occupancy=lambda: FULL))):
        pass
    assert not any(thread.name == "metrics-survey" for thread in threading.enumerate())
