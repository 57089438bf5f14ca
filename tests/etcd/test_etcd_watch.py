"""Following leases and config through everything that happens to an etcd, against a real one."""

import resource
import threading
import time
from dataclasses import replace

import pytest
from etcd.bench import Bench, make_claim, make_lease
from etcd.following import Following
from kersey_control.events import Changed, Lost, Removed, Restored, Skipped, Snapshot
from kersey_control.lease import encode_lease, subnet_key
from kersey_control.netconfig import NetworkConfig
from kersey_control.subnets.etcd import EtcdStore
from testbed.waiting import wait_until


def test_snapshot_comes_first_then_each_change(bench: Bench) -> None:
    known, added = make_lease(1), make_lease(2)
    bench.put_lease(known)
    with EtcdStore(bench.options) as store, Following(store) as following:
        assert following.events == [Snapshot((known,))]
        bench.put_lease(added)
        moved = replace(known, public_ip=added.public_ip)
        bench.put_lease(moved)
        bench.server.delete(bench.key(added))
        following.wait_for_kind(Removed)
        assert following.events[1:] == [Changed(added), Changed(moved), Removed(added.subnet)]


def test_expired_lease_is_reported_as_removed(following: Following, bench: Bench) -> None:
    bench.put_lease(make_lease(1), seconds=1)
    following.wait_for_kind(Removed)
    assert following.events[1:] == [Changed(make_lease(1)), Removed(make_lease(1).subnet)]


def test_garbage_is_skipped_alone_in_snapshot_and_events(bench: Bench) -> None:
    bench.put_lease(make_lease(1))
    bench.server.put(bench.subnets + "garbage", "x")
    with EtcdStore(bench.options) as store, Following(store) as following:
        snapshot = following.of(Snapshot)[0]
        assert snapshot.leases == (make_lease(1),)
        assert [skipped.record for skipped in snapshot.skipped] == ["garbage"]
        bench.server.put(bench.subnets + "a10.5.1.0-24", "x")
        bench.server.put(bench.subnets + "10.5.9.0-24", '{"PublicIP": 7}')
        bench.server.put(bench.subnets + "\N{BLACK HEART SUIT}", "x")
        bench.put_lease(make_lease(2))
        following.wait_for_kind(Changed)
        names = [skipped.record for skipped in following.of(Skipped)]
        assert names == ["a10.5.1.0-24", "10.5.9.0-24", "\N{BLACK HEART SUIT}"]
        assert set(following.state) == {make_lease(1).subnet, make_lease(2).subnet}


def test_neighbouring_prefixes_are_not_watched(following: Following, bench: Bench) -> None:
    bench.server.put(bench.subnets.rstrip("/") + "0/10.5.7.0-24", "x")
    bench.server.put(bench.subnets.rstrip("/") + "-old", "x")
    bench.put_lease(make_lease(1))
    following.wait_for_kind(Changed)
    assert following.kinds() == ["Snapshot", "Changed"]


def test_kill_and_restart_with_writes_between_misses_nothing(
    own_following: Following, own_bench: Bench
) -> None:
    server, following = own_bench.server, own_following
    for number in (1, 2):
        own_bench.put_lease(make_lease(number))
    following.wait_for(lambda: len(following.state) == 2)
    server.kill()
    following.wait_for_kind(Lost)
    server.start()
    own_bench.put_lease(make_lease(3))
    server.delete(own_bench.key(make_lease(1)))
    following.wait_for(lambda: set(following.state) == {make_lease(2).subnet, make_lease(3).subnet})
    assert following.kinds().count("Lost") == following.kinds().count("Restored") == 1
    assert following.kinds().count("Snapshot") == 1


def test_writes_during_our_outage_alone_arrive_after_it(
    own_following: Following, own_bench: Bench
) -> None:
    """More revisions than etcd puts into one answer (1000)."""
    server = own_bench.server
    server.kill()
    own_following.wait_for_kind(Lost)
    leases = [make_lease(number) for number in range(200)]
    with server.elsewhere():
        for lease in leases:
            server.put(own_bench.key(lease), encode_lease(lease).decode())
        for _ in range(1000):
            server.put(own_bench.key(leases[0]), encode_lease(leases[0]).decode())
    server.start()
    own_following.wait_for(lambda: set(own_following.state) == {x.subnet for x in leases})


def test_compaction_during_an_outage_brings_a_full_snapshot(
    own_following: Following, own_bench: Bench
) -> None:
    server, following = own_bench.server, own_following
    own_bench.put_lease(make_lease(1))
    following.wait_for_kind(Changed)
    server.kill()
    following.wait_for_kind(Lost)
    with server.elsewhere():  # where the watch cannot come back too early
        server.delete(own_bench.key(make_lease(1)))
        own_bench.put_lease(make_lease(2))
        server.compact()
    server.start()
    following.wait_for(lambda: len(following.of(Snapshot)) == 2)
    assert following.kinds()[-2:] == ["Restored", "Snapshot"]
    assert following.events[-1] == Snapshot((make_lease(2),))


def test_etcd_made_anew_with_a_lower_revision_brings_a_snapshot(
    own_following: Following, own_bench: Bench
) -> None:
    for number in range(5):
        own_bench.put_lease(make_lease(number))
    own_following.wait_for(lambda: len(own_following.state) == 5)
    own_bench.server.kill()
    own_bench.server.wipe()
    own_bench.server.start()
    own_bench.put_lease(make_lease(7))
    own_following.wait_for(lambda: set(own_following.state) == {make_lease(7).subnet})
    assert len(own_following.of(Snapshot)) >= 2


