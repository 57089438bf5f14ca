"""kersey, the operator's command. Tables for people, --json for programs.

Exit status: 0 done, 1 failed, 2 bad command line. It needs no running daemon: it reads the lease
store and the kernel itself, and refuses to clean up under a daemon that runs.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kersey_control import __version__
from kersey_control.errors import InvalidInputError, KerseyError
from kersey_control.flags import (
    BOOLEAN,
    HelpRequestedError,
    UsageError,
    flag,
    flags_of,
    format_help,
    parse_flags,
)
from kersey_control.options import PATH, EtcdFlags

_Flags = TypeVar("_Flags", bound="DataclassInstance")

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # exists only for type checkers

_OUTPUT = "Output"
_FILES = "Files"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFlags:
    """A command without flags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesFlags(EtcdFlags):
    """What `kersey leases` can be told."""

    json: bool = flag(
        BOOLEAN, default="false", group=_OUTPUT, help="print one JSON object", own=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusFlags:
    """What `kersey status` can be told."""

    state_dir: Path = flag(
        PATH, default="/run/kersey", group=_FILES, help="the daemon's --state-dir", own=True
    )
    json: bool = flag(
        BOOLEAN, default="false", group=_OUTPUT, help="print one JSON object", own=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupFlags:
    """What `kersey cleanup` can be told: the files that kerseyd was told to use."""

    subnet_file: Path = flag(
        PATH, default="/run/flannel/subnet.env", group=_FILES, help="the daemon's --subnet-file"
    )
    state_dir: Path = flag(
        PATH, default="/run/kersey", group=_FILES, help="the daemon's --state-dir", own=True
    )
    bpf_dir: Path = flag(
        PATH, default="/sys/fs/bpf/kersey", group=_FILES, help="the daemon's --bpf-dir", own=True
    )
    cni_conf_dir: Path = flag(
        PATH, default="/etc/cni/net.d", group=_FILES, help="the daemon's --cni-conf-dir", own=True
    )


@dataclass(frozen=True, slots=True)
class Command(Generic[_Flags]):
    """One subcommand: what it is for, its flags, and what carries it out."""

    summary: str
    schema: type[_Flags]
    run: Callable[[_Flags], None]


def main() -> None:
    """Run one command by the command line and the environment, and exit."""
    try:
        run(sys.argv[1:], os.environ)
    except (UsageError, InvalidInputError) as error:
        print(f"kersey: {error}", file=sys.stderr)
        sys.exit(2)
    except KerseyError as error:
        print(f"kersey: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        sys.exit(1)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Carry out one command line. Raises UsageError, InvalidInputError or another KerseyError."""
    name, *arguments = argv or ["--help"]
    if name in {"-h", "-help", "--help", "help"}:
        print(_help())
        return
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"command: got {name!r}, expected one of {', '.join(COMMANDS)}")
    _run_command(name, command, arguments, environ)


def _run_command(
    name: str, command: Command[_Flags], arguments: Sequence[str], environ: Mapping[str, str]
) -> None:
    try:
        parsed = parse_flags(command.schema, arguments, environ)
    except HelpRequestedError:
        print(f"Usage: kersey {name} [flags]\n\n{command.summary}\n")
        print(format_help(flags_of(command.schema)), end="")
        return
    if parsed.rest:
        raise UsageError(f"argument: got {parsed.rest[0]!r}, expected nothing behind the flags")
    command.run(parsed.values)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["Usage: kersey COMMAND [flags]", "", *lines, "", "kersey COMMAND --help lists its flags."]
    )


def version(_flags: NoFlags) -> None:
    """Print the version."""
    print(f"kersey {__version__}")


def status(flags: StatusFlags) -> None:
    """Print what the running daemon says of itself."""
    from kersey_control.status_socket import ask  # noqa: PLC0415  # as below

    told = ask(flags.state_dir)
    if flags.json:
        print(json.dumps(told))
        return
    for name, line in _status_lines(told):
        print(f"{name:10} {line}".rstrip())


def leases(flags: LeasesFlags) -> None:
    """Print every lease of the network, and what could not be read."""
    # Here, so that `kersey version` need not load gRPC.
    from kersey_control.subnets.etcd import EtcdOptions, EtcdStore, Inventory  # noqa: PLC0415

    def rows(found: Inventory) -> list[dict[str, object]]:
        return [
            {
                "subnet": str(stored.lease.subnet),
                "public_ip": str(stored.lease.public_ip),
                "backend": stored.lease.backend_type or "udp",
                "node_id": stored.lease.node_id,
                "expires_in_seconds": (
                    None
                    if stored.expires_at is None
                    else max(0, round(stored.expires_at - time.time()))
                ),
            }
            for stored in sorted(found.leases, key=lambda stored: stored.lease.subnet)
        ]

    with EtcdStore(EtcdOptions.from_flags(flags)) as store:
        found = store.list_leases()
    skipped = [{"record": each.record, "reason": each.reason} for each in found.skipped]
    if flags.json:
        print(json.dumps({"leases": rows(found), "skipped": skipped}))
        return
    _print_table(rows(found))
    for each in found.skipped:
        print(f"kersey: record skipped: {each.record}: {each.reason}", file=sys.stderr)


def cleanup(flags: CleanupFlags) -> None:
    """Remove from this node everything that is Kersey's, saying what."""
    if os.geteuid() != 0:
        raise KerseyError("cleanup: got an unprivileged user, expected root (sudo kersey cleanup)")
    from kersey_control.cleanup import clean_node  # noqa: PLC0415  # loads netlink
    from kersey_control.lock import sole_user  # noqa: PLC0415
    from kersey_control.netlink import Links  # noqa: PLC0415
    from kersey_control.rtnetlink import Rtnl  # noqa: PLC0415

    with sole_user(flags.subnet_file) as lock, Links() as links, Rtnl() as rtnl:
        for line in clean_node(
            subnet_file=flags.subnet_file,
            state_dir=flags.state_dir,
            bpf_dir=flags.bpf_dir,
            cni_conf_dir=flags.cni_conf_dir,
            links=links,
            rtnl=rtnl,
        ):
            print(f"removed {line}")
        lock.unlink(missing_ok=True)
    print("nothing of Kersey is left on this node; its lease ends by itself within 24 hours")


def _status_lines(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines of `kersey status`, what is wrong at the end."""
    peers, store, lease, uplink = told["peers"], told["store"], told["lease"], told["uplink"]
    yield "daemon", f"kerseyd {told['version']}, {'ready' if told['ready'] else 'not ready yet'}"
    yield "datapath", f"{told['datapath']['mode']}: {told['datapath']['reason']}"
    if told["fast_path"] is not None:
        yield "fast path", _share(told["fast_path"]["verdicts"])
    if uplink is not None:
        yield "uplink", f"{uplink['interface']} {uplink['address']} ({uplink['reason']})"
    if told["subnet"] is not None:
        expires = lease["expires_at"] and round(lease["expires_at"] - time.time())
        yield "lease", f"{told['subnet']} of {told['network']}, ends {_remaining(expires)}"
    yield "store", "connected" if store["connected"] else f"lost: {store['trouble']}"
    yield "peers", f"{peers['desired']} desired, {peers['programmed']} programmed"
    troubles = {**peers["refused"], **(told["fast_path"] or {}).get("troubles", {})}
    if lease["trouble"]:
        troubles["lease"] = lease["trouble"]
    if told["skipped_records"]:
        troubles["store"] = f"{told['skipped_records']} records skipped so far"
    for what, why in troubles.items():
        yield "warning", f"{what}: {why}"


def _share(verdicts: Mapping[str, Mapping[str, int]]) -> str:
    """Return which part of the tunnel's packets took the fast path, both directions."""
    sent, received = verdicts.get("from_pod", {}), verdicts.get("from_uplink", {})
    routed = verdicts.get("to_overlay", {})
    fast = sent.get("fast", 0) + received.get("fast", 0)
    slow = sum(routed.values()) - routed.get("unrelated", 0)
    slow += sum(received.values()) - received.get("fast", 0)
    total = fast + slow
    return f"{100 * fast / total:.1f} % of {total:,} tunnel packets" if total else "no packets yet"


def _print_table(rows: Sequence[Mapping[str, object]]) -> None:
    header = ["SUBNET", "NODE", "BACKEND", "NODE ID", "EXPIRES"]
    lines = [header] + [
        [
            str(row["subnet"]),
            str(row["public_ip"]),
            str(row["backend"]),
            str(row["node_id"] or "-"),
            _remaining(row["expires_in_seconds"]),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _remaining(seconds: object) -> str:
    if not isinstance(seconds, int):
        return "never"
    hours, rest = divmod(seconds, 3600)
    return f"in {hours} h {rest // 60:02d} min"


COMMANDS: Mapping[str, Command[Any]] = {
    "version": Command("print the version", NoFlags, version),
    "status": Command("show how this node's daemon is doing", StatusFlags, status),
    "leases": Command("list the leases of the network", LeasesFlags, leases),
    "cleanup": Command("remove everything of Kersey from this node", CleanupFlags, cleanup),
}
