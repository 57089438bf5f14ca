"""What a lab is put through, as rows of one table. Each check leaves the network in order.

Reachability, the fast path's share and losses are found out by vagrant_check, as on any machines;
here is what only machines of our own can be put through. Nothing here judges a time or a rate.
"""

from collections.abc import Sequence

from testbed.backend import Backend
from testbed.waiting import wait_until
from vagrant_check.machine import MachineError
from vagrant_check.node import Node, ready_row
from vagrant_check.reach import reach_row
from vagrant_check.row import Row
from vagrant_check.traffic import loss_rows, restart_rows, share_rows

from vm.errors import VmError
from vm.lab import Lab

LEAST_SHARE = 0.9
_SECONDS = 10.0  # of traffic in each check
_BACK_WITHIN = 900.0

_DEVICES = {
    "vxlan": ("flannel.1", "vxlan"),
    "udp": ("flannel0", "tun"),
    "ipip": ("flannel.ipip", "ipip"),
}
"""The overlay device and its kind, by Backend.Type. On a stock kernel ipip has the kernel's own."""

_UPGRADE = """
before=$(systemctl show -P MainPID kersey)
dpkg -i {package} >&2
until [ "$(systemctl show -P MainPID kersey)" != "$before" ] && systemctl -q is-active kersey; do
    sleep 0.5
done
"""


def network_rows(lab: Lab, backend: Backend) -> list[Row]:
    """Return whether every node is ready, on the right device, and every pod reaches every other.

    Raises MachineError, VmError.
    """
    nodes = lab.nodes()
    ready = [ready_row(node, nodes=len(nodes)) for node in nodes]
    return [*ready, *device_rows(lab, backend), reach_row(nodes)]


def device_rows(lab: Lab, backend: Backend) -> list[Row]:
    """Return whether the overlay device is of the kind that a stock kernel offers, if any is."""
    if backend.type not in _DEVICES:
        return []
    name, kind = _DEVICES[backend.type]
    shown = lab.on_all(f"ip -d link show {name}")
    return [
        Row("device", machine.name, f" {kind} " in said, f"{name}, expected of kind {kind}")
        for machine, said in zip(lab.machines, shown, strict=True)
    ]


def datapath_rows(nodes: Sequence[Node], expected: str, because: str = "") -> list[Row]:
    """Return whether each datapath is the expected one, with `because` in the reason given."""
    found = [(node.machine.name, node.status["datapath"]) for node in nodes]
    return [
        Row("datapath", name, ok, f"{told['mode']}: {told['reason']}")
        for name, told in found
        for ok in [told["mode"] == expected and because in told["reason"]]
    ]


def fast_rows(lab: Lab) -> list[Row]:
    """Return whether datagrams take the fast path."""
    nodes = lab.nodes()
    shares = share_rows(nodes, seconds=_SECONDS, least=LEAST_SHARE)
    return [*datapath_rows(nodes, "bpf"), *shares]


def restarted_rows(lab: Lab) -> list[Row]:
    """Restart the daemons, one after the other, under traffic: is nothing lost."""
    return restart_rows(lab.nodes(), seconds=_SECONDS)


def slow_rows(lab: Lab, because: str) -> list[Row]:
    """Return whether all works without the fast path, with `because` in the reason given."""
    nodes = lab.nodes()
    return [*datapath_rows(nodes, "netlink", because), reach_row(nodes)]


def xdp_rows(lab: Lab) -> list[Row]:
    """Ask for XDP in the driver: is it there, and do datagrams take the fast path behind it.

    Afterwards it is off again.
    """
    _set_xdp(lab, "native")
    nodes = wait_whole(lab)
    rows = [
        Row("xdp", node.machine.name, told["mode"] == "native", f"{told['mode']}: {told['reason']}")
        for node in nodes
        for told in [node.status["fast_path"]["xdp"]]
    ]
    rows += [reach_row(nodes), *share_rows(nodes, seconds=_SECONDS, least=LEAST_SHARE)]
    _set_xdp(lab, "off")
    wait_whole(lab)
    return rows


def _set_xdp(lab: Lab, mode: str) -> None:
    lab.on_all(
        "sed -i /^KERSEY_XDP=/d /etc/default/kersey"
        f" && echo KERSEY_XDP={mode} >>/etc/default/kersey && systemctl restart kersey"
    )


def upgrade_rows(lab: Lab) -> list[Row]:
    """Install another build of the package, node by node, under traffic: is nothing lost."""
    nodes = lab.nodes()
    script = _UPGRADE.format(package=lab.newer_package)
    lost = loss_rows("upgrade", nodes, script, seconds=_SECONDS)
    installed = lab.on_all("dpkg-query -W -f '${Version}' kersey")
    return [
        *lost,
        *(
            Row("version", machine.name, f"_{version}_" in lab.newer_package, version)
            for machine, version in zip(lab.machines, installed, strict=True)
        ),
    ]


def reboot_rows(lab: Lab) -> list[Row]:
    """Reboot each machine: does it come back with its subnet, and reach all by new pods."""
    before = [str(node.status["subnet"]) for node in lab.nodes()]
    for machine in lab.machines:
        machine.reboot()
    after = [str(node.status["subnet"]) for node in wait_whole(lab)]
    rows = [
        Row("reboot", machine.name, old == new, f"subnet {old} before, {new} after")
        for machine, old, new in zip(lab.machines, before, after, strict=True)
    ]
    return [*rows, reach_row(lab.nodes())]


def lockdown_rows(lab: Lab) -> list[Row]:
    """Boot kernels locked down: do pods reach pods, whatever becomes of the fast path."""
    lab.restart("lockdown=confidentiality")
    nodes = wait_whole(lab)
    locked = lab.on_all("cat /sys/kernel/security/lockdown")
    rows = [
        Row("lockdown", node.machine.name, "[confidentiality]" in state, _told(node))
        for node, state in zip(nodes, locked, strict=True)
    ]
    rows.append(reach_row(nodes))
    lab.restart()
    wait_whole(lab)
    return rows


def without_bcc_rows(lab: Lab) -> list[Row]:
    """Remove the distribution's bcc, for good: does everything work without it."""
    lab.on_all("dpkg --remove python3-bpfcc >&2 && systemctl restart kersey")
    return slow_rows(lab, "python3-bpfcc")


def wait_whole(lab: Lab) -> list[Node]:
    """Return the nodes once each is ready, with a way to all others and with its pods."""
    return wait_until(lambda: _whole(lab), timeout=_BACK_WITHIN, what="all nodes are back")


def _whole(lab: Lab) -> list[Node]:
    """Return the nodes, none while one of them lacks something."""
    try:
        nodes = lab.nodes()
    except (MachineError, VmError):
        return []
    return nodes if all(ready_row(node, nodes=len(nodes)).ok for node in nodes) else []


def _told(node: Node) -> str:
    datapath = node.status["datapath"]
    return f"{datapath['mode']}: {datapath['reason']}"
