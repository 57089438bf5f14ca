"""`scripts/testbed`: a testbed for a person to explore by hand. One at a time on a machine."""

import argparse
import os
import sys
from collections.abc import Sequence

from testbed.cluster import Cluster
from testbed.errors import ClusterError
from testbed.options import add_cluster_options, chosen_backend, objection
from testbed.record import STATE_DIR, Record, leave_running
from testbed.signals import exit_on_signals, undisturbed_afterwards

_PLACES = "node1, pod1-2, etcd or switch"
_AROUND = """\
look around:
  scripts/testbed status                                  what runs, and where
  scripts/testbed exec pod1-1 ping -c 3 {pod}       from a pod to a pod
  scripts/testbed exec node1 ip route                     what the daemon put into the kernel
  scripts/testbed exec node1 tcpdump -ni eth0 udp port 8472
  scripts/testbed exec etcd etcdctl get --prefix /coreos.com/network
  less {state}/node1/kerseyd.log
remove it:
  scripts/testbed down"""


def up(arguments: argparse.Namespace) -> int:
    """Start a testbed and leave it running."""
    refuse_second()
    backend = chosen_backend(arguments)
    with Cluster(state_dir=STATE_DIR) as cluster, undisturbed_afterwards():
        print(
            f"starting etcd, {arguments.nodes} nodes, {arguments.pods} pods each", file=sys.stderr
        )
        cluster.start(
            nodes=arguments.nodes,
            pods=arguments.pods,
            config=backend.network_config,
            options=[f"--datapath={arguments.datapath}", "--probe-interval=5"],
            links=arguments.links,
        )
        leave_running(cluster, backend=str(backend))
    show(Record.load())
    print(look_around())
    return 0


def refuse_second() -> None:
    """Raise ClusterError while a testbed is up."""
    if STATE_DIR.exists():
        raise ClusterError("a testbed is up already; remove it with `scripts/testbed down`")


def look_around() -> str:
    """Return what a person may want to type next."""
    pods = [address for node in Record.load().nodes for address in node.pods.values()]
    return _AROUND.format(state=STATE_DIR, pod=pods[-1] if pods else "198.19.0.1")


def enter(arguments: argparse.Namespace) -> int:
    """Replace this process by a command inside one of the namespaces."""
    namespace = Record.load().namespace_of(arguments.place)
    given = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    command = given or [os.environ.get("SHELL", "/bin/sh")]
    os.environ.setdefault("ETCDCTL_API", "3")  # etcd 3.4's client speaks version 2 otherwise
    os.execvp("ip", ["ip", "netns", "exec", namespace, *command])  # noqa: S606  # no shell is wanted


def down(_arguments: argparse.Namespace) -> int:
    """Remove the testbed that runs."""
    with undisturbed_afterwards():
        record = Record.load()
    record.tear_down()
    print("testbed removed")
    return 0


def status(_arguments: argparse.Namespace) -> int:
    """Print what runs; exit 1 where something of it has ended."""
    record = Record.load()
    show(record)
    return 0 if all(process.is_running for process in record.processes) else 1


def show(record: Record) -> None:
    """Print nodes, pods and processes."""
    print(f"backend {record.backend}, files in {record.state_dir}")
    for node in record.nodes:
        pods = ", ".join(f"{name} {address}" for name, address in node.pods.items())
        print(f"  {node.name:<8}{node.address:<14}{node.subnet:<18}{pods}")
    for process in record.processes:
        state = "running" if process.is_running else "ENDED"
        print(f"  {process.what:<24}pid {process.pid:<8}{state}")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(
        prog="scripts/testbed",
        description="Nodes and pods as network namespaces, with a real etcd, to explore by hand.",
    )
    commands = top.add_subparsers(required=True, metavar="up | exec | status | down")
    start = commands.add_parser("up", help="start a testbed and leave it running")
    add_cluster_options(start)
    start.set_defaults(run=up)
    inside = commands.add_parser("exec", help=f"run a command in {_PLACES}")
    inside.add_argument("place", help=_PLACES)
    inside.add_argument(
        "command", nargs=argparse.REMAINDER, help="command and arguments (default: a shell)"
    )
    inside.set_defaults(run=enter)
    commands.add_parser("status", help="show what runs").set_defaults(run=status)
    commands.add_parser("down", help="remove it").set_defaults(run=down)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; 1 for what failed, 2 for a wrong call."""
    top = parser()
    arguments = top.parse_args(argv)
    wrong = objection(arguments) if arguments.run is up else None
    if wrong is not None:
        top.error(wrong)
    if os.geteuid() != 0:
        print("scripts/testbed: must be root: run with sudo", file=sys.stderr)
        return 2
    exit_on_signals()
    try:
        return int(arguments.run(arguments))
    except (ClusterError, TimeoutError) as error:
        print(f"scripts/testbed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/testbed: interrupted, cleaned up", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
