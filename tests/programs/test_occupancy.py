"""How full the maps are and which flows count as admitted, where the programs know the truth."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from threading import Thread

import packets as p
import pytest
from bpf_lab import GATEWAY_MAC, POD, POD_MAC, REMOTE, Lab, Tuple5
from kersey_loader.datapath import load
from kersey_loader.errors import BpfError
from kersey_loader.layout import Flow, Program, Verdict
from kersey_loader.occupancy import measure

FLOW = Tuple5()


def changed(lab: Lab, **fields: int) -> None:
    """Write the flow with these amounts added to its fields."""
    known = lab.flow(FLOW)
    assert known is not None
    for name, amount in fields.items():
        setattr(known, name, getattr(known, name) + amount)
    lab.datapath.maps["flows"].update(FLOW.key(), bytes(known))


def as_direct(lab: Lab, *, age: float | None) -> None:
    lab.admit(FLOW, egress_age=age, ingress_age=age)
    changed(lab, direct=1)


def across_generations(lab: Lab, *, direct: int = 0, **fields: int) -> None:
    lab.admit(FLOW)
    changed(lab, direct=direct, **{name: by << 48 for name, by in fields.items()})


ROWS: dict[str, tuple[Callable[[Lab], None], bool]] = {
    "both directions just now": (lambda lab: lab.admit(FLOW), True),
    "both a while ago": (lambda lab: lab.admit(FLOW, egress_age=3, ingress_age=4), True),
    "only sent": (lambda lab: lab.admit(FLOW, ingress_age=None), False),
    "only received": (lambda lab: lab.admit(FLOW, egress_age=None), False),
    "sent too long ago": (lambda lab: lab.admit(FLOW, egress_age=6), False),
    "received too long ago": (lambda lab: lab.admit(FLOW, ingress_age=6), False),
    "sent in an earlier generation": (lambda lab: across_generations(lab, egress=-1), False),
    "received in an earlier one": (lambda lab: across_generations(lab, ingress=-1), False),
    "sent in a later generation": (lambda lab: across_generations(lab, egress=1), False),
    "received in a later one": (lambda lab: across_generations(lab, ingress=1), False),
    "two ports": (lambda lab: lab.admit(FLOW, egress_port=lab.other_port), False),
    "direct, long ago": (lambda lab: as_direct(lab, age=60), True),
    "direct, sent in an earlier generation": (
        lambda lab: across_generations(lab, direct=1, egress=-1),
        False,
    ),
    "direct, received in an earlier one": (
        lambda lab: across_generations(lab, direct=1, ingress=-1),
        False,
    ),
    "direct, forgotten": (lambda lab: as_direct(lab, age=None), False),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_flow_counts_as_admitted_exactly_when_the_program_takes_its_packet(
    lab: Lab, row: str
) -> None:
    lab.datapath.flush()  # there is an earlier generation
    prepare, admitted = ROWS[row]
    prepare(lab)
    assert measure(lab.datapath).admitted_flows == admitted
    packet = p.ipv4(p.udp(b"ping", src=40000, dst=80), src=POD, dst=REMOTE)
    frame = p.ethernet(packet, dst=GATEWAY_MAC, src=POD_MAC)
    verdicts = lab.run(Program.FROM_POD, frame, device=lab.port).counted
    assert (verdicts == (Verdict.FAST,)) is admitted


def many(count: int) -> Iterator[bytes]:
    return (replace(FLOW, local_port=1 + number).key() for number in range(count))


@pytest.mark.parametrize("count", [0, 1, 2047, 2048, 2049, 20_000])
def test_every_element_is_counted_once_however_many_there_are(lab: Lab, count: int) -> None:
    lab.datapath.maps["flows"].update_all((key, bytes(Flow())) for key in many(count))
    found = measure(lab.datapath)
    assert found.maps["flows"].entries == count
    assert found.maps["flows"].max_entries == 65536
    assert found.admitted_flows == 0


def test_each_map_is_counted_for_itself(lab: Lab) -> None:
    maps = lab.datapath.maps
    sightings, endpoints = maps["sightings"].spec, maps["endpoints"].spec
    for key in many(3):
        maps["sightings"].update(key, bytes(sightings.value_size))
    maps["endpoints"].update(b"\x0a\xf4\x01\x0a", bytes(endpoints.value_size))
    uses = measure(lab.datapath).maps
    assert {name: use.entries for name, use in uses.items()} == {
        "flows": 0,
        "sightings": 3,
        "endpoints": 1,
        "nodes": 3,
        "pod_ports": 2,
    }


def test_counting_goes_on_while_flows_come_and_go(lab: Lab) -> None:
    flows, stop = lab.datapath.maps["flows"], False

    def churn() -> None:
        while not stop:
            flows.update_all((key, bytes(Flow())) for key in many(3000))
            for key in many(3000):
                flows.delete(key)

    churning = Thread(target=churn)
    churning.start()
    try:
        counts = [measure(lab.datapath).maps["flows"].entries for _ in range(50)]
    finally:
        stop = True
        churning.join()
    assert all(0 <= count <= 3000 for count in counts), counts


def test_reading_a_closed_datapath_is_an_error_of_the_loader(lab: Lab) -> None:
    with load(lab.datapath._settings) as datapath:
        assert measure(datapath).maps["nodes"].entries == 3
    for read in (partial(measure, datapath), datapath.traffic, datapath.counters):
        with pytest.raises(BpfError, match="Bad file descriptor"):
            read()
