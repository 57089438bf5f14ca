"""The whole testbed: a switch, an etcd, nodes and pods, made in order and removed in reverse."""

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from testbed.addresses import (
    ETCD,
    FIRST_LINK,
    LARGEST_LINK,
    LARGEST_NODE_INDEX,
    OUTSIDE,
    Link,
)
from testbed.errors import ClusterError
from testbed.etcd import Etcd
from testbed.namespace import Namespace
from testbed.node import Node, Pod, connect
from testbed.process import Process

CONFIG_KEY = "/coreos.com/network/config"
SUBNETS_PREFIX = "/coreos.com/network/subnets/"
DEFAULT_CONFIG: Mapping[str, object] = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


class Cluster:
    """A testbed; two with different prefixes do not see each other.

    The switch joins all nodes. On a second link, a bridge of its own there, the switch also is the
    router between the links; it knows no pod addresses, as routers between nodes do not.

    `kerseyd` is the daemon's program, by default the one beside this Python. `state_dir` is made
    and, on close, removed with all logs and data; by default it is a new temporary directory.
    """

    def __init__(
        self,
        *,
        prefix: str = "kersey-",
        kerseyd: Path | None = None,
        state_dir: Path | None = None,
        mtu: int = 1500,
    ) -> None:
        self.prefix = prefix
        self.kerseyd = kerseyd or Path(sys.executable).with_name("kerseyd")
        self.kersey = self.kerseyd.with_name("kersey")
        self.nodes: list[Node] = []
        self._links: set[Link] = set()
        self._mtu = mtu
        self._stack = contextlib.ExitStack()
        try:
            self.state_dir = self._make_state_dir(state_dir)
            self.switch = self._make_switch()
            self.etcd = self._make_etcd()
        except BaseException:
            self.close()
            raise

    def _make_state_dir(self, wanted: Path | None) -> Path:
        if wanted is None:
            made = Path(tempfile.mkdtemp(prefix=f"{self.prefix}testbed-"))
        else:
            wanted.mkdir(parents=True)
            made = wanted
        self._stack.callback(shutil.rmtree, made)
        return made

    def _make_switch(self) -> Namespace:
        switch = self._stack.enter_context(Namespace(f"{self.prefix}switch"))
        switch.ip(f"addr add {OUTSIDE}/32 dev lo")
        self._add_link(switch, FIRST_LINK)
        return switch

    def _add_link(self, switch: Namespace, link: Link) -> None:
        # With a MAC of its own: it would else take the lowest of its ports, and be another host to
        # all who know it whenever a node comes.
        mac = f"0e:00:c6:12:{link.number >> 8:02x}:{link.number & 0xFF:02x}"
        switch.ip(
            f"link add {link.bridge} address {mac} mtu {self._mtu} type bridge",
            f"link set {link.bridge} up",
            f"addr add {link.gateway}/{link.network.prefixlen} dev {link.bridge}",
        )
        # Nodes that are told by a test to go through the router must not be told otherwise by it.
        switch.sysctl(f"net.ipv4.conf.{link.bridge}.send_redirects", 0)
        self._links.add(link)

    def _ensure_link(self, link: Link) -> None:
        if link in self._links:
            return
        if link.number not in range(1, LARGEST_LINK + 1):
            raise ClusterError(f"link: got {link.number}, expected 1 to {LARGEST_LINK}")
        self._add_link(self.switch, link)
        self.forward_between_links()

    def forward_between_links(self) -> None:
        """Have the switch be a router, as it is from the second link on."""
        self.switch.sysctl("net.ipv4.conf.all.send_redirects", 0)
        self.switch.sysctl("net.ipv4.ip_forward", 1)

    def _make_etcd(self) -> Etcd:
        namespace = self._stack.enter_context(Namespace(f"{self.prefix}etcd"))
        connect(namespace, self.switch, link=FIRST_LINK, port="etcd", address=ETCD, mtu=self._mtu)
        namespace.ip(f"route add default via {FIRST_LINK.gateway}")
        etcd = Etcd(namespace, address=ETCD, state_dir=self.state_dir)
        self._stack.callback(etcd.stop)
        return etcd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop and remove everything, newest first; a failure is raised once all is done."""
        self._stack.close()

    def detach(self) -> None:
        """Leave everything running when this object goes."""
        self._stack.pop_all()

    @property
    def pods(self) -> list[Pod]:
        """All pods, by node."""
        return [pod for node in self.nodes for pod in node.pods]

    @property
    def namespaces(self) -> list[Namespace]:
        """All namespaces, in the order in which they may be removed."""
        pods = [pod.namespace for pod in self.pods]
        nodes = [node.namespace for node in self.nodes]
        return [*pods, *nodes, self.etcd.namespace, self.switch]

    @property
    def processes(self) -> list[Process]:
        """All running programs, daemons before the etcd that they use."""
        daemons = [node.daemon for node in self.nodes if node.has_daemon]
        running = [daemon.process for daemon in daemons if daemon.is_running]
        return [*running, *([self.etcd.process] if self.etcd.is_running else [])]

    def start_etcd(self, config: Mapping[str, object] = DEFAULT_CONFIG) -> None:
        """Start etcd and write `config` as the network's configuration."""
        self.etcd.start()
        self.etcd.put(CONFIG_KEY, json.dumps(config))

    def add_node(self, *, link: int = 1) -> Node:
        """Return a new node on that link, with a daemon that is not started yet."""
        index = len(self.nodes) + 1
        if index > LARGEST_NODE_INDEX:
            raise ClusterError(f"the underlay has room for {LARGEST_NODE_INDEX} nodes")
        self._ensure_link(Link(link))
        state_dir = self.state_dir / f"node{index}"
        state_dir.mkdir()
        node = Node(
            prefix=self.prefix,
            index=index,
            switch=self.switch,
            mtu=self._mtu,
            state_dir=state_dir,
            link=Link(link),
        )
        self._stack.callback(node.close)
        node.install_daemon(program=self.kerseyd, etcd_endpoint=self.etcd.endpoint)
        self.nodes.append(node)
        return node

    def start(
        self,
        *,
        nodes: int,
        pods: int,
        config: Mapping[str, object] = DEFAULT_CONFIG,
        options: Sequence[str] = (),
        links: int = 1,
    ) -> None:
        """Bring up etcd, `nodes` nodes with running daemons, and `pods` pods on each.

        Nodes take turns on the links: of three on two links, the first and the last share one.
        Daemons start at the same time; each must have written its subnet.env. Whether routes to
        all peers are there already is for the caller to wait for.
        """
        self.start_etcd(config)
        added = [self.add_node(link=1 + turn % links) for turn in range(nodes)]
        for node in added:
            node.daemon.start(*options)
        for node in added:
            for _ in range(pods):
                node.add_pod()