def test_hung_server_is_noticed_and_its_return_too(
    own_following: Following, own_bench: Bench
) -> None:
    own_bench.server.freeze()
    try:
        own_following.wait_for_kind(Lost, seconds=11)
    finally:
        own_bench.server.thaw()
    own_following.wait_for_kind(Restored)
    own_bench.put_lease(make_lease(1))
    own_following.wait_for_kind(Changed)


def test_store_that_is_away_from_the_start_is_reported_once_and_then_listed(
    own_bench: Bench,
) -> None:
    own_bench.put_lease(make_lease(1))
    own_bench.server.kill()
    with EtcdStore(own_bench.options) as store, Following(store) as following:
        following.wait_for_kind(Lost)
        before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.monotonic()
        threading.Event().wait(2)  # the span over which CPU time is measured
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert used / (time.monotonic() - started) < 0.05
        own_bench.server.start()
        following.wait_for_kind(Snapshot)
        assert following.kinds() == ["Lost", "Restored", "Snapshot"]


@pytest.mark.parametrize("is_away", [False, True], ids=["connected", "in an outage"])
def test_stop_ends_the_watch_at_once(
    own_following: Following, own_bench: Bench, *, is_away: bool
) -> None:
    if is_away:
        own_bench.server.kill()
        own_following.wait_for_kind(Lost)
    own_following.stop.set()
    own_following.thread.join(0.5)
    assert not own_following.thread.is_alive()


def test_close_ends_everything_in_silence(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.server.put(bench.config_key, "{}")
    threads = set(threading.enumerate())
    store = EtcdStore(bench.options)
    with Following(store) as following:
        config = threading.Thread(target=lambda: list(store.watch_config(threading.Event())))
        config.start()
        wait_until(lambda: store._last_config is not None, timeout=5, what="config read")
        store.close()
        following.thread.join(0.5)
        config.join(0.5)
    assert following.kinds() == ["Snapshot"]
    ours = {"etcd-watch", config.name, following.thread.name}
    left = [thread.name for thread in set(threading.enumerate()) - threads]
    assert ours.isdisjoint(left)
    assert capfd.readouterr() == ("", "")


def test_thirty_thousand_leases_are_one_consistent_snapshot(own_bench: Bench) -> None:
    """Every page boundary is crossed while a writer adds keys behind and before it."""
    pairs = [
        (f"{own_bench.subnets}10.{x >> 8 & 255}.{x & 255}.0-24", '{"PublicIP":"198.18.0.1"}')
        for x in range(30_000)
    ]
    own_bench.server.put_many(pairs)
    started, done = threading.Event(), threading.Event()

    def write_pairs() -> None:
        number = 0
        while not done.is_set():
            # One transaction, one key at each end of the key space: a snapshot has both or none.
            keys = (f"10.0.{number % 256}.0-25", f"10.99.{number % 256}.0-25")
            own_bench.server.put_many([(own_bench.subnets + key, "{}") for key in keys])
            started.set()
            number += 1

    writer = threading.Thread(target=write_pairs)
    writer.start()
    assert started.wait(10)
    try:
        for _ in range(3):
            with EtcdStore(own_bench.options) as store, Following(store) as following:
                snapshot = following.of(Snapshot)[0]
                extra = [x.subnet for x in snapshot.leases if x.subnet.prefixlen == 25]
                low = {x for x in map(str, extra) if x.startswith("10.0.")}
                high = {x for x in map(str, extra) if x.startswith("10.99.")}
                assert len(snapshot.leases) == 30_000 + len(extra)
                assert {x.replace("10.0.", "10.99.", 1) for x in low} == high
                assert extra
    finally:
        done.set()
        writer.join()


def test_config_changes_are_seen_and_a_deletion_is_silent(store: EtcdStore, bench: Bench) -> None:
    bench.server.put(bench.config_key, "1")
    assert store.read_config() == b"1"
    bench.server.put(bench.config_key, "2")  # between the read and the watch
    stop = threading.Event()
    seen: list[bytes] = []
    # A list grows while it is extended, which is what lets us see each text as it comes.
    thread = threading.Thread(target=lambda: seen.extend(store.watch_config(stop)))
    thread.start()
    wait_until(lambda: seen == [b"2"], timeout=5, what="the change between")
    bench.server.put(bench.config_key, "2")
    bench.server.delete(bench.config_key)
    bench.server.put(bench.config_key, "3")
    wait_until(lambda: seen == [b"2", b"3"], timeout=5, what="the next change")
    stop.set()
    thread.join(0.5)
    assert not thread.is_alive()


def test_renewals_run_while_a_watch_is_open_and_are_seen(
    following: Following, bench: Bench, config: NetworkConfig
) -> None:
    store = following._store
    own = store.acquire(make_claim(), config)
    renewed = store.renew(own, make_claim(backend_data=b"{}"))
    following.wait_for(lambda: len(following.of(Changed)) == 2)
    assert following.events[1:] == [Changed(own.lease), Changed(renewed.lease)]
    assert bench.server.keys(bench.subnets) == [bench.subnets + subnet_key(own.lease.subnet)]
