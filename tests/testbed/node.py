"""A node and its pods, wired as a CNI plugin wires them. Addresses come from the node's subnet."""

import contextlib
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Self

from testbed.addresses import FIRST_LINK, Link, node_address
from testbed.daemon import Daemon
from testbed.errors import ClusterError
from testbed.namespace import Namespace, run_here

_PTP_GATEWAY = IPv4Address("169.254.1.1")


@dataclass(frozen=True, slots=True)
class PodSubnet:
    """What a CNI plugin needs to know: the gateway with its prefix length, and the pods' MTU."""

    gateway: IPv4Interface
    mtu: int

    @classmethod
    def from_env(cls, text: str) -> Self:
        """Read subnet.env as flannel's CNI plugin does."""
        lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return cls(IPv4Interface(lines["FLANNEL_SUBNET"]), int(lines["FLANNEL_MTU"]))


class Pod:
    """A pod: a namespace whose `eth0` ends at `port` in its node."""

    def __init__(
        self, node: "Node", *, name: str, port: str, address: IPv4Address, routed: bool
    ) -> None:
        self.node = node
        self.name = name
        self.port = port
        self.address = address
        self.routed = routed
        self.namespace = Namespace(node.prefix + name)
        try:
            gateway = self._wire_routed() if routed else self._wire_bridged()
            self._announce(gateway)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Pod {self.name} {self.address}>"

    def _announce(self, gateway: IPv4Address) -> None:
        # As a CNI plugin's gratuitous ARP: the node may still know a dead pod's MAC for it.
        self.namespace.run("ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", "5", str(gateway))

    def _wire_bridged(self) -> IPv4Address:
        subnet = self.node.pod_subnet()
        self._make_veth(subnet.mtu)
        self.node.namespace.ip(f"link set {self.port} master cni0 up")
        self.namespace.ip(
            f"addr add {self.address}/{subnet.gateway.network.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add default via {subnet.gateway.ip}",
        )
        return subnet.gateway.ip

    def _wire_routed(self) -> IPv4Address:
        self._make_veth(self.node.pod_subnet().mtu)
        # The gateway address stands on each port, link-local in scope, so that it answers ARP but
        # is never chosen as a source; hence the route's own `src`.
        self.node.namespace.ip(
            f"link set {self.port} up",
            f"addr add {_PTP_GATEWAY}/32 dev {self.port} scope link",
            f"route add {self.address}/32 dev {self.port} src {self.node.address}",
        )
        self.namespace.ip(
            f"addr add {self.address}/32 dev eth0",
            "link set eth0 up",
            f"route add default via {_PTP_GATEWAY} dev eth0 onlink",
        )
        return _PTP_GATEWAY

    def _make_veth(self, mtu: int) -> None:
        self.node.namespace.ip(
            f"link add {self.port} mtu {mtu} type veth"
            f" peer name eth0 mtu {mtu} netns {self.namespace.name}"
        )

    def close(self) -> None:
        """Delete the pod with its veth, both ends at once; twice does no harm."""
        # The kernel frees a namespace later than it frees the name; the port must go now, because
        # the next pod may take the same address.
        if self.namespace.exists and self.node.has_link(self.port):
            self.node.namespace.ip(f"link del {self.port}")
        self.namespace.close()


