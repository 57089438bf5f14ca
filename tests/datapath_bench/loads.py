"""Runs one load over one way, both ends on one CPU.

The benchmark has a small tool of its own. sockperf's round trips are as good, but a second of it
takes three of which half a one counts, it makes no connections, and its one-way rate is what was
sent, not what arrived. iperf3 reaches half the rate of plain writes where both ends share a CPU and
hides the packets' cost behind its own; it is measured all the same, as everyone knows it.
"""

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from testbed import Process, wait_until

from datapath_bench.figures import Load, Sample, Variant
from datapath_bench.machine import CpuTime, is_quiet
from datapath_bench.variants import Way

_SOURCE = Path(__file__).with_name("load.c")
_PORTS = {
    "tcp_server": 7000,
    "udp_server": 7000,
    "tcp_sink": 7001,
    "udp_sink": 7001,
    "iperf3": 7002,
}
_NICE = "-10"
"""So that what else runs on the machine gets a tenth of the CPU instead of half of it."""

_WORDS = {
    Load.TCP_RR: ("tcp_rr", "tcp_server"),
    Load.TCP_CRR: ("tcp_crr", "tcp_server"),
    Load.UDP_RR: ("udp_rr", "udp_server"),
    Load.TCP_STREAM: ("tcp_stream", "tcp_sink"),
    Load.IPERF3: ("iperf3", "iperf3"),
    Load.UDP_RATE: ("udp_rate", "udp_sink"),
}
"""The tool's word for a load, and for the server that it goes to."""

_QUIET = 0.25
_TRIES = 3
_SLACK = 30.0


@dataclass(frozen=True, slots=True)
class _Done:
    value: float
    seconds: float


class Loads:
    """The tool, compiled, and what `kinds` need of servers on every way, from entering to leaving.

    A measurement begins when the machine is quiet, or after `patience` seconds.
    """

    def __init__(
        self,
        ways: Mapping[Variant, Way],
        *,
        cpu: int,
        patience: float,
        kinds: Sequence[Load] = tuple(Load),
    ) -> None:
        self.kinds = kinds
        self._ways = ways
        self._cpu = cpu
        self._patience = patience
        self._stack = contextlib.ExitStack()
        self._directory = Path()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._directory = Path(tempfile.mkdtemp(prefix="kersey-bench-"))
            stack.callback(shutil.rmtree, self._directory)
            _compile(_SOURCE, self._tool)
            started = [
                stack.enter_context(self._server(way, kind))
                for way in self._ways.values()
                for kind in dict.fromkeys(_WORDS[load][1] for load in self.kinds)
            ]
            for server in started:
                _wait_serving(server)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    @property
    def _tool(self) -> Path:
        return self._directory / "load"

    @property
    def variants(self) -> list[Variant]:
        """Return the variants that can be measured."""
        return list(self._ways)

    def _pinned(self, *command: str | Path) -> list[str | Path]:
        return ["nice", "-n", _NICE, "taskset", "-c", str(self._cpu), *command]

    def _server(self, way: Way, kind: str) -> Process:
        address, port = str(way.address), str(_PORTS[kind])
        if kind == "iperf3":
            options = "--server", "--bind", address, "--port", port, "--forceflush"
            command = self._pinned(kind, *options)
        else:
            command = self._pinned(self._tool, kind, address, port)
        log = self._directory / f"{way.variant.name}-{kind}.log"
        return Process(way.server, command, log=log)

    def warm_up(self, variant: Variant) -> None:
        """Send a little of everything, so that no measurement pays for what is only once."""
        for load in self.kinds:
            if load is not Load.IPERF3:  # a second at least, and a stream has been sent by then
                self._run(self._ways[variant], load, seconds=0.1)

    def measure(self, variant: Variant, load: Load, *, seconds: float) -> Sample:
        """Return a sample; one that the hypervisor disturbed only if so are all tries."""
        for _ in range(_TRIES):
            sample = self._measure(self._ways[variant], load, seconds=seconds)
            if not sample.is_disturbed:
                break
        return sample

    def _measure(self, way: Way, load: Load, *, seconds: float) -> Sample:
        quiet = is_quiet(limit=_QUIET, patience=self._patience)
        way.site.forget_connections()
        verdicts, before = way.site.verdicts(), CpuTime.now(f"cpu{self._cpu}")
        done = self._run(way, load, seconds=seconds)
        used = CpuTime.now(f"cpu{self._cpu}") - before
        return Sample(
            value=done.value,
            seconds=done.seconds,
            cpu=used.busy,
            steal=used.steal,
            quiet=quiet,
            fast=way.site.fast_since(verdicts),
        )

    def _run(self, way: Way, load: Load, *, seconds: float) -> _Done:
        if load is Load.IPERF3:
            return self._iperf3(way, seconds=seconds)
        (word, server), duration = _WORDS[load], str(round(1000 * seconds))
        target = str(way.address), str(_PORTS[server])
        command = self._pinned(self._tool, word, *target, duration)
        raw = json.loads(way.client.run(*command, timeout=seconds + _SLACK).stdout)
        gigabits = 8e-9 if load is Load.TCP_STREAM else 1.0
        return _Done(gigabits * raw["count"] / raw["seconds"], raw["seconds"])

    def _iperf3(self, way: Way, *, seconds: float) -> _Done:
        # The machine's own choice may be BBR, whose pacing hides the datapath.
        options = ["--congestion", "cubic", "--length", "65536", "--json"]
        target = ["--client", str(way.address), "--port", str(_PORTS["iperf3"])]
        amount = ["--time", str(max(1, round(seconds)))]
        command = self._pinned("iperf3", *target, *amount, *options)
        raw = json.loads(way.client.run(*command, timeout=seconds + _SLACK).stdout)
        received = raw["end"]["sum_received"]
        return _Done(received["bits_per_second"] / 1e9, received["seconds"])


def _compile(source: Path, target: Path) -> None:
    subprocess.run(["tcc", "-Wall", "-Werror", "-o", target, source], check=True)


def _wait_serving(server: Process) -> None:
    def is_serving() -> bool:
        text = server.log.read_text(errors="replace")
        return "ready" in text or "listening" in text

    wait_until(is_serving, timeout=10, what=f"{server.log.stem} serves")
