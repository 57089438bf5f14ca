"""What an entry of the flow map says, told as the programs would judge its next packet."""

from ipaddress import IPv4Address

import pytest
from kersey_loader.datapath import Clock
from kersey_loader.layout import Address, Admission, Config, Flow, FlowKey, Verdict
from kersey_loader.view import view_flow

NOW = Clock(jiffies=(1 << 32) + 5000, hertz=250)  # past what a u32 of jiffies could say
GENERATION = 7
PORTS = frozenset({5})
MAX_AGE = 5 * 250


def stamp(age: float, generation: int = GENERATION) -> int:
    return generation << 48 | (NOW.jiffies - round(age * NOW.hertz))


def config(admission: Admission = Admission.STRICT) -> Config:
    return Config(generation=GENERATION, max_age=MAX_AGE, hertz=250, admission=admission)


def flow(**changes: int) -> Flow:
    fields = {"egress": stamp(1), "ingress": stamp(2), "egress_port": 5, "ingress_port": 5}
    return Flow(**(fields | changes))


KEY = FlowKey(
    local=Address(10, 244, 1, 2),
    remote=Address(10, 244, 2, 9),
    local_port=(0x9C, 0x40),
    remote_port=(0, 80),
    protocol=17,
)


@pytest.mark.parametrize(
    ("changes", "verdict", "ages"),
    [
        ({}, Verdict.FAST, (1, 2)),
        ({"egress": 0}, Verdict.NOT_ADMITTED, (None, 2)),
        ({"ingress": 0}, Verdict.NOT_ADMITTED, (1, None)),
        ({"egress": stamp(1, GENERATION - 1)}, Verdict.FLUSHED, (None, 2)),
        ({"ingress": stamp(2, GENERATION + 1)}, Verdict.FLUSHED, (1, None)),
        ({"egress_port": 6}, Verdict.OTHER_PORT, (1, 2)),
        ({"egress_port": 6, "ingress_port": 6}, Verdict.PORT_GONE, (1, 2)),
        ({"egress": stamp(5)}, Verdict.FAST, (5, 2)),
        ({"egress": stamp(5.1)}, Verdict.STALE, (5.1, 2)),
        ({"ingress": stamp(600)}, Verdict.STALE, (1, 600)),
        ({"ingress": stamp(600), "direct": 1}, Verdict.FAST, (1, 600)),
        ({"egress": stamp(-0.1)}, Verdict.FAST, (0, 2)),
    ],
)
def test_a_flow_is_judged_as_the_programs_do(
    changes: dict[str, int], verdict: Verdict, ages: tuple[float | None, float | None]
) -> None:
    seen = view_flow(KEY, flow(**changes), config(), now=NOW, ports=PORTS)
    assert seen.verdict is verdict
    assert seen.is_fast is (verdict is Verdict.FAST)
    assert (seen.egress_age, seen.ingress_age) == pytest.approx(ages, abs=0.005)


def test_no_flow_is_fast_without_admission() -> None:
    seen = view_flow(KEY, flow(), config(Admission.OFF), now=NOW, ports=PORTS)
    assert seen.verdict is Verdict.ADMISSION_OFF


def test_addresses_and_ports_are_read_in_network_byte_order() -> None:
    seen = view_flow(KEY, flow(egress_port=0), config(), now=NOW, ports=PORTS)
    assert (seen.local, seen.local_port) == (IPv4Address("10.244.1.2"), 40000)
    assert (seen.remote, seen.remote_port) == (IPv4Address("10.244.2.9"), 80)
    assert (seen.protocol, seen.port) == (17, 5)


def test_the_age_of_a_flow_is_that_of_its_latest_witness() -> None:
    assert view_flow(KEY, flow(), config(), now=NOW, ports=PORTS).age == pytest.approx(1, abs=0.01)
    void = flow(egress=0, ingress=0)
    assert view_flow(KEY, void, config(), now=NOW, ports=PORTS).age == float("inf")
