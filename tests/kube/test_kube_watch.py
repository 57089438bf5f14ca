"""Following nodes through everything that an API server and a network do to a watch."""

import json
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from etcd.following import Following
from kersey_control.errors import StoreUnavailableError
from kersey_control.events import Changed, Lost, Removed, Restored, Skipped, Snapshot
from kersey_control.subnets import kube_http, kube_watch
from kersey_control.subnets.kube import KubeOptions, KubeStore
from kube.api_server import ApiServer, Fault, Json
from kube.members import annotations, cidr, expected, held, join, make_lease


def settle(api: ApiServer, following: Following) -> None:
    """Wait until the watch has caught up with the server."""
    following.wait_for(lambda: held(following.state) == expected(api))


def test_snapshot_comes_first_then_each_change(api: ApiServer, store: KubeStore) -> None:
    name = join(api, 1)
    with Following(store) as following:
        assert following.events == [Snapshot((make_lease(1),))]
        join(api, 2)
        api.annotate(name, public_ip="198.18.0.9")
        api.delete("n0002")
        following.wait_for_kind(Removed)
        moved = replace(make_lease(1), public_ip=IPv4Address("198.18.0.9"))
        removed = Removed(make_lease(2).subnet)
        assert following.events[1:] == [Changed(make_lease(2)), Changed(moved), removed]


def test_heartbeats_and_foreign_changes_give_no_event(api: ApiServer, following: Following) -> None:
    join(api, 1)
    following.wait_for_kind(Changed)
    for _ in range(50):
        api.heartbeat("n0001")
    api.put("foreign", cidr=cidr(7), annotations={"other.example/key": "x"})
    api.put("bare", cidr=cidr(8))
    join(api, 2)
    settle(api, following)
    assert following.kinds() == ["Snapshot", "Changed", "Changed"]


def test_incomplete_nodes_are_no_leases_and_no_faults(api: ApiServer, store: KubeStore) -> None:
    api.put("no-cidr", annotations=annotations(1))
    api.put("no-mark", cidr=cidr(2), annotations=annotations(2, kube_subnet_manager="false"))
    api.put("no-address", cidr=cidr(3), annotations=annotations(3, public_ip=""))
    api.put("only-v6", cidr="fd00:1::/64", annotations=annotations(4))
    with Following(store) as following:
        assert following.events == [Snapshot(())]


def test_malformed_nodes_are_skipped_alone_and_once(api: ApiServer, store: KubeStore) -> None:
    join(api, 1)
    join(api, 2, public_ip="garbage")
    api.put("n0003", cidr="10.244.3.0/33", annotations=annotations(3))
    join(api, 4, backend_data="{")
    api.put_raw("n0005", {"metadata": {"name": "n0005", "annotations": 7}, "status": {}})
    with Following(store) as following:
        snapshot = following.of(Snapshot)[0]
        assert snapshot.leases == (make_lease(1),)
        reasons = {skipped.record: skipped.reason for skipped in snapshot.skipped}
        assert reasons.keys() == {"n0002", "n0003", "n0004", "n0005"}
        assert reasons["n0002"] == "node n0002: public-ip: got 'garbage', expected an IPv4 address"
        for _ in range(10):
            api.put_raw("n0002", api.nodes["n0002"])
        api.put_raw("n0006", {"metadata": {"name": "n0006", "annotations": 7}, "status": {}})
        join(api, 7)
        following.wait_for_kind(Changed)
        assert [skipped.record for skipped in following.of(Skipped)] == ["n0006"]
        assert set(following.state) == {make_lease(1).subnet, make_lease(7).subnet}


def test_a_lease_that_becomes_malformed_is_gone_and_comes_back(
    api: ApiServer, following: Following
) -> None:
    join(api, 1)
    api.annotate("n0001", public_ip="garbage")
    following.wait_for_kind(Removed)
    api.annotate("n0001", public_ip="198.18.0.1")
    settle(api, following)
    assert following.kinds() == ["Snapshot", "Changed", "Skipped", "Removed", "Changed"]


def test_a_node_made_anew_with_another_pod_cidr_moves(api: ApiServer, following: Following) -> None:
    join(api, 1)
    api.delete("n0001")
    join(api, 2, name="n0001")
    settle(api, following)
    assert held(following.state) == expected(api)
    # The same when nobody saw it go.
    api.put("n0001", cidr=cidr(3), annotations=annotations(3))
    settle(api, following)
    assert following.kinds()[-2:] == ["Removed", "Changed"]


