"""A testbed whose nodes are Kubernetes' and keep their leases in an API server's node objects.

The API server answers at the address where etcd would; its cluster outlives its outages.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from kube.api_server import PREFIX, ApiServer
from testbed import Cluster, Node
from testbed.addresses import ETCD
from testbed.cluster import DEFAULT_CONFIG


class KubeNetwork:
    """Nodes, daemons and an API server that knows them; nothing is started at first."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        config: Mapping[str, object] = DEFAULT_CONFIG,
        *options: str,
    ) -> None:
        self.cluster = cluster
        self.api = ApiServer(host=str(ETCD))
        self.config_file = folder / "net-conf.json"
        self.write_config(config)
        self._options = options

    def write_config(self, config: Mapping[str, object]) -> None:
        """Replace the network config as a mounted ConfigMap is replaced: whole."""
        new = self.config_file.with_suffix(".new")
        new.write_text(json.dumps(config))
        new.rename(self.config_file)

    def serve(self) -> None:
        """Have the API server answer, where it did before if it did."""
        self.cluster.etcd.namespace.call(self.api.start)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Have nobody listen at the API server's address; every connection ends."""
        self.api.stop()
        yield
        self.serve()

    def add_node(self, cidr: str, **annotations: str) -> Node:
        """Return a new node that the API server knows, with a daemon that is not started yet.

        `annotations` are flannel's, without prefix and with `_` for `-`.
        """
        node = self.cluster.add_node()
        self.api.put(node.name, cidr=cidr, annotations=keyed(annotations))
        return node

    def start(self, node: Node, *further: str) -> None:
        """Start the node's daemon, with `further` options behind those of all nodes."""
        url, config = f"--kube-api-url={self.api.url}", f"--net-config-path={self.config_file}"
        node.daemon.start("--kube-subnet-mgr", url, config, *self._options, *further)

    def up(self, *cidrs: str) -> tuple[Node, ...]:
        """Return new nodes with these podCIDRs, each ready and with one pod."""
        nodes = tuple(self.add_node(cidr) for cidr in cidrs)
        for node in nodes:
            self.start(node)
        for node in nodes:
            node.daemon.wait_ready()
            node.add_pod()
        return nodes

    def says(self, node: Node, annotation: str) -> str | None:
        """Return one of flannel's annotations of a node, None where it is missing."""
        annotations = self.api.nodes[node.name]["metadata"].get("annotations", {})
        found: str | None = annotations.get(PREFIX + annotation)
        return found

    def is_available(self, node: Node) -> bool:
        """Return whether the node's condition NetworkUnavailable is False."""
        conditions = self.api.nodes[node.name]["status"]["conditions"]
        return any(
            (each["type"], each["status"]) == ("NetworkUnavailable", "False") for each in conditions
        )


def keyed(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return annotations by their full keys; given without prefix and with `_` for `-`."""
    return {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}


def foreign_annotations(address: IPv4Address, mac: str, vni: int = 1) -> dict[str, str]:
    """Return what flannel's daemon writes to a node, in the form that `add_node` takes."""
    return {
        "backend_data": f'{{"VNI":{vni},"VtepMAC":"{mac}"}}',
        "backend_type": "vxlan",
        "kube_subnet_manager": "true",
        "public_ip": str(address),
    }
