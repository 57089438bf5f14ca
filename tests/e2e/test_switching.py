"""From one backend to another by the network config and a restart: nothing of the former stays."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
from backend_cases import BACKENDS, VARIANTS
from overlay_view import NodeState, difference, node_state
from testbed import (
    Backend,
    Cluster,
    clean,
    ordered_pairs,
    reachability,
    wait_acquainted,
)
from testbed.cluster import CONFIG_KEY

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Station:
    """A network config on the way from backend to backend."""

    backend: Backend
    more: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        more = "".join(f" {name} {value}" for name, value in self.more.items())
        return f"{self.backend}{more}"

    @property
    def network_config(self) -> dict[str, object]:
        config = self.backend.network_config
        backend = config["Backend"]
        assert isinstance(backend, dict)
        return {**config, "Backend": {**backend, **self.more}}


_PLAIN = [Station(backend) for backend in BACKENDS if not backend.direct_routing]
STATIONS = {
    "bpf": [
        *(Station(backend) for backend in BACKENDS),
        *(Station(Backend("vxlan"), more) for more in VARIANTS),
    ],
    "netlink": _PLAIN,
}


def round_trip(datapath: str) -> list[tuple[str, Station, Station]]:
    """Return the ways on which every station is left once and come to once."""
    stops = STATIONS[datapath]
    return [
        (datapath, stop, next_) for stop, next_ in zip(stops, [*stops[1:], stops[0]], strict=True)
    ]


WAYS = [way for datapath in STATIONS for way in round_trip(datapath)]


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Give the tests two nodes with a pod each, on one link."""
    with Cluster(prefix=f"ks{next(_numbers)}-") as cluster:
        cluster.start(nodes=2, pods=1, options=[f"--datapath={request.param}"])
        wait_acquainted(cluster)
        yield cluster


def go_to(network: Cluster, station: Station) -> None:
    """Have every daemon work by that config; where they do already, leave them alone."""
    config = json.dumps(station.network_config)
    if network.etcd.get(CONFIG_KEY) == config:
        return
    network.etcd.put(CONFIG_KEY, config)
    for node in network.nodes:
        node.daemon.restart()
    wait_acquainted(network)


def state_at_work(network: Cluster) -> list[NodeState]:
    """Return the nodes' state once every pod has answered every pod."""
    results = reachability(ordered_pairs(network.pods))
    assert [result for result in results if result.rtt_ms is None] == []
    return [node_state(node) for node in network.nodes]


def start_afresh(network: Cluster) -> None:
    for node in network.nodes:
        node.daemon.stop()
        clean(node, network)
    for node in network.nodes:
        node.daemon.restart()
    wait_acquainted(network)


@pytest.mark.parametrize(("network", "former", "next_"), WAYS, indirect=["network"], ids=str)
def test_a_switch_leaves_what_a_fresh_start_would_make(
    network: Cluster, former: Station, next_: Station
) -> None:
    go_to(network, former)
    state_at_work(network)
    go_to(network, next_)
    switched = state_at_work(network)
    start_afresh(network)
    fresh = state_at_work(network)
    assert [difference(*states) for states in zip(switched, fresh, strict=True)] == [{}, {}]
