"""What programs tell of single packets, and to whom: row by row, and live in the ring buffer."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import packets as p
import pytest
from bpf_lab import (
    DIRECT_POD,
    GATEWAY_MAC,
    NODE,
    OPENED_MAC,
    OTHER_NODE,
    PEER_NODE,
    PEER_VTEP,
    POD,
    POD_MAC,
    REMOTE,
    STRANGER,
    UPLINK_MAC,
    VTEP,
    WIRE_MAC,
    Action,
    Lab,
    Tuple5,
)
from kersey_control import cli
from kersey_control.errors import UnavailableError
from kersey_control.instance import instance_of
from kersey_loader import layout
from kersey_loader.errors import LoaderError
from kersey_loader.layout import Budget, Program, SpoofCheck, Verdict
from kersey_loader.view import View, open_view
from kersey_loader.watch import Told, Watch
from wires import IPIP_WIRE, UDP_WIRE, VXLAN_WIRE

EVERY = frozenset(Verdict)
ONLY = bytes(4)
ICMP = 1

each_tunnel = pytest.mark.parametrize(
    "loaded_lab",
    [pytest.param(wire, id=wire.kind) for wire in (VXLAN_WIRE, UDP_WIRE, IPIP_WIRE)],
    indirect=True,
)


def sent(payload: bytes = b"ping", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": POD, "dst": REMOTE, **ip}
    return p.ipv4(p.udp(payload, src=40000, dst=80), **fields)  # type: ignore[arg-type]


def received(payload: bytes = b"pong", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": REMOTE, "dst": POD, "ttl": 63, **ip}
    return p.ipv4(p.udp(payload, src=80, dst=40000), **fields)  # type: ignore[arg-type]


def from_pod(packet: bytes) -> bytes:
    return p.ethernet(packet, dst=GATEWAY_MAC, src=POD_MAC)


def to_pod(packet: bytes) -> bytes:
    return p.ethernet(packet, dst=POD_MAC, src=GATEWAY_MAC)


def on_wire(packet: bytes) -> bytes:
    return p.ethernet(packet, dst=UPLINK_MAC, src=WIRE_MAC)


def tunnelled(lab: Lab, inner: bytes, **outer: object) -> bytes:
    vtep = {"dst_vtep": VTEP} if lab.wire is VXLAN_WIRE else {}
    return on_wire(lab.wire.encapsulate(inner, **{"src": PEER_NODE, "dst": NODE, **vtep, **outer}))


def told(watch: Watch) -> list[Told]:
    return list(watch.packets(0))


@dataclass(frozen=True)
class Row:
    """A packet, and what is told of it: `ways` as the outer addresses and the inner ones."""

    id: str
    program: Program
    packet: Callable[[Lab], bytes]
    verdict: Verdict
    outer: tuple[str, str] | None = None
    inner: tuple[str, str] | None = (REMOTE, POD)
    ports: tuple[int, int] | None = (80, 40000)
    protocol: int | None = p.UDP
    dropped: bool = False
    prepare: Callable[[Lab], None] = lambda _lab: None


def _counting(lab: Lab) -> None:
    lab.configure(spoof=SpoofCheck.COUNT)


UP, IN, OUT = Program.FROM_UPLINK, Program.TO_POD, Program.FROM_POD
WAY = (REMOTE, POD)
BACK, BACK_PORTS = (POD, REMOTE), (40000, 80)
OF_STRANGER, OF_PEER = (STRANGER, NODE), (PEER_NODE, NODE)

EVERY_TUNNEL = [
    Row("stranger", UP, lambda lab: tunnelled(lab, received(), src=STRANGER), Verdict.UNKNOWN_NODE,
        OF_STRANGER, dropped=True),
    Row("stranger-that-is-let-in", UP, lambda lab: tunnelled(lab, received(), src=STRANGER),
        Verdict.UNKNOWN_NODE, OF_STRANGER, prepare=_counting),
    Row("foreign-source", UP, lambda lab: tunnelled(lab, received(), src=OTHER_NODE),
        Verdict.FOREIGN_SOURCE, (OTHER_NODE, NODE), dropped=True),
    Row("behind-outer-options", UP,
        lambda lab: tunnelled(lab, received(), src=STRANGER, options=bytes(8)),
        Verdict.UNKNOWN_NODE, OF_STRANGER, dropped=True),
    Row("with-inner-options", UP,
        lambda lab: tunnelled(lab, received(options=bytes(8)), src=STRANGER),
        Verdict.UNKNOWN_NODE, OF_STRANGER, dropped=True),
    Row("tcp", UP,
        lambda lab: tunnelled(lab, p.ipv4(p.tcp(b"", src=80, dst=40000, flags=p.SYN), src=REMOTE,
                                          dst=POD, protocol=p.TCP), src=STRANGER),
        Verdict.UNKNOWN_NODE, OF_STRANGER, protocol=p.TCP, dropped=True),
    Row("icmp-has-no-ports", UP,
        lambda lab: tunnelled(lab, received(protocol=ICMP), src=STRANGER),
        Verdict.UNKNOWN_NODE, OF_STRANGER, ports=None, protocol=ICMP, dropped=True),
    Row("later-inner-fragment-has-no-ports", UP,
        lambda lab: tunnelled(lab, received(fragment=9), src=STRANGER),
        Verdict.UNKNOWN_NODE, OF_STRANGER, ports=None, dropped=True),
    Row("not-admitted-in", UP, lambda lab: tunnelled(lab, received()), Verdict.NOT_ADMITTED,
        OF_PEER),
    Row("not-admitted-out", OUT, lambda _lab: from_pod(sent()), Verdict.NOT_ADMITTED, None, BACK,
        BACK_PORTS),
    Row("plain-from-a-direct-peer", UP, lambda _lab: on_wire(received(src=DIRECT_POD)),
        Verdict.NOT_ADMITTED, None, (DIRECT_POD, POD)),
    Row("unseen-at-the-uplink", Program.TO_UPLINK,
        lambda _lab: on_wire(sent(ttl=63, dst=DIRECT_POD)), Verdict.UNSEEN, None,
        (POD, DIRECT_POD), BACK_PORTS),
    Row("unseen-at-a-pod", IN, lambda _lab: to_pod(received()), Verdict.UNSEEN),
    Row("a-pods-own-tunnel", OUT,
        lambda lab: from_pod(lab.wire.encapsulate(received(), src=POD, dst=NODE)),
        Verdict.POD_TUNNEL, (POD, NODE), dropped=True),
    Row("arp-of-a-pod", OUT,
        lambda _lab: p.ethernet(bytes(28), dst=GATEWAY_MAC, src=POD_MAC, kind=0x806),
        Verdict.UNRELATED, None, None, None, None),
]  # fmt: skip


@each_tunnel
@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in EVERY_TUNNEL])
def test_a_packet_is_told_of_as_it_was_and_with_its_reason(lab: Lab, row: Row) -> None:
    check(lab, row)


def check(lab: Lab, row: Row) -> None:
    row.prepare(lab)
    packet = row.packet(lab)
    device = lab.port if row.program in (IN, OUT) else lab.uplink
    before = time.time()
    with lab.watched() as (_, watch):
        outcome = lab.run(row.program, packet, device=device)
        (found,) = told(watch)
        assert watch.hidden == 0
    assert outcome.counted == (row.verdict,)
    assert outcome.packet == packet
    assert (outcome.action is Action.DROP) == row.dropped
    outer, inner, ports = row.outer, row.inner, row.ports
    assert found == Told(
        time=found.time,
        program=row.program,
        verdict=row.verdict,
        dropped=row.dropped,
        outer_source=IPv4Address(outer[0]) if outer else None,
        outer_destination=IPv4Address(outer[1]) if outer else None,
        source=IPv4Address(inner[0]) if inner else None,
        destination=IPv4Address(inner[1]) if inner else None,
        protocol=row.protocol,
        source_port=ports[0] if ports else None,
        destination_port=ports[1] if ports else None,
        length=len(packet),
        device=device,
    )
    assert before - 1 < found.time < time.time() + 1


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(p.ethernet(b"\0\0\x08\0" + received(), dst=VTEP, src=PEER_VTEP, kind=0x8100),
                     id="behind-a-tag"),
        pytest.param(p.ethernet(bytes(28), dst=VTEP, src=PEER_VTEP, kind=0x806), id="arp"),
        pytest.param(b"", id="too-short"),
    ],
)  # fmt: skip
def test_an_inner_packet_that_does_not_show_is_not_made_up(lab: Lab, packet: bytes) -> None:
    body = p.udp(p.vxlan(packet) if packet else b"", src=50000, dst=8472)
    row = Row("", UP, lambda _lab: on_wire(p.ipv4(body, src=STRANGER, dst=NODE)),
              Verdict.UNKNOWN_NODE, OF_STRANGER, None, None, None, dropped=True)  # fmt: skip
    check(lab, row)


@each_tunnel
def test_a_frame_with_the_mark_of_xdp_is_told_of_without_a_packet_inside(lab: Lab) -> None:
    # What would be a packet in a tunnel, if it were one.
    frame = bytearray(tunnelled(lab, received(), src=STRANGER))
    frame[6:12] = p.mac(OPENED_MAC)
    with lab.watched() as (_, watch):
        assert lab.run_wire(bytes(frame)).counted == (Verdict.HIDDEN_SOURCE,)
        (packet,) = told(watch)
    assert packet.outer_source == IPv4Address(STRANGER)
    assert (packet.source, packet.destination, packet.protocol) == (None, None, None)


@each_tunnel
def test_traffic_of_pods_on_the_tunnels_own_port_has_no_tunnel_around_it(lab: Lab) -> None:
    packet = p.ipv4(p.udp(p.vxlan(from_pod(received())), src=1, dst=8472), src=POD, dst=REMOTE)
    row = Row("", OUT, lambda _lab: from_pod(packet), Verdict.NOT_ADMITTED, None, BACK, (1, 8472))
    check(lab, row)
    packet = p.ipv4(
        p.udp(p.vxlan(from_pod(sent())), src=1, dst=8472), src=DIRECT_POD, dst=POD, ttl=63
    )
    row = Row("", UP, lambda _lab: on_wire(packet), Verdict.NOT_ADMITTED, None, (DIRECT_POD, POD),
              (1, 8472))  # fmt: skip
    check(lab, row)


def test_a_packet_at_the_overlay_device_is_told_of_without_a_tunnel(lab: Lab) -> None:
    frame = p.ethernet(sent(ttl=63), dst=PEER_VTEP, src=VTEP)
    row = Row("", Program.TO_OVERLAY, lambda _lab: frame, Verdict.UNSEEN, None, BACK, BACK_PORTS)
    check(lab, row)


def test_a_packet_that_the_kernel_makes_no_room_for_is_told_of(lab: Lab) -> None:
    lab.admit(Tuple5(protocol=p.TCP))
    segments = p.ipv4(p.tcp(bytes(3000), src=40000, dst=80), src=POD, dst=REMOTE, protocol=p.TCP)
    with lab.watched() as (_, watch):
        lab.run(OUT, from_pod(segments), device=lab.port, gso_size=1410)
        (found,) = told(watch)
    assert (found.verdict, found.dropped, found.source) == (
        *(Verdict.ROOM, False),
        IPv4Address(POD),
    )


@each_tunnel
def test_fast_packets_are_never_told_of(lab: Lab) -> None:
    inner = lab.wire.cross(received())
    lab.admit(Tuple5(), ingress_kind=p.kind_of(inner))
    with lab.watched() as (_, watch):
        assert lab.run(OUT, from_pod(sent()), device=lab.port).action is Action.REDIRECT
        arrival = lab.run(UP, tunnelled(lab, received()), device=lab.uplink)
        assert arrival.counted == (Verdict.FAST,)
        assert told(watch) == []
        assert watch.hidden == 0


def test_with_the_sender_check_off_forged_packets_are_not_told_of(lab: Lab) -> None:
    lab.configure(spoof=SpoofCheck.OFF)
    with lab.watched() as (_, watch):
        lab.run(UP, tunnelled(lab, received(), src=STRANGER), device=lab.uplink)
        assert told(watch) == []


def run_three(lab: Lab) -> None:
    """Have one packet dropped, one forged one let in, and one left to the stack."""
    forged = tunnelled(lab, received(), src=STRANGER)
    lab.run(UP, forged, device=lab.uplink)
    lab.configure(spoof=SpoofCheck.COUNT)
    lab.run(UP, forged, device=lab.uplink)
    lab.run(OUT, from_pod(sent()), device=lab.port)


@pytest.mark.parametrize(
    ("dropped", "passed", "expected"),
    [
        (EVERY, frozenset(), [True]),
        (frozenset(), EVERY, [False, False]),
        ({Verdict.UNKNOWN_NODE}, {Verdict.UNKNOWN_NODE}, [True, False]),
        ({Verdict.FOREIGN_SOURCE}, {Verdict.NOT_ADMITTED}, [False]),
        ({Verdict.POD_TUNNEL}, {Verdict.FAST}, []),
    ],
)
def test_only_what_is_wanted_is_told_of(
    lab: Lab, dropped: Iterable[Verdict], passed: Iterable[Verdict], expected: list[bool]
) -> None:
    with lab.watched(dropped=dropped, passed=passed) as (_, watch):
        run_three(lab)
        assert [each.dropped for each in told(watch)] == expected
        assert watch.hidden == 0


@pytest.mark.parametrize(
    ("within", "fits"),
    [
        (f"{OTHER_NODE}/32", True),
        (f"{NODE}/32", True),
        (f"{REMOTE}/32", True),
        (f"{POD}/32", True),
        ("10.244.2.0/24", True),
        ("198.18.0.0/15", True),
        ("0.0.0.0/0", True),
        (f"{PEER_NODE}/32", False),
        ("10.244.3.0/24", False),
    ],
)
def test_packets_are_picked_by_any_of_their_addresses(lab: Lab, within: str, *, fits: bool) -> None:
    with lab.watched(within=IPv4Network(within)) as (_, watch):
        lab.run(UP, tunnelled(lab, received(), src=OTHER_NODE), device=lab.uplink)
        assert len(told(watch)) == fits
        assert watch.hidden == 0


def run_often(lab: Lab, times: int) -> None:
    packet = tunnelled(lab, received(), src=STRANGER)
    for _ in range(times):
        lab.start(UP, packet, device=lab.uplink)


def stay(view: View) -> None:
    """Have the programs tell however long a test takes."""
    entry = layout.Watch.from_buffer_copy(view.maps["watches"].lookup(ONLY) or b"")
    entry.until = 2**63
    view.maps["watches"].update(ONLY, bytes(entry))


def set_budgets(view: View, next_token: float) -> None:
    budget = Budget(next=round(next_token * 1e9))
    view.maps["budgets"].update(ONLY, bytes(budget) * view.maps["budgets"].cpus)


def test_beyond_the_rate_packets_are_counted_and_not_told_of(lab: Lab) -> None:
    with lab.watched(rate=1) as (_, watch):
        run_often(lab, 50)
        shown = len(told(watch))
        assert 1 <= shown < 50
        assert shown + watch.hidden == 50


def test_a_rate_is_a_second_of_tokens_that_come_back_with_time(lab: Lab) -> None:
    now = time.monotonic
    with lab.watched(rate=1) as (view, watch):
        set_budgets(view, now() + 1000)
        run_often(lab, 5)
        assert (told(watch), watch.hidden) == ([], 5)
        set_budgets(view, now() - 1000)
        run_often(lab, 1)
        assert len(told(watch)) == 1
        cells = view.maps["budgets"].lookup(ONLY) or b""
        # The token of a second ago was used: however long the silence, no more than a second's.
        latest = max(
            Budget.from_buffer_copy(cells, at).next
            for at in range(0, len(cells), len(bytes(Budget())))
        )
        assert now() * 1e9 - 60e9 < latest <= now() * 1e9


def test_a_full_ring_loses_none_that_is_in_it_and_counts_the_rest(lab: Lab) -> None:
    room = 2**18 // (8 + len(bytes(layout.Event())))
    with lab.watched() as (view, watch):
        for _ in range(2):  # the second time round it wraps
            hidden = watch.hidden
            stay(view)
            run_often(lab, room + 100)
            found = told(watch)
            assert (len(found), watch.hidden - hidden) == (room, 100)
            assert [each.time for each in found] == sorted(each.time for each in found)
            assert {each.source for each in found} == {IPv4Address(REMOTE)}


def test_a_watcher_that_died_costs_nothing_once_its_time_is_over(lab: Lab) -> None:
    with lab.watched() as (view, watch):
        entry = layout.Watch.from_buffer_copy(view.maps["watches"].lookup(ONLY) or b"")
        clock = view.clock()
        assert clock.jiffies < entry.until <= clock.jiffies + 5 * clock.hertz
        entry.until = clock.jiffies
        view.maps["watches"].update(ONLY, bytes(entry))
        run_often(lab, 5)
        assert (told(watch), watch.hidden) == ([], 0)
        watch.sign()
        run_often(lab, 1)
        assert len(told(watch)) == 1


def test_nobody_is_told_once_the_watch_has_ended(lab: Lab) -> None:
    with lab.watched() as (view, _):
        run_often(lab, 1)  # and is not taken
    with open_view(lab.directory) as view:
        assert view.maps["watches"].lookup(ONLY) == bytes(layout.Watch())
        run_often(lab, 1)
    with lab.watched() as (_, watch):
        assert (told(watch), watch.hidden) == ([], 0)


def test_a_second_watcher_is_told_who_the_first_one_is(lab: Lab) -> None:
    with lab.watched() as (_, watch):
        with (
            pytest.raises(LoaderError, match=f"process {os.getpid()} is watching already"),
            lab.watched(),
        ):
            pass
        run_often(lab, 1)
        assert len(told(watch)) == 1
    with lab.watched():
        pass


def test_a_watch_ends_with_the_maps_that_it_is_on(lab: Lab) -> None:
    with lab.watched() as (view, watch):
        elsewhere = view.home.with_name("gone")
        view.home.rename(elsewhere)
        try:
            with pytest.raises(LoaderError, match=r"maps-\w+ is gone"):
                watch.sign()
        finally:
            elsewhere.rename(view.home)


def drops(lab: Lab, places: Path, *flags: str) -> int:
    """Run `kersey drops` on the lab's pins, as if a daemon with these files had made them."""
    subnet_file = places / "subnet.env"
    link = places / f"instance-{instance_of(subnet_file):08x}"
    link.symlink_to(lab.directory)
    files = (f"--bpf-dir={places}", f"--subnet-file={subnet_file}", "--state-dir=/nonexistent")
    return cli.run(["drops", *flags, *files], {})


def test_the_command_ends_when_its_time_is_over_and_says_where_no_sender_is_checked(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.configure(spoof=SpoofCheck.OFF)
    assert drops(lab, tmp_path, "--json", "--seconds=1") == 0
    printed = capsys.readouterr()
    assert printed.out == '{"shown": 0, "not_shown": 0}\n'
    assert printed.err == "kersey: with --spoof-check=off no sender is checked\n"


def test_the_command_fails_before_the_programs_were_told_anything(lab: Lab, tmp_path: Path) -> None:
    cfg = lab.datapath.maps["cfg"]
    told_before = cfg.lookup(ONLY) or b""
    cfg.update(ONLY, bytes(len(told_before)))
    try:
        with pytest.raises(UnavailableError, match="have not been told anything yet"):
            drops(lab, tmp_path)
    finally:
        cfg.update(ONLY, told_before)
