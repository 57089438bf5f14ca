"""The first packet to a node waits for the answer to ARP, and arrives."""

from itertools import count

import pytest
from backend_cases import BACKENDS, DATAPATHS
from testbed import Backend, Cluster, udp_probe, wait_acquainted

_numbers = count(1)


@pytest.mark.parametrize("datapath", DATAPATHS)
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_the_first_packet_to_an_unknown_neighbour_arrives(backend: Backend, datapath: str) -> None:
    with Cluster(prefix=f"kf{next(_numbers)}-") as network:
        network.start(
            nodes=2, pods=1, config=backend.network_config, options=[f"--datapath={datapath}"]
        )
        wait_acquainted(network)
        one, two = network.pods
        one.node.namespace.ip(f"neigh flush to {two.node.address} dev eth0")
        with udp_probe(one.namespace, two.namespace, two.address, rate=100) as probe:
            probe.wait_flowing(10)
        report = probe.stop()
        assert report.missing == ()
