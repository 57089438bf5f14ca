"""Answers that say nothing, and answers that are lost: what the store makes of them."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from etcd.bench import Bench, make_claim, make_lease
from etcd.following import Following
from etcd.middleman import Middleman
from kersey_control.errors import StoreUnavailableError
from kersey_control.netconfig import NetworkConfig
from kersey_control.subnets.etcd import EtcdStore
from kersey_control.subnets.etcdrpc import rpc_pb2

HEADER = rpc_pb2.ResponseHeader(cluster_id=1, revision=7)
NO_LISTS = {
    "nothing": b"",
    "no revision": rpc_pb2.RangeResponse(kvs=[rpc_pb2.KeyValue(key=b"x")]).SerializeToString(),
    "more of nothing": rpc_pb2.RangeResponse(header=HEADER, more=True).SerializeToString(),
}


@pytest.fixture
def between(bench: Bench) -> Iterator[Middleman]:
    with Middleman(bench.server) as between:
        yield between


@pytest.fixture
def store(bench: Bench, between: Middleman) -> Iterator[EtcdStore]:
    with EtcdStore(replace(bench.options, endpoints=(between.url,))) as store:
        yield store


@pytest.mark.parametrize("answer", NO_LISTS.values(), ids=NO_LISTS)
def test_an_empty_answer_is_an_outage_and_no_empty_network(
    bench: Bench, between: Middleman, store: EtcdStore, answer: bytes
) -> None:
    bench.put_lease(make_lease(1))
    between.answers["Range"] = answer
    for ask in (store.list_leases, store.read_config):
        with pytest.raises(StoreUnavailableError, match="the answer about keys is empty"):
            ask()
    with Following(store) as following:
        assert following.kinds() == ["Lost"]
    del between.answers["Range"]
    assert [each.lease for each in store.list_leases().leases] == [make_lease(1)]


@pytest.mark.parametrize("method", ["LeaseGrant", "Txn"])
def test_an_empty_answer_to_a_claim_is_an_outage_and_makes_no_reservation(
    bench: Bench, between: Middleman, store: EtcdStore, config: NetworkConfig, method: str
) -> None:
    between.answers[method] = b""
    with pytest.raises(StoreUnavailableError, match=r"the answer about .* is empty"):
        store.acquire(make_claim(), config)
    assert bench.server.keys(bench.subnets) == []
    del between.answers[method]
    assert bench.etcd_lease_of(store.acquire(make_claim(), config).lease)


def test_an_empty_answer_about_an_etcd_lease_is_no_reason_to_revoke_it(
    bench: Bench, between: Middleman, store: EtcdStore, config: NetworkConfig
) -> None:
    etcd_lease = bench.put_lease(make_lease(7))
    bench.server.put(bench.subnets + "bystander", "x", lease=etcd_lease)
    between.answers["LeaseTimeToLive"] = b""
    store.acquire(make_claim(7), config)
    assert bench.subnets + "bystander" in bench.server.keys(bench.subnets)


def test_a_write_without_an_answer_may_still_come_and_keeps_its_etcd_lease(
    bench: Bench, between: Middleman, store: EtcdStore, config: NetworkConfig
) -> None:
    between.answers["Txn"] = None
    with pytest.raises(StoreUnavailableError, match="no answer"):
        store.acquire(make_claim(), config)
    (come,) = between.kept_back
    come()
    del between.answers["Txn"]
    (key,) = bench.server.keys(bench.subnets)
    assert store.acquire(make_claim(), config).lease.node_id == make_claim().node_id
    assert bench.server.keys(bench.subnets) == [key]