def test_lists_are_read_page_by_page_at_one_instant(
    api: ApiServer, options: KubeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "PAGE_SIZE", 3)
    for number in range(1, 11):
        join(api, number)
    with KubeStore(options) as store, Following(store) as following:
        assert following.of(Snapshot)[0].leases == tuple(map(make_lease, range(1, 11)))
    lists = [seen.query for seen in api.of("list")]
    assert [query["limit"] for query in lists] == ["3"] * 4
    assert ["continue" in query for query in lists] == [False, True, True, True]
    assert api.of("watch")[0].query["resourceVersion"] == str(api.revision)


def test_a_server_that_closes_behind_every_answer_is_asked_on(
    api: ApiServer, store: KubeStore
) -> None:
    api.hangs_up, api.page_limit = True, 2
    for number in range(1, 8):
        join(api, number)
    with Following(store) as following:
        assert following.of(Snapshot)[0].leases == tuple(map(make_lease, range(1, 8)))


def test_the_oldest_node_comes_first_in_a_snapshot(api: ApiServer, store: KubeStore) -> None:
    for number in (9, 3, 7):
        join(api, number)
    with Following(store) as following:
        assert following.of(Snapshot)[0].leases == tuple(map(make_lease, (9, 3, 7)))


def test_a_watch_asks_for_bookmarks_and_a_time_of_its_own(
    api: ApiServer, following: Following
) -> None:
    api.wait_for("streams", 1)
    for number in range(1, 5):
        join(api, number)
        settle(api, following)
        last = str(api.revision)
        api.cut()
        api.wait_for("watch", number + 1)
        assert api.of("watch")[-1].query["resourceVersion"] == last
    queries = [seen.query for seen in api.of("watch")]
    assert {query["allowWatchBookmarks"] for query in queries} == {"true"}
    assert all(300 <= int(query["timeoutSeconds"]) <= 600 for query in queries)
    assert len({query["timeoutSeconds"] for query in queries}) > 1


def test_a_bookmark_saves_a_new_list(api: ApiServer, following: Following) -> None:
    api.wait_for("streams", 1)
    api.advance()
    api.bookmark()
    api.wait_for("bookmarked", 1)
    api.compact()
    api.cut()
    api.wait_for("watch", 2)
    join(api, 1)
    following.wait_for_kind(Changed)
    assert len(api.of("list")) == 1
    assert following.kinds() == ["Snapshot", "Changed"]


@pytest.mark.parametrize("as_event", [False, True], ids=["status 410", "ERROR event"])
def test_history_lost_brings_a_snapshot_and_is_no_outage(
    api: ApiServer, store: KubeStore, *, as_event: bool
) -> None:
    api.gone_as_event = as_event
    join(api, 1)
    join(api, 2)
    with Following(store) as following:
        api.stop()
        following.wait_for_kind(Lost)
        api.delete("n0001")
        join(api, 3)
        api.compact()
        api.start()
        following.wait_for(lambda: len(following.of(Snapshot)) == 2)
        assert following.kinds() == ["Snapshot", "Lost", "Restored", "Snapshot"]
        assert following.events[-1] == Snapshot((make_lease(2), make_lease(3)))


def test_a_list_that_expires_between_pages_is_read_again(api: ApiServer, store: KubeStore) -> None:
    api.page_limit = 2
    for number in range(1, 8):
        join(api, number)
    api.fail("list", Fault(410))
    with Following(store) as following:
        following.wait_for_kind(Snapshot)
        assert held(following.state) == expected(api)
        assert following.kinds() == ["Lost", "Restored", "Snapshot"]


def test_an_inventory_that_expires_between_pages_is_read_again_but_not_for_ever(
    api: ApiServer, store: KubeStore
) -> None:
    api.page_limit = 2
    for number in range(1, 8):
        join(api, number)
    api.fail("list", Fault(410))
    listed = {stored.lease.subnet: stored.lease for stored in store.list_leases().leases}
    assert held(listed) == expected(api)
    api.fail("list", *[Fault(410)] * 100)
    with pytest.raises(StoreUnavailableError, match="expired"):
        store.list_leases()


def test_streams_that_end_at_once_are_not_opened_in_a_hurry(
    api: ApiServer, following: Following
) -> None:
    api.wait_for("streams", 1)
    api.fail("watch", *[Fault(200, text="\n")] * 1000)
    api.cut()
    following.stop.wait(1)  # the span over which requests are counted
    assert 1 < len(api.of("watch")) < 20
    assert following.kinds() == ["Snapshot"]


