"""Fixtures: a real etcd for the session, one of its own for tests that hurt it, stores, watches.

Each test uses a key prefix of its own, so that the shared server needs no cleaning.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd.bench import Bench
from etcd.etcd_server import EtcdServer
from etcd.following import Following
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.subnets.etcd import EtcdStore

_numbers = itertools.count()
CONFIG = b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"/test{next(_numbers)}/network"


@pytest.fixture
def config() -> NetworkConfig:
    return parse_network_config(CONFIG)


@pytest.fixture
def bench(shared_etcd: EtcdServer, prefix: str) -> Bench:
    return Bench(shared_etcd, prefix)


@pytest.fixture
def own_bench(own_etcd: EtcdServer, prefix: str) -> Bench:
    return Bench(own_etcd, prefix)


@pytest.fixture
def store(bench: Bench) -> Iterator[EtcdStore]:
    with EtcdStore(bench.options) as store:
        yield store


@pytest.fixture
def following(bench: Bench) -> Iterator[Following]:
    with EtcdStore(bench.options) as store, Following(store) as following:
        yield following


@pytest.fixture
def own_following(own_bench: Bench) -> Iterator[Following]:
    with EtcdStore(own_bench.options) as store, Following(store) as following:
        yield following
