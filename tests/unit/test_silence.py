"""What probes found, as it reaches an operator: status, peers, doctor, socket and metrics."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec
import pytest
from kersey_control.cli.peers import reach_cells
from kersey_control.cli.status import status_lines
from kersey_control.doctor import daemons, reach
from kersey_control.doctor.finding import Finding, Severity
from kersey_control.metrics.collector import StatusCollector
from kersey_control.metrics.peers import reach_text
from kersey_control.metrics.readings import Reader, Readings
from kersey_control.peer import Peer, Via
from kersey_control.reach import Answering, Means, OneWay, Reach
from kersey_control.status import PeerState, ProbeCounts, Status
from kersey_control.status_socket import describe, describe_peers
from kersey_control.told import ToldOptions, ToldPeers, ToldReach, ToldSilent, ToldStatus, builtins
from operator_values import node_view
from prometheus_client import CollectorRegistry, generate_latest

SUBNETS = [IPv4Network(f"10.244.{number}.0/24") for number in range(1, 9)]
SILENT = Reach(Answering.SILENT, loss=1.0, asked=IPv4Address("10.244.1.0"))
WELL = Reach(
    Answering.ANSWERS,
    round_trip=0.0005,
    loss=0.25,
    loss_out=0.125,
    loss_in=0.0,
    answered_at=1.0,
    asked=IPv4Address("10.244.1.0"),
)


def silent(number: int, way: OneWay | None = None, via: Via = Via.VXLAN) -> ToldSilent:
    return ToldSilent(f"10.244.{number}.0/24", f"198.18.0.{number}", via, way)


def lines(*peers: ToldSilent, tunnel: str = "UDP port 8472", trouble: str = "") -> list[str]:
    told = ToldStatus("1", tunnel=tunnel, peers=ToldPeers(9, 9, {}, peers), probes_trouble=trouble)
    found = status_lines(told, now=0.0)
    return [line for name, line in found if name == "warning"]


@pytest.mark.parametrize(
    ("peers", "tunnel", "expected"),
    [
        ([], "UDP port 8472", []),
        (
            [silent(3), silent(4)],
            "UDP port 8472",
            [
                (
                    "silent: 2 of 9 peers programmed, no answer: 10.244.3.0/24 (198.18.0.3),"
                    " 10.244.4.0/24 (198.18.0.4)"
                )
            ],
        ),
        (
            [silent(3, OneWay.OUT)],
            "UDP port 8472",
            [
                (
                    "one way: packets to 10.244.3.0/24 (198.18.0.3) are lost, those from it arrive:"
                    " is UDP port 8472 to it blocked by a firewall?"
                )
            ],
        ),
        (
            [silent(3, OneWay.IN)],
            "IP protocol 4",
            [
                (
                    "one way: packets from 10.244.3.0/24 (198.18.0.3) are lost, those to it arrive:"
                    " is IP protocol 4 from it blocked by a firewall?"
                )
            ],
        ),
        (
            [silent(3, OneWay.OUT, Via.DIRECT)],
            "UDP port 8472",
            [
                (
                    "one way: packets to 10.244.3.0/24 (198.18.0.3) are lost, those from it arrive:"
                    " is plain traffic of pods to it blocked by a firewall?"
                )
            ],
        ),
    ],
)
def test_status_names_silent_peers(
    peers: list[ToldSilent], tunnel: str, expected: list[str]
) -> None:
    assert lines(*peers, tunnel=tunnel) == expected


def test_status_names_so_many_peers_and_counts_the_others() -> None:
    quiet = [silent(number) for number in range(1, 8)]
    cut = [silent(number, OneWay.OUT) for number in range(1, 9)]
    found = lines(*quiet, *cut)
    assert "7 of 9" in found[0]
    assert found[0].endswith("and 2 more")
    assert len(found) == 1 + 5 + 1
    assert found[-1] == "one way: and 3 more (kersey peers)"


def test_status_says_why_nobody_is_asked() -> None:
    assert lines(trouble="UDP port 1: taken") == [
        "probes: peers are not asked whether they answer: UDP port 1: taken"
    ]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, ["-", "-", "-", "-", "-"]),
        (ToldReach(asked="10.244.1.0"), ["10.244.1.0", "?", "-", "-", "-"]),
        (
            ToldReach(
                Answering.ANSWERS,
                round_trip_seconds=0.00123,
                loss_out=0.125,
                loss_in=0.0,
                asked="10.244.1.0",
            ),
            ["10.244.1.0", "yes", "1.23 ms", "12 %", "0 %"],
        ),
        (
            ToldReach(Answering.SILENT, loss=1.0, asked="198.18.0.2", means=Means.ECHO),
            ["198.18.0.2 ping", "NO", "-", "-", "-"],
        ),
    ],
)
def test_peers_shows_what_probes_found(known: ToldReach | None, expected: list[str]) -> None:
    assert reach_cells(builtins(known)) == expected


def expect(found: Iterable[Finding], *words: str) -> None:
    (finding,) = found
    assert finding.severity is Severity.ERROR
    said = f"{finding.what} {finding.why} {finding.cure}"
    assert all(word in said for word in words), said


WIRE = reach.Wire(mtu=1450, overhead=50, port=8472)


def unreached(way: OneWay | None, *, tunnel: bool | None = False) -> reach.Reach:
    return reach.Reach(
        subnet="10.244.2.0/24",
        address="198.18.0.2",
        node=True,
        whole_node=True,
        tunnel=tunnel,
        whole_tunnel=tunnel,
        datagram=tunnel,
        one_way=way,
    )


def test_the_doctor_takes_the_direction_from_probes() -> None:
    expect(
        reach.judge([unreached(OneWay.OUT)], WIRE),
        "packets to 198.18.0.2 (10.244.2.0/24) are lost, those from it arrive",
        "accept it there",
        "input udp dport 8472 accept",
    )
    expect(
        reach.judge([unreached(OneWay.IN)] * 2, WIRE),
        "packets from 198.18.0.2 (10.244.2.0/24), 198.18.0.2 (10.244.2.0/24) are lost, those to"
        " them arrive",
        "accept it here",
    )
    expect(reach.judge([unreached(None)], WIRE), "nothing comes back through the tunnel")
    expect(reach.judge([unreached(OneWay.OUT, tunnel=None)], WIRE), "plain traffic", "forward")
    ipip = reach.Wire(mtu=1480, overhead=20, port=0)
    expect(reach.judge([unreached(OneWay.OUT)], ipip), "ip protocol 4 accept")


def test_the_doctor_believes_its_own_pings_more_than_older_probes() -> None:
    assert list(reach.judge([unreached(OneWay.OUT, tunnel=True)], WIRE)) == []


def test_without_sending_the_doctor_tells_what_the_daemon_found() -> None:
    peers = ToldPeers(3, 3, {}, (silent(1), silent(2, OneWay.IN), silent(3, OneWay.IN)))
    told = ToldStatus("1", tunnel="UDP port 8285", peers=peers)
    quiet, cut = reach.check_told(node_view(told=told))
    expect([quiet], "no answer through the overlay from 10.244.1.0/24 (198.18.0.1)")
    expect([cut], "packets from 10.244.2.0/24 (198.18.0.2), 10.244.3.0", "udp dport 8285 accept")
    assert list(reach.check_told(node_view())) == []


def test_the_doctor_names_probes_that_cannot_be_sent() -> None:
    told = msgspec.structs.replace(ToldStatus("1", ready=True), probes_trouble="UDP port 1: taken")
    (found,) = daemons.judge_state(told)
    assert found.severity is Severity.WARNING
    assert "UDP port 1: taken" in found.what
    assert "--probe-port" in found.cure


def status_of(*reaches: Reach, **fields: Any) -> Status:
    """Return a daemon's state with a programmed peer for each of these, numbered from 1."""
    known = dict(zip(SUBNETS, reaches, strict=False))
    return Status(
        peers=tuple(
            PeerState(Peer(subnet, IPv4Address("198.18.0.9"), Via.VXLAN), "programmed", "")
            for subnet in known
        ),
        reach=lambda: known,
        probes=lambda: ProbeCounts(7, {"malformed": 2}),
        **fields,
    )


