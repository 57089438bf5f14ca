"""The default route decides about the uplink, and its change alone is heard."""

import json

from overlay_view import lease_key, ready
from testbed import Cluster, ping, wait_until

SECOND = "198.18.0.77"


def test_a_default_route_by_another_device_is_followed(cluster: Cluster) -> None:
    one, two = ready(cluster, "--datapath=netlink", nodes=2).nodes
    one.namespace.ip(
        f"link add eth1 type veth peer name second netns {cluster.switch.name}",
        f"addr add {SECOND}/24 dev eth1",
        "link set eth1 up",
    )
    cluster.switch.ip("link set second master br0 up")
    one.namespace.ip(f"route replace default via {one.link.gateway} dev eth1")
    wait_until(
        lambda: json.loads(cluster.etcd.get(lease_key(one)) or "{}").get("PublicIP") == SECOND,
        timeout=15,  # far from the audit's 60 s
        what="the lease names the second device's address",
    )
    assert ping(two.pods[0].namespace, one.pods[0].address, timeout=10) is not None
