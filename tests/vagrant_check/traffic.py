"""Datagrams between pods of all machines, in a ring.

They tell the fast path's share, and what a restart of the daemons costs.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kersey_control.cli.share import fast_and_slow, share_text

from vagrant_check.machine import Machine, MachineError, Running, python
from vagrant_check.node import Node, Pod, Verdicts, ask, first_pods
from vagrant_check.row import Row

_SOURCE = (Path(__file__).parent / "echo_load.py").read_text()
_PORT = 5007
_RATE = 200
"""Datagrams a second in each stream; few, since emulated machines have to keep up."""

_GOES_ON = "/run/vagrant-check"
"""While this file is there, pods send; what comes is sent back while there is one with .echo."""

_WAIT_FOR_FLOW = (
    f"for _ in $(seq 600); do [ ! -e {_GOES_ON}.flows ] || exit 0; sleep 0.1; done;"
    " echo 'its datagrams were not answered for a minute' >&2; exit 1"
)
_PINGS = re.compile(r"(\d+) packets transmitted, (\d+) received")


@dataclass(slots=True)
class Stream:
    """Datagrams, and where asked for pings, from one pod to another under way."""

    source: Pod
    target: Pod
    sending: Running
    pinging: Running | None

    def report(self, check: str) -> Row:
        """Return what was lost, after the end. Raises MachineError."""
        told: Mapping[str, float] = json.loads(self.sending.result())
        figures = {f"datagrams_{name}": value for name, value in told.items()}
        words = f"{told['lost']:,} of {told['sent']:,} datagrams"
        if self.pinging is not None:
            sent, lost = _pings(self.pinging.result())
            figures |= {"pings_sent": sent, "pings_lost": lost}
            words += f" and {lost:,} of {sent:,} pings"
        well = told["sent"] > 0 and not told["lost"] and not figures.get("pings_lost")
        words += f" lost, longest gap {told['longest_gap_ms']:g} ms"
        return Row(check, f"{self.source} to {self.target}", well, words, figures)


def share_rows(nodes: Sequence[Node], *, seconds: float, least: float) -> list[Row]:
    """Return for each node which part of the datagrams' packets took the fast path.

    Raises MachineError.
    """
    with ring(nodes, pings=False):
        before = _verdicts(nodes)
        time.sleep(seconds)
        after = _verdicts(nodes)
    return [
        _share_row(node, earlier, later, least)
        for node, earlier, later in zip(nodes, before, after, strict=True)
    ]


def restart_rows(nodes: Sequence[Node], *, seconds: float) -> list[Row]:
    """Restart all daemons, one after the other, under datagrams and pings; return what was lost.

    Raises MachineError.
    """
    return loss_rows("restart", nodes, "systemctl restart kersey", seconds=seconds)


def loss_rows(check: str, nodes: Sequence[Node], script: str, *, seconds: float) -> list[Row]:
    """Run shell lines on all machines, one after the other, under datagrams and pings.

    Returns what was lost of each stream. Raises MachineError.
    """
    with ring(nodes, pings=True) as streams:
        time.sleep(seconds / 2)
        for node in nodes:
            node.machine.run(script)
        time.sleep(seconds / 2)
        _end_sending([stream.source.machine for stream in streams])
        return [stream.report(check) for stream in streams]


@contextmanager
def ring(nodes: Sequence[Node], *, pings: bool) -> Iterator[list[Stream]]:
    """Have each node's first pod send to the next node's while the block runs."""
    pods = first_pods(nodes)
    machines = [pod.machine for pod in pods]
    for machine in machines:
        machine.run(f"rm -f {_GOES_ON}*; touch {_GOES_ON} {_GOES_ON}.echo")
    with ExitStack() as opened:
        try:
            for pod in pods:
                opened.enter_context(_in_pod(pod, "echo", str(_PORT), f"{_GOES_ON}.echo"))
            streams = [
                opened.enter_context(_stream(source, target, pings=pings))
                for source, target in zip(pods, [*pods[1:], pods[0]], strict=True)
            ]
            for machine in machines:
                machine.run(_WAIT_FOR_FLOW)
            yield streams
        finally:
            for machine in machines:
                machine.run(f"rm -f {_GOES_ON}*")


@contextmanager
def _stream(source: Pod, target: Pod, *, pings: bool) -> Iterator[Stream]:
    with ExitStack() as opened:
        sending = _in_pod(source, "send", target.address, str(_PORT), str(_RATE), _GOES_ON)
        stream = Stream(source, target, opened.enter_context(sending), None)
        if pings:
            stream.pinging = opened.enter_context(_ping(source, target))
        yield stream


@contextmanager
def _in_pod(pod: Pod, *arguments: str) -> Iterator[Running]:
    program = python(_SOURCE, *arguments, str(pod.machine.timeout))
    with pod.machine.start(f"exec ip netns exec {pod.name} {program}") as running:
        yield running


@contextmanager
def _ping(source: Pod, target: Pod) -> Iterator[Running]:
    limit = int(source.machine.timeout)
    script = (  # interrupted, ping prints its summary
        f"ip netns exec {source.name} ping -n -q -i 0.02 -w {limit} {target.address} & ping=$!;"
        f" while [ -e {_GOES_ON} ] && kill -0 $ping 2>/dev/null; do sleep 0.2; done;"
        " kill -INT $ping; wait $ping; true"
    )
    with source.machine.start(script) as running:
        yield running


def _pings(summary: str) -> tuple[int, int]:
    """Return pings sent and lost; the last one may be under way at the end, and is not counted."""
    counts = _PINGS.search(summary)
    if counts is None:
        raise MachineError(f"ping said {summary!r}")
    sent, received = int(counts[1]), int(counts[2])
    return sent, max(0, sent - received - 1) if sent > received else 0


def _end_sending(machines: Sequence[Machine]) -> None:
    """End all senders, and let them wait for the last replies before what replies ends."""
    for machine in machines:
        machine.run(f"rm -f {_GOES_ON}")


def _verdicts(nodes: Sequence[Node]) -> list[Verdicts | None]:
    with ThreadPoolExecutor(len(nodes)) as pool:
        return [node.verdicts for node in pool.map(ask, [node.machine for node in nodes])]


def _share_row(node: Node, earlier: Verdicts | None, later: Verdicts | None, least: float) -> Row:
    name = node.machine.name
    if earlier is None or later is None:
        reason = node.status["datapath"]["reason"]
        return Row("fast path", name, ok=True, result=f"none: {reason}", figures={"share": 0})
    (fast, slow), (fast_before, slow_before) = fast_and_slow(later), fast_and_slow(earlier)
    fast, slow = fast - fast_before, slow - slow_before
    share = fast / (fast + slow) if fast + slow else 0.0
    return Row(
        "fast path",
        name,
        ok=share >= least,
        result=share_text(fast, slow),
        figures={"share": round(share, 4), "fast": fast, "slow": slow},
    )
