"""The table of subcommands: the help, the parser and shell completion all come from it.

What a command needs is loaded when it runs: gRPC alone takes 0.3 s, which `version` need not wait.
"""
# ruff: noqa: PLC0415  # see above

from collections.abc import Mapping, Sequence
from typing import Any

from kersey_control import __version__
from kersey_control.cli.command import Command, FileFlags, JsonFlag, NodeFlags, NoFlags
from kersey_control.cli.schema import (
    CleanupFlags,
    DoctorFlags,
    DropsFlags,
    FlowsFlags,
    LeasesFlags,
    TraceFlags,
)

SHELLS = ("bash", "zsh", "fish")


def _version(_flags: NoFlags, _arguments: Sequence[str]) -> int:
    print(f"kersey {__version__}")
    return 0


def _status(flags: NodeFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.status import run

    return run(flags)


def _peers(flags: NodeFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.peers import run

    return run(flags)


def _flows(flags: FlowsFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.flows import run

    return run(flags)


def _flush(flags: FileFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.flows import run_flush

    return run_flush(flags)


def _drops(flags: DropsFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.drops import run

    return run(flags)


def _trace(flags: TraceFlags, arguments: Sequence[str]) -> int:
    from kersey_control.cli.trace import run

    source, destination = arguments
    return run(flags, source, destination)


def _doctor(flags: DoctorFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.doctor import run

    return run(flags)


def _leases(flags: LeasesFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.leases import run

    return run(flags)


def _check(flags: JsonFlag, arguments: Sequence[str]) -> int:
    from kersey_control.cli.config import run

    return run(flags, arguments[0])


def _completion(_flags: NoFlags, arguments: Sequence[str]) -> int:
    from kersey_control.cli.completion import run

    return run(COMMANDS, arguments[0])


def _cleanup(flags: CleanupFlags, _arguments: Sequence[str]) -> int:
    from kersey_control.cli.cleanup import run

    return run(flags)


COMMANDS: Mapping[str, Command[Any]] = {
    "version": Command("print the version", NoFlags, _version),
    "status": Command(
        "show how this node's daemon is doing",
        NodeFlags,
        _status,
        details="Without a daemon it shows what the last one left in the kernel, and fails.",
    ),
    "peers": Command(
        "list the other nodes, and the traffic with each",
        NodeFlags,
        _peers,
        details="Counts are packets on the wire and bytes of pods' packets, by path and way.",
        statuses={1: "a peer is not programmed or does not answer, or the command failed"},
    ),
    "flows": Command(
        "list pods' flows, which are fast, and why the others are not", FlowsFlags, _flows
    ),
    "flush flows": Command("have every fast flow checked by the stack again", FileFlags, _flush),
    "drops": Command(
        "show packets that the programs drop, live, and why",
        DropsFlags,
        _drops,
        details="Ctrl-C ends it, with status 0. One at a time can watch. With --json each packet is"
        " a line,\nand the last line has the sums.",
    ),
    "trace": Command(
        "show which way a packet between two addresses takes, and why",
        TraceFlags,
        _trace,
        arguments=("SRC", "DST"),
        details="Run it on the node of one of the two pods. It sends nothing.",
        statuses={1: "the packet would not arrive, or the command failed"},
    ),
    "doctor": Command(
        "look for what keeps packets from arriving, and say what mends it",
        DoctorFlags,
        _doctor,
        details="Changes nothing.",
        statuses={
            3: "something should be looked at",
            4: "something keeps packets from arriving, or will",
        },
    ),
    "leases": Command(
        "list the leases of the network, as the lease store has them",
        LeasesFlags,
        _leases,
        details="From etcd, or from the Kubernetes API with --kube-subnet-mgr, where they never"
        " expire.",
    ),
    "config check": Command(
        "check a network config, and show what it means",
        JsonFlag,
        _check,
        arguments=("FILE",),
        details="FILE is the JSON text, - for standard input.",
        statuses={1: "the config cannot be used; the field is named"},
    ),
    "completion": Command(
        "print a completion script for a shell",
        NoFlags,
        _completion,
        arguments=("SHELL",),
        details='bash: source <(kersey completion bash). zsh: kersey completion zsh > "${fpath[1]}'
        '/_kersey".\nfish: kersey completion fish > ~/.config/fish/completions/kersey.fish.',
        choices=SHELLS,
    ),
    "cleanup": Command(
        "remove everything of Kersey from this node, or only what flannel has no use for",
        CleanupFlags,
        _cleanup,
    ),
}
