"""Fixtures: an API server with our own node in it, a store that uses it, and its watch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd.following import Following
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.subnets.kube import KubeOptions, KubeStore
from kube.api_server import ApiServer
from kube.members import CONFIG, NODE, cidr


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.put(NODE, cidr=cidr(200), annotations={"other.example/key": "kept"})
        yield server


@pytest.fixture
def config() -> NetworkConfig:
    return parse_network_config(CONFIG)


@pytest.fixture
def options(api: ApiServer, tmp_path: Path) -> KubeOptions:
    path = tmp_path / "net-conf.json"
    path.write_bytes(CONFIG)
    return KubeOptions(node=NODE, api_url=api.url, net_config_path=path)


@pytest.fixture
def store(options: KubeOptions) -> Iterator[KubeStore]:
    with KubeStore(options) as store:
        yield store


@pytest.fixture
def following(store: KubeStore) -> Iterator[Following]:
    with Following(store) as following:
        yield following
