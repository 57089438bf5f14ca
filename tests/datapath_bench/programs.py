"""What Kersey's programs and its flow map cost: run time from the kernel, flows put in by hand.

The kernel measures programs only while a descriptor asks for it (BPF_ENABLE_STATS, kernel 5.8),
which ends with this process however it ends: the sysctl of the same name is not touched.
"""

import contextlib
import ctypes
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from random import Random

from kersey_loader import bpf
from kersey_loader.datapath import Datapath
from kersey_loader.layout import Flow, FlowKey, Program

from datapath_bench.figures import FlowSize, Load, ProgramCost
from datapath_bench.loads import Loads
from datapath_bench.variants import Site

FLOW_SIZES = (1, 10_000, 1_000_000)
FLOW_LOAD = Load.TCP_RR
COSTED = (Load.TCP_RR, Load.UDP_RR, Load.TCP_STREAM)
_ENABLE_STATS = 32
_RUN_TIME = 0
_ROOM = 1 << 21  # an LRU map evicts before it is full
_BASE_FLOWS = 1
"""The load's own flow."""


@contextlib.contextmanager
def _measured_programs() -> Iterator[None]:
    descriptor = bpf._bpf("measure programs", _ENABLE_STATS, bpf._attr("I", _RUN_TIME))
    try:
        yield
    finally:
        os.close(descriptor)


def _runs(site: Site) -> dict[Program, tuple[int, int]]:
    """Return nanoseconds and runs of each program, both nodes together."""
    totals = {}
    for program in Program:
        infos = [datapath.program_info(program) for datapath in site.datapaths]
        totals[program] = sum(i.run_time_ns for i in infos), sum(i.run_count for i in infos)
    return totals


def program_costs(loads: Loads, site: Site, *, rounds: int, seconds: float) -> list[ProgramCost]:
    """Return what each program that ran cost under each load. Not while rates are measured."""
    found: dict[tuple[Load, Program], list[tuple[int, float]]] = defaultdict(list)
    with _measured_programs():
        for load in [load for load in COSTED if load in loads.kinds] * rounds:
            before = _runs(site)
            loads.measure(site.variant, load, seconds=seconds)
            for program, runs, nanoseconds in _differences(before, _runs(site)):
                found[load, program].append((runs, nanoseconds))
    return [
        ProgramCost(
            load,
            program.function,
            runs=sum(runs for runs, _ in taken),
            nanoseconds=statistics.median(nanoseconds for _, nanoseconds in taken),
        )
        for (load, program), taken in found.items()
    ]


def _differences(
    before: dict[Program, tuple[int, int]], after: dict[Program, tuple[int, int]]
) -> Iterator[tuple[Program, int, float]]:
    """Yield runs and nanoseconds a run of each program that ran in between."""
    for program, (time, runs) in after.items():
        spent, ran = time - before[program][0], runs - before[program][1]
        if ran:
            yield program, ran, spent / ran


def flow_sizes(loads: Loads, site: Site, *, rounds: int, seconds: float) -> Iterator[FlowSize]:
    """Yield round trips for each number of flows in maps that are large enough for all."""
    values: dict[int, list[float]] = {size: [] for size in FLOW_SIZES}
    with site.with_room_for(_ROOM) as roomy:
        loads.warm_up(site.variant)
        for _ in range(rounds):
            for size in FLOW_SIZES:
                with _filled(roomy, size - _BASE_FLOWS):
                    sample = loads.measure(site.variant, FLOW_LOAD, seconds=seconds)
                values[size].append(sample.value)
    for size in FLOW_SIZES:
        yield FlowSize(size, tuple(values[size]), "")


@contextlib.contextmanager
def _filled(site: Site, count: int) -> Iterator[None]:
    """Have `count` flows that never were in the maps of both nodes, and take them out again."""
    for datapath in site.datapaths:
        datapath.maps["flows"].update_all(_strange_flows(count))
    try:
        yield
    finally:
        for datapath in site.datapaths:
            _empty(datapath)


def _empty(datapath: Datapath) -> None:
    flows = datapath.maps["flows"]
    for key in list(flows):
        flows.delete(key)


def _strange_flows(count: int) -> Iterator[tuple[bytes, bytes]]:
    # Never admitted: stamps of 0. The same at each call, and no two alike but by the rarest chance.
    random, value = Random(count), bytes(Flow())
    for _ in range(count):
        key = FlowKey.from_buffer_copy(random.randbytes(ctypes.sizeof(FlowKey)))
        key.direction = key.reserved = 0
        yield bytes(key), value
