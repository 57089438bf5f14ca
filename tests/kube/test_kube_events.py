"""Notices as the API server has them: events of our node, few, counted, never waited for."""

import json
import logging
import threading
from datetime import UTC, datetime

import kubernetes_validate
import pytest
from kersey_control.notice import Notice
from kersey_control.subnets import kube_events
from kersey_control.subnets.kube import KubeOptions, KubeStore
from kersey_control.subnets.kube_events import (
    BURST,
    MAX_KNOWN,
    MAX_WAITING,
    new_event,
)
from kersey_control.subnets.kube_options import PodName
from kube.api_server import ApiServer, Fault, Json
from kube.members import NODE
from testbed.waiting import wait_until

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
OFF = Notice("FastPathOff", "no bcc", is_warning=True)
ON = Notice("FastPathOn", "over: no bcc", is_warning=False)


def numbered(number: int) -> Notice:
    return Notice("FastPathOff", f"reason {number}", is_warning=True)


def writers() -> set[threading.Thread]:
    """Return the threads that write events; those of former tests may be about to end."""
    return {each for each in threading.enumerate() if each.name == "node-events"}


def wait_events(api: ApiServer, count: int) -> list[Json]:
    wait_until(lambda: len(api.events) >= count, timeout=5, what=f"{count} events")
    return api.events


@pytest.fixture
def _unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_events, "BURST", 10_000)


def test_an_event_is_what_the_kubelet_would_write(api: ApiServer, store: KubeStore) -> None:
    store.tell(OFF)
    store.tell(ON)
    first, second = wait_events(api, 2)
    assert first["involvedObject"] == {"kind": "Node", "name": NODE, "uid": NODE}
    assert first["metadata"]["namespace"] == "default"
    assert first["source"] == {"component": "kersey", "host": NODE}
    assert (first["reason"], first["message"], first["type"]) == (
        "FastPathOff",
        "no bcc",
        "Warning",
    )
    assert (first["count"], first["firstTimestamp"]) == (1, first["lastTimestamp"])
    assert (second["reason"], second["type"]) == ("FastPathOn", "Normal")
    assert len({event["metadata"]["name"] for event in (first, second)}) == 2


@pytest.mark.parametrize("version", ["1.25", "1.31", "1.37"])
def test_an_event_is_valid_for_every_kubernetes(version: str) -> None:
    _, event = new_event(OFF, NODE, NOW)
    kubernetes_validate.validate(json.loads(event), version, strict=True)


def test_times_are_utc_and_names_are_those_of_the_node() -> None:
    name, event = new_event(OFF, NODE, NOW)
    assert name.startswith(f"{NODE}.")
    assert json.loads(event)["lastTimestamp"] == "2030-01-02T03:04:05Z"


def test_a_long_message_is_cut_between_two_characters() -> None:
    _, event = new_event(OFF._replace(message="x" + "\u00e4" * 600), NODE, NOW)
    assert json.loads(event)["message"] == "x" + "\u00e4" * 511


def test_what_comes_again_is_counted(api: ApiServer, store: KubeStore) -> None:
    for notice in (OFF, ON, OFF, OFF):
        store.tell(notice)
    wait_until(lambda: any(event["count"] == 3 for event in api.events), timeout=5, what="count")
    assert [(event["reason"], event["count"]) for event in api.events] == [
        ("FastPathOff", 3),
        ("FastPathOn", 1),
    ]
    assert len(api.of("patch")) == 2


def test_an_event_that_the_server_forgot_is_written_anew(api: ApiServer, store: KubeStore) -> None:
    store.tell(OFF)
    wait_events(api, 1)
    api.expire_events()
    store.tell(OFF)
    (event,) = wait_events(api, 1)
    assert event["count"] == 1


def test_the_node_is_asked_for_where_only_the_pod_is_known(
    api: ApiServer, options: KubeOptions
) -> None:
    api.pods["kersey", "kersey-x"] = NODE
    by_pod = KubeOptions(
        node=PodName("kersey", "kersey-x"),
        api_url=options.api_url,
        net_config_path=options.net_config_path,
    )
    with KubeStore(by_pod) as store:
        store.tell(OFF)
        (event,) = wait_events(api, 1)
    assert event["involvedObject"]["name"] == NODE


def test_a_flood_costs_the_server_no_more_than_a_burst(api: ApiServer, store: KubeStore) -> None:
    for number in range(MAX_WAITING):
        store.tell(numbered(number))
    wait_events(api, BURST)
    wait_until(store._events._waiting.empty, timeout=5, what="the queue is done")
    store.tell(numbered(999))
    wait_until(store._events._waiting.empty, timeout=5, what="the last one is done")
    assert len(api.of("create")) == BURST


def test_nobody_waits_for_a_server_that_hangs_and_the_queue_is_bounded(
    api: ApiServer, store: KubeStore
) -> None:
    before = writers()
    with api.hanging():
        for number in range(10 * MAX_WAITING):
            store.tell(numbered(number))
        assert store._events._waiting.qsize() <= MAX_WAITING
        assert len(writers() - before) == 1
    wait_events(api, 1)


def test_what_is_told_while_the_server_is_away_is_lost_without_a_second_try(
    api: ApiServer, store: KubeStore, caplog: pytest.LogCaptureFixture
) -> None:
    api.fail("create", *[Fault(0)] * 2, Fault(500))
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            store.tell(numbered(number))
        (event,) = wait_events(api, 1)
    assert event["message"] == "reason 3"
    assert len(api.of("create")) == 4
    assert len(caplog.records) == 2  # by kind of trouble, not by event


def test_a_missing_right_is_said_once_and_harms_nothing(
    api: ApiServer, store: KubeStore, caplog: pytest.LogCaptureFixture
) -> None:
    api.forbidden.add(("create", "events"))
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            store.tell(numbered(number))
        api.wait_for("create", 3)
        wait_until(lambda: len(caplog.records) == 1, timeout=5, what="said")
    assert 'cannot create resource "events"' in caplog.records[0].__dict__["reason"]


def test_an_event_that_cannot_be_written_does_not_end_the_writer(
    api: ApiServer,
    store: KubeStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = store._events._write

    def fail_at_first(notice: Notice, now: datetime) -> None:
        if notice is OFF:
            raise ValueError(notice.reason)
        write(notice, now)

    monkeypatch.setattr(store._events, "_write", fail_at_first)
    store.tell(OFF)
    store.tell(ON)
    (event,) = wait_events(api, 1)
    assert event["reason"] == "FastPathOn"
    assert [record.message for record in caplog.records] == ["event not written"]


@pytest.mark.usefixtures("_unlimited")
def test_only_some_events_are_remembered(api: ApiServer, store: KubeStore) -> None:
    for number in range(MAX_KNOWN + 1):
        store.tell(numbered(number))
        wait_events(api, number + 1)
    wait_until(lambda: len(store._events._known) == MAX_KNOWN, timeout=5, what="forgotten")
    store.tell(numbered(0))
    assert len(wait_events(api, MAX_KNOWN + 2)) == MAX_KNOWN + 2


def test_without_news_there_is_no_thread_and_with_the_store_it_ends(options: KubeOptions) -> None:
    before = writers()
    with KubeStore(options) as store:
        assert writers() <= before
        store.tell(OFF)
        wait_until(lambda: writers() - before, timeout=5, what="the writer")
    wait_until(lambda: not writers() - before, timeout=5, what="the writer's end")
