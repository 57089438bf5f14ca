"""A node of a Kubernetes cluster as flannel's daemon makes it when it starts, by hand.

Written from what is known of flannel's behaviour (docs/COMPATIBILITY.md, docs/MIGRATION.md), with
the kernel's own tools and none of our code. The order is flannel's: device, address, annotations,
rules (the chains are emptied and filled again), `subnet.env`, then for each other node neighbour,
forwarding entry and route. What is there already is put in place again. It stops without a trace.
"""

import json
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kube.api_server import PREFIX, ApiServer
from kube_network import foreign_annotations, keyed
from overlay_view import ip_json
from testbed import Node, Vtep
from testbed.vtep import make_device

NETWORK = IPv4Network("10.244.0.0/16")
CNI_NAME = "10-flannel.conflist"
DEVICE = "flannel.1"
_MTU = 1450


def write_cni_config(folder: Path, subnet: IPv4Network) -> str:
    """Write what flannel's plugin hands on to `bridge`; the plugin itself is in no distribution."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": str(subnet)}]],
        "routes": [{"dst": str(NETWORK)}],
    }
    bridge = {
        "type": "bridge",
        "hairpinMode": True,
        "isDefaultGateway": True,
        "isGateway": True,
        "ipMasq": False,
        "mtu": _MTU,
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    document = {"name": "cbr0", "cniVersion": "0.3.1", "plugins": [bridge, portmap]}
    folder.mkdir()
    (folder / CNI_NAME).write_text(json.dumps(document))
    return json.dumps(document)


class FlannelNode:
    """flannel's part of one node. `patches` is how often it found its annotations to be others."""

    def __init__(self, node: Node, api: ApiServer) -> None:
        self.node = node
        self.patches = 0
        self._api = api

    @property
    def subnet(self) -> IPv4Network:
        return IPv4Network(self._api.nodes[self.node.name]["spec"]["podCIDR"])

    @property
    def annotations(self) -> dict[str, str]:
        """The node's annotations as the API server has them, by their full keys."""
        found: dict[str, str] = self._api.nodes[self.node.name]["metadata"].get("annotations", {})
        return found

    def start(self) -> None:
        """Do what flannel's daemon does when it starts; twice does no harm."""
        mac = self._prepare_device()
        wanted = keyed(foreign_annotations(self.node.address, mac))
        if wanted.items() - self.annotations.items():
            self.patches += 1
            self._api.put(self.node.name, cidr=str(self.subnet), annotations=wanted)
        self._fill_chains()
        self._write_subnet_file()
        self.hear()

    def hear(self) -> None:
        """Put every other node of the cluster in place, as flannel does when it hears of it."""
        end = Vtep(self.node, self.subnet, self._mac())
        for name, node in self._api.nodes.items():
            notes = node["metadata"].get("annotations", {})
            if name != self.node.name and notes.get(PREFIX + "kube-subnet-manager") == "true":
                end.add_peer(
                    subnet=IPv4Network(node["spec"]["podCIDR"]),
                    address=IPv4Address(notes[PREFIX + "public-ip"]),
                    mac=json.loads(notes[PREFIX + "backend-data"])["VtepMAC"],
                )

    def _prepare_device(self) -> str:
        """Keep a device that is as flannel wants it, or make one with the MAC that is annotated."""
        if not self._has_fitting_device():
            self.node.namespace.run("ip", "link", "del", DEVICE, check=False)
            known = self.annotations.get(PREFIX + "backend-data")
            mac = json.loads(known)["VtepMAC"] if known else f"0e:f1:00:00:01:{self.node.index:02x}"
            make_device(Vtep(self.node, self.subnet, mac))
        return self._mac()

    def _has_fitting_device(self) -> bool:
        found = [link for link in ip_json(self.node, "addr") if link["ifname"] == DEVICE]
        if not found:
            return False
        info, wanted = found[0]["linkinfo"]["info_data"], f"{self.subnet.network_address}/32"
        fits = (info["id"], info["link"], info["local"], info["port"]) == (
            1,
            "eth0",
            str(self.node.address),
            8472,
        )
        addresses = [f"{each['local']}/{each['prefixlen']}" for each in found[0]["addr_info"]]
        return fits and addresses == [wanted]

    def _mac(self) -> str:
        return str(ip_json(self.node, "link", "show", DEVICE)[0]["address"])

    def _fill_chains(self) -> None:
        """Empty and fill flannel's chains, and have them jumped to where they are not yet."""
        own = self.subnet
        self._fill_chain(
            "-t nat",
            "FLANNEL-POSTRTG",
            "POSTROUTING",
            "flanneld masq",
            "-m mark --mark 0x4000/0x4000 -j RETURN",
            f"-s {own} -d {NETWORK} -j RETURN",
            f"-s {NETWORK} -d {own} -j RETURN",
            f"! -s {NETWORK} -d {own} -j RETURN",
            f"-s {NETWORK} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
            f"! -s {NETWORK} -d {NETWORK} -j MASQUERADE --random-fully",
        )
        accepted = (f"-s {NETWORK} -j ACCEPT", f"-d {NETWORK} -j ACCEPT")
        self._fill_chain("-t filter", "FLANNEL-FWD", "FORWARD", "flanneld forward", *accepted)

    def _fill_chain(self, table: str, chain: str, hook: str, comment: str, *rules: str) -> None:
        tool = f"iptables -w {table}"
        remark = f'-m comment --comment "{comment}"'
        jump = f"{hook} {remark} -j {chain}"
        script = [
            f"{tool} -N {chain} 2>/dev/null || {tool} -F {chain}",
            *(f"{tool} -A {chain} {remark} {rule}" for rule in rules),
            f"{tool} -C {jump} 2>/dev/null || {tool} -A {jump}",
        ]
        self.node.namespace.run("sh", "-ec", "\n".join(script))

    def _write_subnet_file(self) -> None:
        subnet = self.subnet
        text = (
            f"FLANNEL_NETWORK={NETWORK}\n"
            f"FLANNEL_SUBNET={subnet[1]}/{subnet.prefixlen}\n"
            f"FLANNEL_MTU={_MTU}\n"
            "FLANNEL_IPMASQ=true\n"
        )
        self.node.daemon.subnet_file.write_text(text)
