"""The daemon: whether one runs, only one, and what it says is wrong."""

from collections.abc import Iterable, Iterator

from kersey_control.doctor.finding import Finding, error, listed, warning
from kersey_control.doctor.host import Host, Process
from kersey_control.node_view import NodeView
from kersey_control.told import ToldStatus

_NAME = "kerseyd"
_SILENT = 30.0


def check(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look for daemons, and ask ours."""
    daemons = [process for process in host.processes if process.name == _NAME]
    yield from judge_number(daemons, ours=view.told.pid if view.told else 0)
    if view.told is None:
        yield from judge_silence(view.silence, daemons, is_stopped=view.is_stopped)
    else:
        yield from judge_state(view.told)


def judge_number(daemons: list[Process], *, ours: int) -> Iterator[Finding]:
    """Say whether several daemons run in one network namespace."""
    if len(daemons) > 1:
        pids = listed([str(process.pid) for process in daemons])
        others = [process for process in daemons if process.pid != ours]
        yield warning(
            f"{len(daemons)} kerseyd run in this network namespace (pids {pids})",
            "unless each has a network, a VNI and a --subnet-file of its own, they take the device"
            " from each other",
            f"kill {others[0].pid}; its command line is {others[0].command!r}",
        )


def judge_silence(
    silence: str, daemons: Iterable[Process], *, is_stopped: bool
) -> Iterator[Finding]:
    """Say that nobody answers, and why that may be."""
    pids = [str(process.pid) for process in daemons]
    if pids:
        yield error(
            f"{silence}, but kerseyd runs as pid {listed(pids)}",
            "nothing of what it knows can be shown",
            "name the --state-dir that it has, or run this as root",
        )
    elif is_stopped:
        yield error(
            silence,
            "the kernel goes on forwarding as it was left; new nodes stay unknown, damage stays,"
            " and the lease ends within a day",
            "start it (systemctl start kerseyd), and look into its log if it does not stay",
        )


def judge_state(told: ToldStatus) -> Iterator[Finding]:
    """Say what the daemon itself reports."""
    if told.silent_seconds > _SILENT:
        yield error(
            f"kerseyd's control loop has been silent for {told.silent_seconds:.0f} s",
            "it hangs: changes are not followed",
            f"kill {told.pid}; its service manager starts it again, packets go on meanwhile",
        )
    if not told.ready:
        reason = told.store.trouble or told.lease.trouble or "the first snapshot is not there yet"
        yield error(
            f"kerseyd is not ready: {reason}",
            "peers are not programmed yet, apart from what an earlier run left",
            "mend what is named; kerseyd goes on by itself",
        )
    elif told.lease.trouble:
        yield error(
            f"our lease: {told.lease.trouble}",
            "without a lease other nodes forget the way to our pods",
            "kersey leases shows who holds what",
        )
    if told.probes_trouble:
        yield warning(
            f"peers are not asked whether they answer: {told.probes_trouble}",
            "a peer that is programmed but cannot be reached goes unnoticed",
            "end who holds the port, or give all nodes another --probe-port; 0 as --probe-interval"
            " switches probes off",
        )
    if told.skipped_records:
        yield warning(
            f"{told.skipped_records} records in the lease store could not be read",
            "the nodes that they are of cannot be reached",
            "kersey leases names each of them",
        )


def judge_peers(told: ToldStatus) -> Iterator[Finding]:
    """Say which peers are not in the kernel."""
    for subnet, reason in told.peers.refused.items():
        yield error(
            f"peer {subnet} is not programmed: {reason}",
            "its pods cannot be reached from here",
            "correct that node's lease (kersey leases); the daemon tries again by itself",
        )


def check_peers(view: NodeView) -> Iterator[Finding]:
    """Ask which peers are not in the kernel."""
    if view.told is not None:
        yield from judge_peers(view.told)
