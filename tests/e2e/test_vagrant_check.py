"""`scripts/vagrant-check` over a transport of ours, on nodes with real daemons."""

import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overlay_view import ready
from testbed import Cluster, Node, told_by, wait_acquainted

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "vagrant-check"


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def as_machine(node: Node, cluster: Cluster, folder: Path) -> None:
    """Make the programs that a provisioned machine has, for this node."""
    folder.mkdir()
    pods = json.dumps({pod.namespace.name: str(pod.address) for pod in node.pods})
    program(folder / "kersey", f'exec {cluster.kersey} "$@" --state-dir={node.state_dir}')
    program(folder / "pod", f"echo {shlex.quote(pods)}")
    # What a service manager does is done by the test's thread, which removes the request.
    request = folder / "restart"
    program(folder / "systemctl", f"touch {request}; while [ -e {request} ]; do sleep 0.05; done")


@contextmanager
def restarts(nodes: dict[str, Node], folder: Path, *, options: tuple[str, ...]) -> Iterator[None]:
    """Restart daemons when `systemctl` asks for it."""
    ended = threading.Event()

    def serve() -> None:
        while not ended.wait(0.05):
            for name, node in nodes.items():
                request = folder / name / "restart"
                if request.exists():
                    node.daemon.restart(*options)
                    node.daemon.wait_ready()
                    request.unlink()

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield
    finally:
        ended.set()
        server.join()


@contextmanager
def machines(cluster: Cluster, folder: Path, *options: str) -> Iterator[str]:
    """Start two nodes with a pod each; yield the transport to them as `a` and `b`."""
    ready(cluster, *options, nodes=2)
    wait_acquainted(cluster)
    nodes = dict(zip("ab", cluster.nodes, strict=True))
    for name, node in nodes.items():
        as_machine(node, cluster, folder / name)
    cases = " ".join(f"{name}) node={node.namespace.name} ;;" for name, node in nodes.items())
    # A /run for each, as machines have; the namespaces' names stay.
    program(
        folder / "transport",
        f"case $1 in {cases} esac\n"
        "exec ip netns exec $node unshare --mount --propagation private sh -c '"
        f"mount --bind {folder}/$0 /usr/local/sbin && mkdir -p {folder}/$0/run/netns &&"
        f" mount --rbind /run/netns {folder}/$0/run/netns && mount --rbind {folder}/$0/run /run &&"
        ' exec sh -c "$1"\' "$1" "$2"',
    )
    with restarts(nodes, folder, options=options):
        yield f"{folder}/transport %s"


def check(transport: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    command: list[str | Path] = [
        SCRIPT,
        "--ssh",
        transport,
        "--json",
        "--seconds",
        "1",
        "--timeout",
        "60",
        *options,
    ]
    done = subprocess.run(
        [*command, "a", "b"], capture_output=True, text=True, timeout=170, check=False
    )
    answer = json.loads(done.stdout)
    assert answer["ok"] is (done.returncode == 0), done.stdout
    return done.returncode, answer["rows"]


def test_all_is_well_on_two_nodes_whose_daemons_are_restarted_meanwhile(
    cluster: Cluster, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("iperf3")
    with machines(cluster, tmp_path, "--datapath=bpf") as transport:
        before = [told_by(node, cluster)["pid"] for node in cluster.nodes]
        status, rows = check(transport)
        assert status == 0, rows
        assert not set(before) & {told_by(node, cluster)["pid"] for node in cluster.nodes}
    figures = {(row["check"], row["where"].split()[0]): row["figures"] for row in rows}
    assert [row["check"] for row in rows] == [
        *["ready"] * 2, "reach", *["fast path"] * 2, *["restart"] * 2, *["speed"] * 2
    ]  # fmt: skip
    assert figures["reach", "2"]["silent"] == 0
    assert figures["fast path", "a"]["share"] > 0.9
    for row in rows:
        if row["check"] == "restart":
            assert row["figures"]["datagrams_sent"] > 100
            assert row["figures"]["pings_sent"] > 10


def test_pods_that_are_cut_off_are_named_and_fail_it(cluster: Cluster, tmp_path: Path) -> None:
    with machines(cluster, tmp_path, "--datapath=netlink") as transport:
        one, two = cluster.nodes
        target = str(two.pods[0].address)
        one.namespace.run("ip", "route", "add", "blackhole", target)
        status, rows = check(transport)
    assert status == 1
    reach = next(row for row in rows if row["check"] == "reach")
    assert not reach["ok"]
    assert one.pods[0].namespace.name in reach["result"]
    assert next(row for row in rows if row["check"] == "ready")["ok"]
    assert rows[-1] is reach  # loads between them would tell nothing


def test_a_machine_that_does_not_answer_is_a_failed_row(tmp_path: Path) -> None:
    program(tmp_path / "transport", "echo no such machine >&2; exit 255")
    status, rows = check(f"{tmp_path}/transport %s")
    assert status == 1
    assert [(row["where"], row["ok"]) for row in rows] == [("a", False), ("b", False)]
    assert all("no such machine" in row["result"] for row in rows)
