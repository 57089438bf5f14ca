"""The status page's JSON, and the history in it."""

import json
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.metrics.history import MOST, History
from kersey_control.metrics.readings import Reader, Readings
from kersey_control.metrics.status_page import page_resources
from kersey_control.metrics.survey import Survey
from kersey_control.peer import Peer, Via
from kersey_control.status import PeerState, Status
from kersey_control.told import ToldOptions
from kersey_control.verdicts import FORGED, SLOW, WORDS, name_of
from kersey_loader.errors import BpfError
from kersey_loader.layout import Verdict
from kersey_loader.occupancy import Occupancy
from kersey_loader.peers import Sums
from testbed import wait_until

ONE, TWO = "10.244.1.0/24", "10.244.2.0/24"


def readings(total: Sums | None, **verdicts: int) -> Readings:
    return Readings(
        verdicts={("from_uplink", name): n for name, n in verdicts.items()}, total=total
    )


def fast(packets: int) -> Sums:
    return Sums(fast_sent_packets=packets, fast_sent_bytes=100 * packets)


def test_a_sample_is_what_came_between_two_looks() -> None:
    history = History()
    history.add(readings(fast(1000), unknown_node=7, fast=9), 100.0)
    assert not history.samples
    history.add(readings(fast(1030), unknown_node=9, fast=99), 110.0)
    (sample,) = history.samples
    assert (sample.at, sample.seconds) == (110.0, 10.0)
    assert sample.traffic == fast(30)
    assert sample.forged == {"unknown_node": 2}


def test_forged_packets_of_all_programs_are_one_count() -> None:
    history = History()
    for count, at in ((0, 0.0), (3, 10.0)):
        programs = {"from_pod": 1, "from_uplink": 2, "wire": 4}
        verdicts = {(name, "pod_tunnel"): part * count for name, part in programs.items()}
        history.add(Readings(verdicts=verdicts, total=Sums()), at)
    assert history.samples[0].forged == {"pod_tunnel": 21}


def test_a_reading_that_failed_makes_the_next_sample_longer() -> None:
    history = History()
    history.add(readings(fast(10)), 0.0)
    history.add(readings(None), 10.0)
    history.add(Readings(total=fast(15)), 20.0)
    history.add(readings(fast(30)), 30.0)
    (sample,) = history.samples
    assert (sample.seconds, sample.traffic) == (30.0, fast(20))


def test_looks_that_follow_each_other_fast_are_one_sample() -> None:
    history = History()
    for at in range(11):
        history.add(readings(fast(at)), float(at))
    assert [(sample.seconds, sample.traffic) for sample in history.samples] == [
        (5.0, fast(5)),
        (5.0, fast(5)),
    ]


@given(st.lists(st.integers(0, 1000), max_size=30))
def test_no_packet_is_in_two_samples_or_in_none(steps: list[int]) -> None:
    history, total = History(), 0
    history.add(readings(fast(0)), 0.0)
    for number, step in enumerate(steps):
        total += step
        history.add(readings(fast(total)), 10.0 * (number + 1))
    assert sum(sample.traffic.fast_sent_packets for sample in history.samples) == total


def test_a_history_is_bounded_and_forgets_the_oldest() -> None:
    history = History()
    for number in range(MOST + 5):
        history.add(readings(fast(number)), 10.0 * number)
    assert len(history.samples) == MOST
    assert history.samples[-1].at == 10.0 * (MOST + 4)
    assert history.samples[0].at == 10.0 * 5


def test_a_survey_feeds_a_history() -> None:
    status = Status(
        verdicts=dict,
        traffic=dict,
        occupancy=lambda: Occupancy({}, admitted_flows=0),
    )
    fed = Fed()
    with Survey(Reader(status), fed):
        wait_until(lambda: fed.readings, timeout=10, what="a reading")
    assert fed.readings[0].total == Sums()


class Fed(History):
    """A history that shows what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[Readings] = []

    def add(self, readings: Readings, now: float) -> None:
        self.readings.append(readings)
        super().add(readings, now)


def peer(subnet: str) -> PeerState:
    return PeerState(
        Peer(IPv4Network(subnet), IPv4Address("198.18.0.2"), Via.UDP), "programmed", ""
    )


def state_of(status: Status, history: History | None = None) -> dict[str, Any]:
    resources = page_resources(
        status, ToldOptions(admission="strict"), Reader(status), history or History()
    )
    state: dict[str, Any] = json.loads(resources["/status.json"].make())
    return state


def test_the_json_has_the_status_and_every_peer_with_its_traffic() -> None:
    sums = Sums(1, 2, 3, 4, 5, 6, 7, 8)
    state = state_of(Status(peers=(peer(TWO), peer(ONE)), traffic=lambda: {ONE: sums}))
    assert state["host"] == socket.gethostname()
    assert state["status"]["options"]["admission"] == "strict"
    one, two = state["peers"]
    assert (one["subnet"], one["node"], one["condition"]) == (ONE, "198.18.0.2", "programmed")
    assert one["traffic"] == {
        "fast_sent": {"packets": 1, "bytes": 2},
        "slow_sent": {"packets": 3, "bytes": 4},
        "fast_received": {"packets": 5, "bytes": 6},
        "slow_received": {"packets": 7, "bytes": 8},
    }
    assert (two["subnet"], two["traffic"]) == (TWO, None)


def test_the_json_says_once_what_verdicts_mean() -> None:
    words = state_of(Status())["words"]
    assert {*words["slow"], *words["forged"]} == {name_of(each) for each in SLOW | FORGED}
    assert words["forged"]["unknown_node"] == WORDS[Verdict.UNKNOWN_NODE]
    assert words["slow"]["stale"] == WORDS[Verdict.STALE]


def test_the_json_tells_the_history_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    history.add(readings(Sums(), unknown_node=0), 80.0)
    history.add(readings(Sums(1, 2, 3, 4, 5, 6, 7, 8), unknown_node=4), 90.0)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    assert state_of(Status(), history)["history"] == [
        {
            "seconds_ago": 10.0,
            "seconds": 10.0,
            "fast_packets": 6,
            "slow_packets": 10,
            "fast_bytes": 8,
            "slow_bytes": 12,
            "forged": {"unknown_node": 4},
        }
    ]


def test_maps_that_cannot_be_read_are_a_trouble_and_no_failure() -> None:
    def closed() -> Mapping[Any, Any]:
        raise BpfError("read verdicts", 9, "Bad file descriptor")

    state = state_of(
        Status(verdicts=closed, traffic=closed, peers=(peer(ONE),), xdp_mode="off", xdp_reason="x")
    )
    assert state["status"]["fast_path"]["xdp"] == {"mode": "off", "reason": "x"}
    assert "Bad file descriptor" in state["status"]["fast_path"]["troubles"]["counters"]
    assert state["peers"][0]["traffic"] is None


def test_the_json_of_a_thousand_peers_and_an_hour_stays_below_a_megabyte() -> None:
    subnets = [f"10.{number // 256}.{number % 256}.0/24" for number in range(1000)]
    sums = Sums(*(1 << 48,) * 8)
    history = History()
    for number in range(MOST + 1):
        history.add(readings(fast(number << 40), unknown_node=number), 10.0 * number)
    status = Status(peers=tuple(map(peer, subnets)), traffic=lambda: dict.fromkeys(subnets, sums))
    resources = page_resources(status, ToldOptions(), Reader(status), history)
    assert len(resources["/status.json"].make()) < 1_000_000
