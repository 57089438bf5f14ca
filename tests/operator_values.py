"""Values that the tests of the operator's command work on."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace

from kersey_control.addresses import Vni
from kersey_control.netlink import Link, VxlanInfo
from kersey_control.node_view import NodeView, SubnetEnv
from kersey_control.told import ToldStatus
from kersey_loader.layout import Verdict
from kersey_loader.view import ViewedFlow

NETWORK = IPv4Network("10.244.0.0/16")
SUBNET = IPv4Network("10.244.1.0/24")


def flow(
    *,
    verdict: Verdict = Verdict.FAST,
    ages: tuple[float | None, float | None] = (1.0, 1.0),
    local: str = "10.244.1.2",
) -> ViewedFlow:
    """Return a TCP flow of port 40000 to port 80 of 10.244.2.2."""
    return ViewedFlow(
        local=IPv4Address(local),
        local_port=40000,
        remote=IPv4Address("10.244.2.2"),
        remote_port=80,
        protocol=6,
        port=7,
        direct=False,
        egress_age=ages[0],
        ingress_age=ages[1],
        verdict=verdict,
    )


def vxlan(
    name: str = "flannel.1",
    *,
    ifindex: int = 3,
    vni: int = 1,
    port: int = 8472,
    external: bool = False,
    up: bool = True,
) -> Link:
    """Return a VXLAN device."""
    info = VxlanInfo(
        vni=Vni(vni),
        port=port,
        lower=2,
        local=None,
        learning=False,
        gbp=False,
        udp_checksum=False,
        external=external,
        has_remote=False,
    )
    return Link(ifindex, name, "vxlan", "0e:00:00:00:00:01", 1450, up, vxlan=info)


def node_view(
    *, told: ToldStatus | None = None, overlay: Link | None = None, pins_trouble: str = "none"
) -> NodeView:
    """Return a node of 10.244.1.0/24 that runs vxlan."""
    root = Path("/nonexistent")
    return NodeView(
        places=SimpleNamespace(subnet_file=root / "env", state_dir=root, bpf_dir=root / "bpf"),
        told=told,
        silence="" if told else "no kerseyd runs here",
        is_stopped=told is None,
        env=SubnetEnv(NETWORK, SUBNET, 1450, masquerade=True),
        overlay=overlay or vxlan(),
        programs=None,
        pins_trouble=pins_trouble,
    )