def test_the_socket_tells_of_every_peer_what_is_known() -> None:
    status = status_of(WELL, SILENT, Reach(Answering.SILENT, one_way=OneWay.IN))
    told = describe(status, ToldOptions())
    assert [(each.subnet, each.one_way) for each in told.peers.silent] == [
        ("10.244.2.0/24", None),
        ("10.244.3.0/24", OneWay.IN),
    ]
    first = describe_peers(status)[0].reach
    assert first is not None
    assert (first.answering, first.loss, first.loss_out) == (Answering.ANSWERS, 0.25, 0.125)
    assert (first.asked, first.round_trip_seconds) == ("10.244.1.0", 0.0005)
    assert (first.answered_seconds_ago or 0) > 0
    assert describe_peers(Status(peers=status.peers))[0].reach is None


def page(status: Status, most: int = 10) -> dict[str, float]:
    """Return the samples of probes as /metrics has them."""
    readings = Reader(status).read()
    registry = CollectorRegistry()
    registry.register(StatusCollector(status, readings, now=0.0))
    text = generate_latest(registry).decode()
    if readings.reaches is not None:
        text += reach_text(readings.reaches, most)
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples if "prob" in name or "peer" in name}


def test_metrics_count_silent_peers_and_list_the_worst() -> None:
    found = page(status_of(WELL, SILENT, Reach(Answering.SILENT, one_way=OneWay.OUT), Reach()))
    assert found["kersey_peers_silent"] == 2
    assert found["kersey_peers_one_way"] == 1
    assert found["kersey_probes_sent_total"] == 7
    assert found['kersey_probes_refused_total{reason="malformed"}'] == 2
    assert found['kersey_peer_answering{peer="10.244.1.0/24"}'] == 1
    assert found['kersey_peer_answering{peer="10.244.2.0/24"}'] == 0
    assert 'kersey_peer_answering{peer="10.244.4.0/24"}' not in found
    assert found['kersey_peer_round_trip_seconds{peer="10.244.1.0/24"}'] == 0.0005
    losses = {
        direction: found[f'kersey_peer_loss_ratio{{peer="10.244.1.0/24",direction="{direction}"}}']
        for direction in ("out", "in", "both")
    }
    assert losses == {"out": 0.125, "in": 0.0, "both": 0.25}
    assert 'kersey_peer_loss_ratio{peer="10.244.2.0/24",direction="out"}' not in found


def test_of_many_peers_the_silent_and_then_the_lossy_are_listed() -> None:
    lossy = Reach(Answering.ANSWERS, loss=0.5)
    found = page(status_of(Reach(Answering.ANSWERS, loss=0.0), lossy, SILENT, WELL), most=2)
    listed = [name for name in found if name.startswith("kersey_peer_answering")]
    assert listed == [
        'kersey_peer_answering{peer="10.244.3.0/24"}',
        'kersey_peer_answering{peer="10.244.2.0/24"}',
    ]
    assert "kersey_peer_answering" not in "".join(page(status_of(SILENT), most=0))


def test_probes_that_are_not_sent_have_no_metrics_of_peers() -> None:
    found = page(status_of(SILENT, probes_trouble="UDP port 1: taken"))
    assert "kersey_peers_silent" not in found
    assert found["kersey_probes_sent_total"] == 7
    assert not [name for name in page(Status()) if "probe" in name or "silent" in name]
    assert Readings().reaches is None
