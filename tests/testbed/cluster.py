"""The whole testbed: a switch, an etcd, nodes and pods, made in order and removed in reverse."""

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from testbed.addresses import ETCD, LARGEST_NODE_INDEX, OUTSIDE, SWITCH, UNDERLAY
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
        switch.ip(
            f"link add br0 mtu {self._mtu} type bridge",
            "link set br0 up",
            f"addr add {SWITCH}/{UNDERLAY.prefixlen} dev br0",
            f"addr add {OUTSIDE}/32 dev lo",
        )
        return switch

    def _make_etcd(self) -> Etcd:
        namespace = self._stack.enter_context(Namespace(f"{self.prefix}etcd"))
        connect(namespace, self.switch, port="etcd", address=ETCD, mtu=self._mtu)
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

    def add_node(self) -> Node:
        """Return a new node on the underlay, with a daemon that is not started yet."""
        index = len(self.nodes) + 1
        if index > LARGEST_NODE_INDEX:
            raise ClusterError(f"the underlay has room for {LARGEST_NODE_INDEX} nodes")
        state_dir = self.state_dir / f"node{index}"
        state_dir.mkdir()
        node = Node(
            prefix=self.prefix,
            index=index,
            switch=self.switch,
            mtu=self._mtu,
            state_dir=state_dir,
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
    ) -> None:
        """Bring up etcd, `nodes` nodes with running daemons, and `pods` pods on each.

        Daemons start at the same time; each must have written its subnet.env. Whether routes to
        all peers are there already is for the caller to wait for.
        """
        self.start_etcd(config)
        added = [self.add_node() for _ in range(nodes)]
        for node in added:
            node.daemon.start(*options)
        for node in added:
            for _ in range(pods):
                node.add_pod()