def test_cut_streams_are_resumed_in_silence(api: ApiServer, following: Following) -> None:
    for number in range(1, 6):
        api.wait_for("streams", 1)
        api.cut()
        join(api, number)
        settle(api, following)
    assert set(following.kinds()) == {"Snapshot", "Changed"}
    assert len(api.of("list")) == 1


def test_slow_streams_give_whole_events(api: ApiServer, following: Following) -> None:
    api.piece = 7
    for number in range(1, 4):
        join(api, number)
    settle(api, following)
    assert following.kinds() == ["Snapshot", "Changed", "Changed", "Changed"]


def test_a_stream_cut_in_the_midst_of_a_line_is_not_read_as_an_event(
    api: ApiServer, store: KubeStore
) -> None:
    cut = '{"type":"DELETED","object":{"metadata":{"name":"n0001"'
    join(api, 1)
    api.fail("watch", Fault(200, text=cut), Fault(200, text=cut[:1]))
    with Following(store) as following:
        api.wait_for("streams", 1)
        join(api, 2)
        settle(api, following)
        assert following.kinds() == ["Snapshot", "Changed"]


def test_lines_that_are_no_events_bring_a_new_list(api: ApiServer, store: KubeStore) -> None:
    api.fail("watch", Fault(200, text='{"half": \n'), Fault(200, text="[]\n"))
    with Following(store) as following:
        following.wait_for(lambda: len(following.of(Snapshot)) == 3)
        join(api, 1)
        settle(api, following)


def test_outage_is_reported_once_and_resumed_without_a_gap(
    api: ApiServer, store: KubeStore
) -> None:
    join(api, 1)
    with Following(store) as following:
        api.stop()
        following.wait_for_kind(Lost)
        join(api, 2)
        api.delete("n0001")
        api.start()
        settle(api, following)
        assert following.kinds() == ["Snapshot", "Lost", "Restored", "Changed", "Removed"]
        assert following.of(Lost)[0].reason.startswith(f"kubernetes {api.url}: watch nodes: ")


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503])
def test_server_errors_are_one_outage(api: ApiServer, store: KubeStore, *, status: int) -> None:
    join(api, 1)
    api.fail("list", *[Fault(status, text="<html>" if status == 502 else "")] * 3)
    with Following(store) as following:
        following.wait_for_kind(Snapshot)
        assert following.kinds() == ["Lost", "Restored", "Snapshot"]


NO_LISTS = ("{}", '{"status": "ok"}', '{"kind": "Status", "metadata": {}, "status": "Success"}')


@pytest.mark.parametrize("text", NO_LISTS)
def test_an_answer_that_is_no_list_is_an_outage_and_no_empty_cluster(
    api: ApiServer, store: KubeStore, text: str
) -> None:
    join(api, 1)
    with Following(store) as following:
        api.wait_for("streams", 1)
        api.fail("list", *[Fault(200, text=text)] * 2)
        api.advance()
        api.compact()
        following.wait_for(lambda: len(following.of(Snapshot)) == 2)
        assert following.kinds() == ["Snapshot", "Lost", "Restored", "Snapshot"]
        assert following.of(Snapshot) == [Snapshot((make_lease(1),))] * 2
        assert "list nodes: kubernetes answer: got " in following.of(Lost)[0].reason


@pytest.mark.parametrize("text", NO_LISTS)
def test_a_second_page_that_is_no_list_makes_no_short_list(
    api: ApiServer, store: KubeStore, text: str
) -> None:
    api.page_limit = 2
    for number in range(1, 6):
        join(api, number)
    first = json.dumps(api.page({}))
    api.fail("list", Fault(200, text=first), Fault(200, text=text))
    with Following(store) as following:
        following.wait_for_kind(Snapshot)
        assert following.kinds() == ["Lost", "Restored", "Snapshot"]
        assert following.of(Snapshot)[0].leases == tuple(map(make_lease, range(1, 6)))


@pytest.mark.parametrize("kind", ["ADDED", "MODIFIED", "DELETED"])
def test_an_event_that_lacks_its_node_is_no_change_of_any_and_brings_a_new_list(
    api: ApiServer, store: KubeStore, kind: str
) -> None:
    join(api, 1)
    lacking: tuple[Json, ...] = (
        {},
        {"metadata": {"name": "n0001"}},
        {"metadata": {"resourceVersion": "7"}},
    )
    for found in lacking:
        text = json.dumps({"type": kind, "object": found}) + "\n"
        api.fail("watch", Fault(200, text=text))
    with Following(store) as following:
        following.wait_for(lambda: len(following.of(Snapshot)) == 1 + len(lacking))
        assert following.events == [Snapshot((make_lease(1),))] * (1 + len(lacking))


