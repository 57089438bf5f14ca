"""Testbed nodes whose pods a container runtime adds, by the daemon's own configuration."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from threading import Thread

import pytest
from cni_runtime import PLUGINS, CniRuntime, Container
from fast_view import fast_path_of, pins_of
from overlay_view import ip_json
from testbed import Cluster, Namespace, Node

_PLUGIN_NAMES = ("bridge", "ptp", "host-local", "portmap", "bandwidth")
_TIMEOUT = 5.0


@dataclass
class CniNode:
    """A node with its runtime; pods by name. `outside` is a host that is no node."""

    node: Node
    runtime: CniRuntime
    outside: Namespace
    options: tuple[str, ...]
    pods: dict[str, Container] = field(default_factory=dict)

    def add(self, name: str, **runtime_config: object) -> Container:
        """Start a pod as a kubelet does: a namespace, then ADD."""
        namespace = Namespace(self.node.prefix + name)
        try:
            pod = self.runtime.add(name, namespace, **runtime_config)
        except BaseException:
            namespace.close()
            raise
        self.pods[name] = pod
        return pod

    def remove(self, pod: Container) -> None:
        """End a pod: DEL, then its namespace goes."""
        del self.pods[pod.name]
        self.runtime.delete(pod)
        pod.namespace.close()

    def restart(self, *further: str) -> None:
        """Restart the daemon with `further` options besides those of its start."""
        self.node.daemon.restart(*self.options, *further)
        self.node.daemon.wait_ready()

    def close(self) -> None:
        """End all pods."""
        for pod in list(self.pods.values()):
            self.remove(pod)

    @property
    def veths(self) -> set[str]:
        """Return the names of the node's veths, the uplink aside."""
        found = {str(link["ifname"]) for link in ip_json(self.node, "link", "show", "type", "veth")}
        return found - {"eth0"}

    @property
    def fast_ports(self) -> frozenset[int]:
        """Return the pod ports, by ifindex, that the fast path works for."""
        with fast_path_of(self.node) as datapath:
            return datapath.pod_ports()

    @property
    def dead_links(self) -> set[str]:
        """Return the pinned links whose device is gone."""
        living = {str(link["ifindex"]) for link in ip_json(self.node, "link", "show")}
        pinned = {path.name for path in (pins_of(self.node) / "links").iterdir()}
        return {name for name in pinned if name.partition("-")[0] not in living}

    def ifindex_of(self, pod: Container) -> int:
        """Return the ifindex of the pod's veth in the node."""
        return int(ip_json(self.node, "link", "show", pod.port)[0]["ifindex"])


@contextmanager
def cni_nodes(cluster: Cluster, *options: str) -> Iterator[tuple[CniNode, CniNode]]:
    """Start two nodes that write a CNI configuration; end their pods before them."""
    if not all((PLUGINS / name).exists() for name in _PLUGIN_NAMES):
        pytest.skip(f"missing: {', '.join(_PLUGIN_NAMES)} in {PLUGINS}")
    cluster.start_etcd()
    one, two = (_start_node(cluster, *options) for _ in range(2))
    with ExitStack() as stack:
        for each in (one, two):
            each.node.daemon.wait_ready()
            stack.callback(each.close)
        yield one, two


def _start_node(cluster: Cluster, *options: str) -> CniNode:
    node = cluster.add_node()
    conf_dir = node.state_dir / "net.d"
    every = ("--ip-masq", "--datapath=bpf", f"--cni-conf-dir={conf_dir}", *options)
    node.daemon.start(*every)
    runtime = CniRuntime(node.namespace, conf_dir=conf_dir, state=node.state_dir / "cni")
    return CniNode(node, runtime, cluster.switch, every)


@contextmanager
def names_told(pod: Container, port: int) -> Iterator[None]:
    """Have the pod tell its name and its client's address to every TCP client."""
    listener = pod.namespace.call(lambda: socket.create_server(("", port)))

    def serve() -> None:
        while True:
            try:
                connection, (client, _) = listener.accept()
            except OSError:  # shut down
                return
            with connection:
                connection.sendall(f"{pod.name} {client}".encode())

    server = Thread(target=serve, daemon=True)
    server.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
        listener.close()


def name_told(client: Namespace, address: IPv4Address, port: int) -> tuple[str, str]:
    """Return which pod answers at an address, and which address it saw. Raises OSError."""

    def ask() -> bytes:
        with socket.create_connection((str(address), port), timeout=_TIMEOUT) as connection:
            return connection.recv(200)

    name, _, seen = client.call(ask).decode().partition(" ")
    return name, seen
