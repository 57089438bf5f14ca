"""`kersey drops`: which packets its flags ask for, and how they are shown."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.cli.drops import Lines, Table, wanted_of
from kersey_control.cli.schema import DropsFlags
from kersey_control.flags import parse_flags
from kersey_control.verdicts import FORGED, SLOW, WORDS, forged_among
from kersey_loader.layout import Program, Verdict
from kersey_loader.watch import ANYWHERE, Told, Wanted

EVERY = frozenset(Verdict)
ONE = frozenset({Verdict.NOT_ADMITTED})
TWO = ONE | {Verdict.UNKNOWN_NODE}

PACKET = Told(
    time=1_700_000_000.25,
    program=Program.FROM_UPLINK,
    verdict=Verdict.UNKNOWN_NODE,
    dropped=True,
    outer_source=IPv4Address("198.18.0.99"),
    outer_destination=IPv4Address("198.18.0.11"),
    source=IPv4Address("10.244.2.10"),
    destination=IPv4Address("10.244.1.10"),
    protocol=17,
    source_port=80,
    destination_port=40000,
    length=96,
    device=1,
)
PLAIN = replace(
    PACKET,
    verdict=Verdict.PROTOCOL,
    dropped=False,
    outer_source=None,
    outer_destination=None,
    protocol=132,
    source_port=None,
    destination_port=None,
)
NOTHING_SHOWS = replace(PACKET, source=None, destination=None, protocol=None, source_port=None)


def wanted(*words: str) -> Wanted:
    return wanted_of(parse_flags(DropsFlags, words, {}).values)


@pytest.mark.parametrize(
    ("words", "dropped", "passed"),
    [
        ([], EVERY, FORGED),
        (["--slow"], EVERY, FORGED | SLOW),
        (["--reason=not-admitted"], ONE, ONE),
        (["--reason=not_admitted", "--reason=unknown_node"], TWO, TWO),
        (["--reason=not_admitted", "--slow"], ONE, SLOW),
    ],
)
def test_reasons_are_what_is_asked_for(
    words: list[str], dropped: frozenset[Verdict], passed: frozenset[Verdict]
) -> None:
    assert wanted(*words) == Wanted(dropped, passed, ANYWHERE, rate=20)


@pytest.mark.parametrize(
    ("peer", "within"), [("198.18.0.12", "198.18.0.12/32"), ("10.244.2.0/24", "10.244.2.0/24")]
)
def test_a_peer_is_a_node_a_pod_or_a_subnet(peer: str, within: str) -> None:
    assert wanted(f"--peer={peer}").within == IPv4Network(within)


def test_slow_are_neither_fast_nor_witnesses_nor_forged() -> None:
    others = {Verdict.FAST, Verdict.WITNESSED, Verdict.UNRELATED, Verdict.DECAPSULATED}
    assert set(Verdict) - FORGED - others == SLOW


def test_every_verdict_is_explained_in_words_of_its_own() -> None:
    assert set(WORDS) == set(Verdict)
    assert len(set(WORDS.values())) == len(WORDS)


def test_forged_packets_are_added_up_over_programs() -> None:
    counts = {"from_uplink": {"fast": 9, "unknown_node": 2}, "wire": {"unknown_node": 3}}
    assert forged_among(counts) == {"unknown_node": 5}


def test_a_table_explains_each_reason_once_and_says_what_it_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table(rate=100)
    table.begin()
    table.packet(PACKET)
    table.packet(PLAIN)
    table.hidden(0)
    table.hidden(1234)
    table.hidden(1234)
    table.packet(NOTHING_SHOWS)
    table.hidden(2000)
    table.end(2000)
    lines = capsys.readouterr().out.splitlines()
    header, first, second, third, *_ = (line for line in lines if line[0] != " ")
    assert header.split() == [
        *("TIME", "REASON", "FATE", "DEVICE", "TUNNEL", "PACKET", "PROTO", "BYTES")
    ]
    assert first.split(maxsplit=1)[1] == (
        "unknown_node    dropped  lo         198.18.0.99 > 198.18.0.11"
        "  10.244.2.10:80 > 10.244.1.10:40000     udp    96"
    )
    assert first.split()[0].endswith(".250")
    assert second.split()[2:] == [
        *("passed", "lo", "-", "10.244.2.10", ">", "10.244.1.10", "132", "96")
    ]
    assert third.split()[3:] == ["lo", "198.18.0.99", ">", "198.18.0.11", "-", "-", "96"]
    assert [line for line in lines if line[0] == " "] == [
        "  unknown_node: its sender is no node of this network (kersey peers)",
        "  protocol: neither TCP nor UDP",
        "  + 1,234 more not shown (--rate 100 a second on each CPU)",
        "  + 766 more not shown (--rate 100 a second on each CPU)",
    ]
    assert lines[-1] == "3 packets, 2,000 more not shown (--rate 100 a second on each CPU)"


def test_json_has_a_line_for_each_packet_and_one_with_the_sums(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines()
    lines.begin()
    lines.packet(PACKET)
    lines.packet(NOTHING_SHOWS)
    lines.hidden(5)
    lines.end(7)
    first, second, sums = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "time": 1_700_000_000.25,
        "reason": "unknown_node",
        "why": WORDS[Verdict.UNKNOWN_NODE],
        "dropped": True,
        "program": "from_uplink",
        "device": "lo",
        "outer_source": "198.18.0.99",
        "outer_destination": "198.18.0.11",
        "source": "10.244.2.10",
        "destination": "10.244.1.10",
        "protocol": "udp",
        "source_port": 80,
        "destination_port": 40000,
        "bytes": 96,
    }
    assert [second[name] for name in ("source", "destination", "protocol")] == [None] * 3
    assert sums == {"shown": 2, "not_shown": 7}