def test_retry_after_is_heeded(api: ApiServer, store: KubeStore) -> None:
    api.fail("list", Fault(429, {"Retry-After": "1"}))
    with Following(store) as following:
        following.wait_for_kind(Lost)
        following.stop.wait(0.7)  # longer than any pause without it
        assert following.kinds() == ["Lost"]
        following.wait_for_kind(Snapshot)


def test_a_restored_backup_brings_a_snapshot(api: ApiServer, following: Following) -> None:
    join(api, 1)
    following.wait_for_kind(Changed)
    api.wait_for("streams", 1)
    api.restore_backup()
    join(api, 2)
    api.cut()
    settle(api, following)
    assert following.kinds()[-1] == "Snapshot"


@pytest.mark.parametrize(
    ("verb", "status", "words"),
    [("list", 403, "list nodes: HTTP 403 Forbidden: "), ("watch", 403, "watch nodes: HTTP 403")],
)
def test_a_refusal_names_verb_and_resource(
    api: ApiServer, store: KubeStore, *, verb: str, status: int, words: str
) -> None:
    assert status == 403
    api.forbidden.add((verb, "nodes"))
    with Following(store) as following:
        following.wait_for_kind(Lost)
        assert words in following.of(Lost)[0].reason
        api.forbidden.clear()
        join(api, 1)
        settle(api, following)
        assert following.kinds().count("Lost") == following.kinds().count("Restored") == 1


def test_a_silent_stream_is_made_anew_and_a_hung_server_noticed(
    api: ApiServer, options: KubeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "SILENCE", 0.5)
    with KubeStore(options) as store, Following(store) as following:
        api.wait_for("watch", 2)
        monkeypatch.setattr(kube_http, "CALL_TIMEOUT", 0.5)
        assert following.kinds() == ["Snapshot"]
        with api.hanging():
            following.wait_for_kind(Lost)
        join(api, 1)
        settle(api, following)
        assert following.kinds() == ["Snapshot", "Lost", "Restored", "Changed"]


@pytest.mark.parametrize("state", ["connected", "in an outage", "hung"])
@pytest.mark.parametrize("by", ["stop", "close"])
def test_stop_and_close_end_the_watch_at_once(
    api: ApiServer, store: KubeStore, following: Following, *, state: str, by: str
) -> None:
    api.wait_for("streams", 1)
    held_up: AbstractContextManager[None] = nullcontext()
    if state == "in an outage":
        api.stop()
        following.wait_for_kind(Lost)
    elif state == "hung":
        held_up = api.hanging()
    with held_up:
        if state == "hung":
            api.cut()
        if by == "stop":
            following.stop.set()
        else:
            store.close()
        following.thread.join(1)
        assert not following.thread.is_alive()
        assert following.kinds()[0] == "Snapshot"
        assert len(following.events) == 1 + (state == "in an outage")


def test_no_thread_is_left_behind(options: KubeOptions) -> None:
    before = set(threading.enumerate())
    with KubeStore(options) as store, Following(store):
        pass
    ours = {
        thread for thread in set(threading.enumerate()) - before if "Thread-" not in thread.name
    }
    assert not ours


def test_an_outage_costs_nothing_and_ends_in_restored(api: ApiServer, store: KubeStore) -> None:
    api.stop()
    with Following(store) as following:
        following.wait_for_kind(Lost)
        api.start()
        following.wait_for_kind(Snapshot)
        assert following.kinds() == ["Lost", "Restored", "Snapshot"]
        assert following.of(Restored)


def test_answers_and_lines_without_end_are_not_kept(
    api: ApiServer, options: KubeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_http, "MAX_ANSWER", 10_000)
    monkeypatch.setattr(kube_http, "MAX_LINE", 200_000)
    join(api, 1)
    api.fail("list", Fault(200, text="[" * 20_000))
    api.fail("watch", Fault(200, text="{" * 400_000 + "\n"))
    with KubeStore(options) as store, Following(store) as following:
        following.wait_for_kind(Snapshot)
        assert "list nodes: more than 10000 bytes" in following.of(Lost)[0].reason
        api.wait_for("streams", 1)
        join(api, 2)
        settle(api, following)
        assert following.kinds() == ["Lost", "Restored", "Snapshot", "Changed"]
