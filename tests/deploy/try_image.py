"""Run two nodes whose daemons come from the image's file tree, and print what works.

Run as root by `scripts/try-image`, which builds the tree first. The daemon is started as the image
starts it, by its entry point, changed into the tree, with no more than the capabilities that the
overlay `unprivileged` gives. Exits 1 at the first thing that does not work.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fast_view import Counters
from kersey_loader.layout import Program, Verdict
from testbed import Cluster, udp_probe, wait_until

_CAPABILITIES = ("net_admin", "net_raw", "sys_admin", "sys_chroot")
_PLUGINS = {"bridge", "ptp", "host-local", "loopback", "portmap", "bandwidth"}
_START = """#!/bin/sh
for folder in proc sys dev run tmp; do mount --rbind /$folder {tree}/$folder || exit; done
exec setpriv --inh-caps=-all,{capabilities} --bounding-set=-all,{capabilities} \\
	chroot {tree} /usr/local/bin/entrypoint kerseyd "$@"
"""


@contextmanager
def _program(tree: Path) -> Iterator[Path]:
    """Yield a program that runs the tree's kerseyd; its mounts end with it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kerseyd"
        capabilities = ",".join(f"+{name}" for name in _CAPABILITIES)
        path.write_text(_START.format(tree=tree, capabilities=capabilities))
        path.chmod(0o755)
        yield path


def _plugins_are_installed(tree: Path) -> None:
    with TemporaryDirectory(dir=tree / "tmp") as folder:
        inside = "/" + str(Path(folder).relative_to(tree))
        command = ["chroot", str(tree), "/usr/local/bin/entrypoint", "install-cni", inside]
        subprocess.run(command, check=True, capture_output=True)
        found = {path.name for path in Path(folder).iterdir()}
        assert found == _PLUGINS, found
        for path in Path(folder).iterdir():
            answer = subprocess.run(
                [path], check=True, capture_output=True, env={"CNI_COMMAND": "VERSION"}
            )
            assert "0.4.0" in json.loads(answer.stdout)["supportedVersions"]


def _packets_take_the_fast_path(cluster: Cluster) -> None:
    one, two = cluster.nodes
    source, destination = one.add_pod(), two.add_pod()
    sent, received = Counters(one), Counters(two)
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=500) as probe:
        wait_until(
            lambda: (
                sent(Program.FROM_POD, Verdict.FAST) > 200
                and received(Program.FROM_UPLINK, Verdict.FAST) > 200
            ),
            timeout=20,
            what="200 packets on the fast path",
        )
        assert probe.stop().lost == 0


def _a_restart_adopts(cluster: Cluster) -> None:
    daemon = cluster.nodes[0].daemon
    daemon.restart()
    daemon.wait_ready()
    assert "adopted from the last run" in daemon.log_tail(40)


def _say(what: str, check: Callable[[], None]) -> None:
    check()
    print(f"works: {what}")


def main() -> int:
    """Try everything; return the process's exit status."""
    tree = Path(sys.argv[1]).resolve()
    _say("plugins are installed on a node", lambda: _plugins_are_installed(tree))
    with _program(tree) as kerseyd, Cluster(prefix="image-", kerseyd=kerseyd) as cluster:
        cluster.start_etcd()
        for _ in range(2):
            cluster.add_node().daemon.start("--ip-masq", "--datapath=bpf", "--cache-dir=")
        for node in cluster.nodes:
            node.daemon.wait_ready()
        print("works: two daemons of the image are ready, their programs compiled in it")
        _say("pods' packets take the fast path", lambda: _packets_take_the_fast_path(cluster))
        _say("a restarted one adopts maps and programs", lambda: _a_restart_adopts(cluster))
    return 0


if __name__ == "__main__":
    sys.exit(main())