class Node:
    """A node: uplink `eth0`, bridge `cni0` from the first bridged pod on, and perhaps a daemon."""

    def __init__(
        self,
        *,
        prefix: str,
        index: int,
        switch: Namespace,
        mtu: int,
        state_dir: Path,
        link: Link = FIRST_LINK,
    ) -> None:
        self.prefix = prefix
        self.index = index
        self.name = f"node{index}"
        self.link = link
        self.address = node_address(index, link=link)
        self.state_dir = state_dir
        self.pods: list[Pod] = []
        self._daemon: Daemon | None = None
        self._subnet: PodSubnet | None = None
        self._next_pod = 1
        self._has_bridge = False
        self.namespace = Namespace(prefix + self.name)
        self.bpf_dir = state_dir / "bpf"
        try:
            self._wire(switch, mtu)
            self._mount_bpffs()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.address}>"

    def _mount_bpffs(self) -> None:
        # Not below /sys, which every `ip netns exec` mounts anew: pins must outlive a daemon.
        self.bpf_dir.mkdir()
        run_here("mount", "-t", "bpf", "bpf", self.bpf_dir)

    def _wire(self, switch: Namespace, mtu: int) -> None:
        connect(
            self.namespace,
            switch,
            link=self.link,
            port=self.name,
            address=self.address,
            mtu=mtu,
        )
        self.namespace.ip(f"route add default via {self.link.gateway}")
        self.namespace.sysctl("net.ipv4.ip_forward", 1)

    @property
    def daemon(self) -> Daemon:
        """The node's daemon; ClusterError on a node that was made without one."""
        if self._daemon is None:
            raise ClusterError(f"{self.name} has no daemon")
        return self._daemon

    @property
    def has_daemon(self) -> bool:
        return self._daemon is not None

    def install_daemon(self, *, program: Path, etcd_endpoint: str) -> Daemon:
        """Give the node a daemon, not started yet."""
        self._daemon = Daemon(
            self.namespace,
            program=program,
            state_dir=self.state_dir,
            settings=[
                f"--etcd-endpoints={etcd_endpoint}",
                f"--node-id={self.name}",
                f"--bpf-dir={self.bpf_dir}",
                f"--cache-dir={os.environ.get('KERSEY_CACHE_DIR', self.state_dir / 'cache')}",
            ],
            environment={"NODE_NAME": self.name},  # what a pod of a DaemonSet is told
        )
        return self._daemon

    def reach_through_router(self, other: "Node") -> None:
        """Send what is for `other` to the gateway, even if it is on the same link.

        Only packets that this node sends: the way back is `other`'s own.
        """
        self.namespace.ip(f"route replace {other.address}/32 via {self.link.gateway}")

    def reach_as_before(self, other: "Node") -> None:
        """Take back `reach_through_router`."""
        self.namespace.ip(f"route del {other.address}/32 via {self.link.gateway}")

    def change_address(self, address: IPv4Address) -> None:
        """Take another address of the node's link; for a moment the node has none.

        The old one goes first: deleting it would take the new one, its secondary, with it.
        """
        length = self.link.network.prefixlen
        self.namespace.ip(
            f"addr del {self.address}/{length} dev eth0",
            f"addr add {address}/{length} dev eth0",
            f"route replace default via {self.link.gateway}",
        )
        self.address = address

    def use_subnet(self, subnet: PodSubnet) -> None:
        """Say by hand what subnet.env would say: for nodes that run no daemon."""
        self._subnet = subnet

    def pod_subnet(self) -> PodSubnet:
        """Return the subnet that pods get addresses from, as it stood when first asked for."""
        if self._subnet is None:
            self._subnet = PodSubnet.from_env(self.daemon.wait_subnet())
        return self._subnet

    def add_pod(self, *, address: IPv4Address | None = None, routed: bool = False) -> Pod:
        """Return a new pod, bridged or routed, with the next address unless one is given.

        Waits for the daemon's subnet.env where the subnet is not known yet. Do not mix both kinds
        on one node: as behind a real bridge, bridged pods look for the others on the bridge.
        """
        subnet = self.pod_subnet()
        if not routed:
            self._ensure_bridge(subnet)
        number = self._next_pod
        self._next_pod += 1
        pod = Pod(
            self,
            name=f"pod{self.index}-{number}",
            port=f"veth{number}",
            address=address or subnet.gateway.ip + number,
            routed=routed,
        )
        self.pods.append(pod)
        return pod

    def _ensure_bridge(self, subnet: PodSubnet) -> None:
        if self._has_bridge:
            return
        mac = f"0e:00:0a:f4:00:{self.index:02x}"  # set by hand, it stays when ports come and go
        self.namespace.ip(
            f"link add cni0 address {mac} mtu {subnet.mtu} type bridge",
            "link set cni0 up",
            f"addr add {subnet.gateway} dev cni0",
        )
        self._has_bridge = True

    def remove_pod(self, pod: Pod) -> None:
        """Delete one pod of this node."""
        self.pods.remove(pod)
        pod.close()

    def has_link(self, name: str) -> bool:
        """Whether the node has an interface of that name."""
        return self.namespace.run("ip", "link", "show", "dev", name, check=False).returncode == 0

    def close(self) -> None:
        """Stop the daemon, then remove the pods and the node; twice does no harm."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.namespace.close)
            if self.bpf_dir.is_mount():
                stack.callback(run_here, "umount", self.bpf_dir)
            for pod in self.pods:
                stack.callback(pod.close)
            if self._daemon is not None:
                stack.callback(self._daemon.stop)


def connect(
    namespace: Namespace,
    switch: Namespace,
    *,
    link: Link,
    port: str,
    address: IPv4Address,
    mtu: int,
) -> None:
    """Give `namespace` an `eth0` on that link; `port` is its name at the switch."""
    namespace.ip(
        f"link add eth0 mtu {mtu} type veth peer name {port} mtu {mtu} netns {switch.name}",
        f"addr add {address}/{link.network.prefixlen} dev eth0",
    )
    switch.ip(f"link set {port} master {link.bridge} up")
    namespace.ip("link set eth0 up")
