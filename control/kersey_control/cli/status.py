"""`kersey status`: how this node does, on one screen, from the kernel where no daemon runs."""

import sys
import time
from collections.abc import Iterator

from kersey_control.cli.command import NodeFlags
from kersey_control.cli.share import fast_and_slow, share_text
from kersey_control.cli.text import print_json, remaining
from kersey_control.doctor.finding import listed
from kersey_control.errors import KernelError
from kersey_control.node_view import NodeView, read_peers, view_node
from kersey_control.silence import name_of, one_way
from kersey_control.status_socket import ask_status
from kersey_control.told import ToldStatus, builtins
from kersey_control.verdicts import forged_among

SILENT = 5.0
"""Seconds without a turn of the control loop that are worth a word; it turns once a second."""

_MOST_PEERS = 5


def run(flags: NodeFlags) -> int:
    """Print the state; 1 if no daemon answers."""
    if flags.json:
        print_json(builtins(ask_status(flags.state_dir)))
        return 0
    view = view_node(flags)
    lines = _left(view) if view.told is None else status_lines(view.told, now=time.time())
    for name, line in lines:
        print(f"{name:10} {line}".rstrip())
    if view.told is None:
        print(f"kersey: {view.silence}", file=sys.stderr)
    return 1 if view.told is None else 0


def status_lines(told: ToldStatus, *, now: float) -> Iterator[tuple[str, str]]:
    """Yield names and lines, what is wrong at the end; `now` in seconds since the epoch."""
    ready = "ready" if told.ready else "not ready yet"
    yield "daemon", f"kerseyd {told.version}, {ready}, pid {told.pid}"
    yield "datapath", f"{told.datapath.mode}: {told.datapath.reason}"
    if told.fast_path is not None:
        share = share_text(*fast_and_slow(told.fast_path.verdicts))
        yield "fast path", f"{share}, admission {told.options.admission}"
        forged = sum(forged_among(told.fast_path.verdicts).values())
        if forged:
            yield "forged", f"{forged:,} tunnel packets so far (kersey drops shows them live)"
        if told.fast_path.xdp is not None:
            yield "xdp", f"{told.fast_path.xdp.mode}: {told.fast_path.xdp.reason}"
    if told.uplink is not None:
        at = f"{told.uplink.interface} {told.uplink.address}, MTU {told.uplink.mtu}"
        yield "uplink", f"{at} ({told.uplink.reason})"
    if told.backend:
        device = f" by {told.device}" if told.device else ""
        yield "backend", f"{told.backend}{device}, pods' MTU {told.mtu}"
    if told.subnet is not None:
        ends = told.lease.expires_at and told.lease.expires_at - now
        yield "lease", f"{told.subnet} of {told.network}, ends {remaining(ends)}"
    yield "store", _store(told)
    peers = told.peers
    failing = f", {len(peers.refused)} failing" if peers.refused else ""
    yield "peers", f"{peers.desired} desired, {peers.programmed} programmed{failing}"
    for subnet, why in list(peers.refused.items())[:_MOST_PEERS]:
        yield "failing", f"{subnet}: {why}"
    if len(peers.refused) > _MOST_PEERS:
        yield "failing", f"and {len(peers.refused) - _MOST_PEERS} more (kersey peers)"
    for what, why in _warnings(told):
        yield "warning", f"{what}: {why}"


def _store(told: ToldStatus) -> str:
    where = ", ".join(told.options.etcd_endpoints) or told.options.store
    return f"connected ({where})" if told.store.connected else f"lost: {told.store.trouble}"


def _warnings(told: ToldStatus) -> Iterator[tuple[str, str]]:
    yield from _silence(told)
    if told.silent_seconds > SILENT:
        yield "daemon", f"the control loop has been silent for {told.silent_seconds:.0f} s"
    if told.fast_path is not None:
        yield from told.fast_path.troubles.items()
    if told.lease.trouble:
        yield "lease", told.lease.trouble
    if told.skipped_records:
        yield "store", f"{told.skipped_records} records skipped so far"


def _silence(told: ToldStatus) -> Iterator[tuple[str, str]]:
    """Yield which programmed peers do not answer, those that hear or are heard one by one."""
    if told.probes_trouble:
        yield "probes", f"peers are not asked whether they answer: {told.probes_trouble}"
    silent = [each for each in told.peers.silent if each.one_way is None]
    if silent:
        names = listed([name_of(each) for each in silent], _MOST_PEERS)
        yield (
            "silent",
            f"{len(silent)} of {told.peers.desired} peers programmed, no answer: {names}",
        )
    lines = [
        one_way(each, each.one_way, tunnel=told.tunnel)
        for each in told.peers.silent
        if each.one_way is not None
    ]
    if len(lines) > _MOST_PEERS:
        lines[_MOST_PEERS:] = [f"and {len(lines) - _MOST_PEERS} more (kersey peers)"]
    for line in lines:
        yield "one way", line


def _left(view: NodeView) -> Iterator[tuple[str, str]]:
    """Yield what an ended daemon left, which goes on forwarding."""
    yield "daemon", "none runs; the kernel forwards by what the last one left:"
    if view.overlay is not None:
        state = "up" if view.overlay.up else "down"
        yield "backend", f"{view.backend} by {view.overlay.name}, {state}, MTU {view.overlay.mtu}"
    if view.programs is not None:
        yield "fast path", f"programs pinned in {view.pins}, admission {_admission(view)}"
    else:
        yield "fast path", f"none: {view.pins_trouble}"
    if view.subnet is not None:
        yield "subnet", f"{view.subnet} of {view.network}"
    try:
        peers = read_peers(view)
    except KernelError as error:
        yield "peers", f"cannot be read: {error}"
    else:
        whole = sum(peer.condition == "programmed" for peer in peers)
        yield "peers", f"{len(peers)} left, {whole} of them whole"


def _admission(view: NodeView) -> str:
    return view.programs.admission.name.lower() if view.programs else "unknown"
