"""Another Network in the config and a restart: nothing of the former network stays."""

import json
from itertools import count

import pytest
from backend_cases import BACKENDS
from overlay_view import difference, node_state
from testbed import Backend, Cluster, Node, clean, ping, wait_acquainted
from testbed.cluster import CONFIG_KEY

_numbers = count(1)
_NETWORK = "10.99.0.0/16"


def restart_afresh(network: Cluster, node: Node) -> None:
    node.daemon.stop()
    clean(node, network)
    node.daemon.restart()


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_a_new_network_leaves_nothing_of_the_former(backend: Backend) -> None:
    options = ["--ip-masq", "--ip-blackhole-route"]
    config = backend.network_config
    with Cluster(prefix=f"kn{next(_numbers)}-") as network:
        network.start(nodes=2, pods=0, config=config, options=options)
        wait_acquainted(network)
        network.etcd.put(CONFIG_KEY, json.dumps({**config, "Network": _NETWORK}))
        for node in network.nodes:
            node.daemon.restart()
        wait_acquainted(network)
        one, two = network.nodes
        pod = two.add_pod()
        assert ping(one.namespace, pod.address) is not None  # from an address that is still ours
        changed = node_state(one)
        restart_afresh(network, one)
        wait_acquainted(network)
        assert difference(changed, node_state(one)) == {}
