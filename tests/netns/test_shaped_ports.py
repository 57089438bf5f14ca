"""Shaped pod ports, and what is heard of queueing disciplines and filters, on a real kernel."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from bpf_lab import private_bpffs
from kersey_control.monitor import ChangeKind, KernelChange, Monitor, Watched, is_relevant
from kersey_control.pod_ports import PodPorts, read_pod_ports
from kersey_control.rtnetlink import Rtnl
from kersey_loader.attach import PRIORITY, Direction, FilterHooks
from kersey_loader.datapath import Settings, load
from kersey_loader.layout import Program
from kersey_loader.probe import probe
from testbed import Namespace, wait_until
from vxlan_lab import ip, new_network

SUBNET = IPv4Network("10.244.1.0/24")
TBF = "root tbf rate 1mbit burst 32kbit latency 400ms"
EVERYTHING = "protocol all u32 match u32 0 0 action mirred egress redirect dev other0"
NOTHING_OF_OURS = Watched(overlay=0, uplink=0, names=frozenset())


@pytest.fixture
def pods() -> Iterator[Namespace]:
    """Give a test a node with a bridge and two pod ports, and the namespace of both pods."""
    if shutil.which("tc") is None:
        pytest.skip("missing: tc")
    with new_network(), Namespace("kq-pods") as pods:
        ip("link add cni0 type bridge")
        ip(f"addr add {SUBNET[1]}/{SUBNET.prefixlen} dev cni0")
        ip("link add other0 type veth peer name other1")
        for name in ("one", "two"):
            ip(f"link add {name} numtxqueues 2 type veth peer name {name} netns {pods.name}")
            ip(f"link set {name} master cni0 up")
        yield pods


@pytest.fixture
def rtnl(pods: Namespace) -> Iterator[Rtnl]:
    assert pods.exists
    with Rtnl() as opened:
        yield opened


@pytest.fixture
def programs(pods: Namespace, tmp_path: Path) -> Iterator[dict[Program, int]]:
    """Give a test loaded programs that can be attached."""
    assert pods.exists
    found = probe(tmp_path)
    if not found.available:
        pytest.skip(f"missing: {'; '.join(found.missing)}")
    network = IPv4Network("10.244.0.0/16")
    with private_bpffs(tmp_path), load(Settings(tmp_path, network, 24)) as loaded:
        yield {program: loaded.program_fd(program) for program in Program}


def tc(command: str) -> None:
    subprocess.run(["tc", *command.split()], check=True, capture_output=True)


def read(rtnl: Rtnl) -> PodPorts:
    return read_pod_ports(rtnl, subnet=SUBNET, overlay=index("other0"), uplink=0)


def index(name: str) -> int:
    return socket.if_nametoindex(name)


SHAPED = {
    "tbf": (["qdisc add dev one {TBF}"], "qdisc tbf"),
    "htb without classes": (["qdisc add dev one root htb"], "qdisc htb"),
    "tbf below mq": (
        [
            "qdisc add dev one root handle 1: mq",
            "qdisc replace dev one parent 1:1 tbf rate 1mbit burst 32kbit latency 400ms",
        ],
        "qdisc tbf",
    ),
    "ingress": (["qdisc add dev one ingress"], "qdisc ingress"),
    "filter of ingress": (
        ["qdisc add dev one ingress", f"filter add dev one parent ffff: {EVERYTHING}"],
        "qdisc ingress",
    ),
    "filter towards the pod": (
        ["qdisc add dev one clsact", f"filter add dev one egress {EVERYTHING}"],
        "filter u32",
    ),
    "filter from the pod": (
        ["qdisc add dev one clsact", f"filter add dev one ingress {EVERYTHING}"],
        "filter u32",
    ),
    "nameless program of our priority": (
        [
            "qdisc add dev one clsact",
            f"filter add dev one ingress pref {PRIORITY} protocol all bpf bytecode 1,6 0 0 0,",
        ],
        "filter bpf",
    ),
}


def commands_of(raw: list[str]) -> list[list[str]]:
    """Return argument lists; the bytecode of a program is one argument."""
    split = [command.format(TBF=TBF).partition(" bytecode ") for command in raw]
    return [first.split() + ([mid.strip(), code] if mid else []) for first, mid, code in split]


@pytest.mark.parametrize(("commands", "reason"), SHAPED.values(), ids=SHAPED.keys())
def test_a_shaped_port_is_set_apart_and_the_other_is_not(
    rtnl: Rtnl, commands: list[str], reason: str
) -> None:
    for command in commands_of(commands):
        subprocess.run(["tc", *command], check=True, capture_output=True)
    found = read(rtnl)
    assert found.ports == {index("two")}
    assert found.shaped == {index("one"): reason}


@pytest.mark.parametrize("root", ["noqueue", "pfifo_fast", "mq"])
def test_queues_that_do_not_shape_change_nothing(rtnl: Rtnl, root: str) -> None:
    tc(f"qdisc replace dev one root {root}")
    tc("qdisc add dev one clsact")
    found = read(rtnl)
    assert found.ports == {index("one"), index("two")}
    assert not found.shaped


@pytest.mark.parametrize("device", ["cni0", "other0"])
def test_a_shaper_behind_which_every_port_is_leaves_none(rtnl: Rtnl, device: str) -> None:
    tc(f"qdisc add dev {device} {TBF}")
    found = read(rtnl)
    assert found.ports == frozenset()
    assert found.shaped == dict.fromkeys((index("one"), index("two")), "qdisc tbf")


def test_a_port_that_is_not_shaped_any_more_is_one_again(rtnl: Rtnl) -> None:
    tc(f"qdisc add dev one {TBF}")
    assert index("one") in read(rtnl).shaped
    tc("qdisc del dev one root")
    assert index("one") in read(rtnl).ports


def test_our_own_filters_shape_nothing(rtnl: Rtnl, programs: dict[Program, int]) -> None:
    with FilterHooks(1) as ours, FilterHooks(7) as of_another_network:
        for hooks in (ours, of_another_network):
            attach(hooks, programs)
    assert read(rtnl).ports == {index("one"), index("two")}


def attach(hooks: FilterHooks, programs: dict[Program, int]) -> None:
    for way, program in ((Direction.INGRESS, Program.FROM_POD), (Direction.EGRESS, Program.TO_POD)):
        name = program.function
        hooks.attach(index("one"), way, program=name, fd=programs[program])


def marked(seen: list[KernelChange]) -> list[KernelChange]:
    """Return what was heard of queues and filters, once all that was done before is heard."""
    ip("link set other1 mtu 1400")
    last = index("other1")
    wait_until(
        lambda: any(change.ifindex == last for change in list(seen)), timeout=5, what="the marker"
    )
    return [change for change in seen if change.kind is ChangeKind.QDISC]


@pytest.mark.parametrize(
    ("before", "command", "gone"),
    [
        ([], f"qdisc add dev one {TBF}", False),
        ([f"qdisc add dev one {TBF}"], "qdisc del dev one root", True),
        ([], "qdisc add dev one ingress", False),
        (["qdisc add dev one clsact"], f"filter add dev one ingress {EVERYTHING}", False),
        (
            ["qdisc add dev one clsact", f"filter add dev one ingress {EVERYTHING}"],
            "filter del dev one ingress",
            True,
        ),
    ],
)
@pytest.mark.usefixtures("pods")
def test_a_shaper_that_comes_or_goes_is_heard(
    before: list[str], command: str, *, gone: bool
) -> None:
    for each in before:
        tc(each)
    seen: list[KernelChange] = []
    with Monitor(seen.append):
        tc(command)
        heard = marked(seen)
    assert KernelChange(ChangeKind.QDISC, ifindex=index("one"), gone=gone) in heard
    assert not any(is_relevant(change, NOTHING_OF_OURS, {}) for change in heard)


@pytest.mark.usefixtures("pods")
def test_our_own_attaching_and_replacing_is_not_reported(programs: dict[Program, int]) -> None:
    seen: list[KernelChange] = []
    with Monitor(seen.append), FilterHooks(1) as hooks:
        attach(hooks, programs)
        attach(hooks, programs)
        assert marked(seen) == []


@pytest.mark.parametrize(
    "command",
    [
        f"filter del dev one ingress pref {PRIORITY}",
        f"filter del dev one ingress pref {PRIORITY} handle 1 bpf",
        "filter del dev one ingress",
        "qdisc del dev one clsact",
    ],
)
@pytest.mark.usefixtures("pods")
def test_a_filter_of_ours_that_somebody_deletes_calls_for_a_repair(
    programs: dict[Program, int], command: str
) -> None:
    seen: list[KernelChange] = []
    with FilterHooks(1) as hooks:
        attach(hooks, programs)
        with Monitor(seen.append):
            tc(command)
            assert any(is_relevant(change, NOTHING_OF_OURS, {}) for change in marked(seen))


@pytest.mark.usefixtures("pods")
def test_the_end_of_a_pod_whose_port_had_our_filters_calls_for_no_repair(
    programs: dict[Program, int],
) -> None:
    seen: list[KernelChange] = []
    with FilterHooks(1) as hooks:
        attach(hooks, programs)
        with Monitor(seen.append):
            ip("link del one")
            assert marked(seen) == []
