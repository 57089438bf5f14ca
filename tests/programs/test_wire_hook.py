"""The XDP program on real devices: attached, replaced, moved, refused."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import packets as p
import pytest
from bpf_lab import (
    NODE,
    PEER_NODE,
    POD,
    REMOTE,
    STRANGER,
    UPLINK_MAC,
    VTEP,
    WIRE_MAC,
    Lab,
    Tuple5,
    XdpAction,
)
from bpf_pair import wait_until
from kersey_loader import remove
from kersey_loader.attach import Direction, FilterHooks
from kersey_loader.bpf import detach_link
from kersey_loader.datapath import load
from kersey_loader.errors import AttachError
from kersey_loader.layout import Config, Program, Verdict, WireDuty
from kersey_loader.tcx import TcxHooks
from kersey_loader.xdp import Features, Mode, WireHook, read_device
from wires import VXLAN_WIRE

JUMBO = 9000


def ip(*lines: str) -> None:
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True, capture_output=True)


def config(lab: Lab) -> Config:
    raw = lab.datapath.maps["cfg"].lookup(bytes(4))
    assert raw is not None
    return Config.from_buffer_copy(raw)


def duties(lab: Lab) -> WireDuty:
    return WireDuty(config(lab).wire)


def in_vxlan(inner: bytes, *, src: str) -> bytes:
    packet = VXLAN_WIRE.encapsulate(inner, src=src, dst=NODE, dst_vtep=VTEP)
    return p.ethernet(packet, dst=UPLINK_MAC, src=WIRE_MAC)


def index(device: str) -> int:
    return socket.if_nametoindex(device)


@pytest.fixture
def wired(lab: Lab) -> Iterator[Lab]:
    """Give a test the lab, and take whatever it attached off again."""
    yield lab
    lab.datapath.detach_wire()
    lab.datapath.settle()
    assert duties(lab) == WireDuty(0)


@contextmanager
def extra_device(line: str, name: str) -> Iterator[int]:
    ip(f"link add name {name} {line}")
    try:
        yield index(name)
    finally:
        ip(f"link del {name}")


@pytest.mark.parametrize("mode", Mode)
def test_program_is_on_the_device_in_the_mode_that_was_asked_for(wired: Lab, mode: Mode) -> None:
    wired.datapath.attach_wire(read_device(wired.uplink), mode, redirects=False)
    found = read_device(wired.uplink)
    assert found.mode == mode
    assert found.program == wired.datapath.wire_program() != 0
    assert found.program_name == "wire"
    opens = WireDuty.DECAPSULATES if mode is Mode.NATIVE else WireDuty(0)
    assert duties(wired) == WireDuty.ATTACHED | opens


def test_attaching_again_keeps_the_link_and_another_mode_makes_a_new_one(wired: Lab) -> None:
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    (pin,) = (wired.datapath._settings.directory / "links").glob("*-xdp")
    made = pin.stat().st_ino
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    assert pin.stat().st_ino == made
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.GENERIC, redirects=False)
    assert pin.stat().st_ino != made
    assert read_device(wired.uplink).mode == Mode.GENERIC


def test_it_takes_frames_for_the_address_that_the_device_has_now(wired: Lab) -> None:
    moved = "0e:bb:00:00:00:99"
    for address in (UPLINK_MAC, moved, UPLINK_MAC):
        ip(f"link set up0 address {address}")
        wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
        assert bytes(config(wired).uplink_mac) == p.mac(address)


def test_it_moves_with_the_uplink(wired: Lab) -> None:
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    with extra_device("type veth peer name up2", "up1") as other:
        wired.datapath.configure(replace(wired.config, uplink=other))
        assert duties(wired) == WireDuty(0)
        wired.datapath.attach_wire(read_device(other), Mode.NATIVE, redirects=False)
        assert read_device(wired.uplink).program == 0
        assert read_device(other).program == wired.datapath.wire_program()
        assert WireDuty.ATTACHED in duties(wired)
    assert wired.datapath.wire_program() == 0


def test_what_was_opened_is_known_until_after_it_went(wired: Lab) -> None:
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    wired.datapath.detach_wire()
    assert duties(wired) == WireDuty.ATTACHED
    assert read_device(wired.uplink).program == 0
    wired.datapath.settle()
    assert duties(wired) == WireDuty(0)


def test_the_next_run_does_not_believe_in_a_program_that_went_meanwhile(wired: Lab) -> None:
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    known = duties(wired)
    with load(wired.datapath._settings) as next_run:
        next_run.configure(wired.config)
        assert duties(wired) == known != WireDuty(0)
    wired.datapath.detach_wire()
    with load(wired.datapath._settings) as next_run:
        assert next_run.adopted
        next_run.configure(wired.config)
        assert duties(wired) == WireDuty(0)


def test_device_without_native_xdp_is_refused_with_the_reason(wired: Lab) -> None:
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    with extra_device("type bridge", "br9") as bridge:
        assert read_device(bridge).features == Features.NONE
        with pytest.raises(AttachError, match="no native XDP for br9"):
            wired.datapath.attach_wire(read_device(bridge), Mode.NATIVE, redirects=False)
        assert read_device(wired.uplink).program == 0
        wired.datapath.attach_wire(read_device(bridge), Mode.GENERIC, redirects=False)
        assert read_device(bridge).mode == Mode.GENERIC


def test_device_that_is_gone_is_an_error_and_no_more(wired: Lab) -> None:
    with extra_device("type veth peer name up2", "up1") as other:
        device = read_device(other)
        wired.datapath.attach_wire(device, Mode.NATIVE, redirects=False)
    with pytest.raises(AttachError):
        read_device(other)
    with pytest.raises(AttachError):
        wired.datapath.attach_wire(device, Mode.NATIVE, redirects=False)
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    assert read_device(wired.uplink).program == wired.datapath.wire_program()


def test_jumbo_frames_in_several_buffers_are_checked_and_opened(wired: Lab) -> None:
    with extra_device(f"mtu {JUMBO} type veth peer name up2 mtu {JUMBO}", "up1") as other:
        wired.datapath.attach_wire(read_device(other), Mode.NATIVE, redirects=False)
    wired.datapath.detach_wire()
    wired.datapath.configure(replace(wired.config, mtu=JUMBO - 50, pod_mtu=JUMBO - 50))
    wired.charge(WireDuty.ATTACHED | WireDuty.DECAPSULATES)
    wired.admit(Tuple5())
    inner = p.ipv4(p.udp(bytes(range(250)) * 34, src=80, dst=40000), src=REMOTE, dst=POD, ttl=63)
    assert wired.run_wire(in_vxlan(inner, src=STRANGER)).action is XdpAction.DROP
    found = wired.run_wire(in_vxlan(inner, src=PEER_NODE))
    assert (found.action, found.counted) == (XdpAction.PASS, (Verdict.DECAPSULATED,))
    assert found.packet[14:] == inner


def test_frames_are_offered_to_pods_that_take_them_alone(wired: Lab) -> None:
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=True)
    assert WireDuty.REDIRECTS in duties(wired)
    offered = wired.datapath.maps["redirect_ports"]
    with extra_device("type veth peer name eth9", "pod9") as port:
        ip("link set pod9 up", "link set eth9 up")
        wired.datapath.put_pod_port(port)
        assert port.to_bytes(4, "little") not in set(offered)
        subprocess.run(["ethtool", "-K", "eth9", "gro", "on"], check=True)
        wired.datapath.put_pod_port(port)
        assert port.to_bytes(4, "little") in set(offered)
        wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
        wired.datapath.put_pod_port(port)
        assert port.to_bytes(4, "little") not in set(offered)
        wired.datapath.remove_pod_port(port)


def test_frame_of_the_uplink_is_really_dropped(wired: Lab) -> None:
    ip("link set wire0 up")
    wired.datapath.attach_wire(read_device(wired.uplink), Mode.NATIVE, redirects=False)
    before = wired.datapath.counters()
    body = p.udp(bytes(18), src=50000, dst=8472)
    frame = p.ethernet(p.ipv4(body, src=STRANGER, dst=NODE), dst=UPLINK_MAC, src=WIRE_MAC)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("wire0", 0))
        for _ in range(20):
            raw.send(frame)
    key = (Program.WIRE, Verdict.UNKNOWN_NODE)
    wait_until(lambda: wired.datapath.counters()[key] - before[key] == 20)


@pytest.mark.parametrize("of_all_networks", [True, False])
def test_it_goes_before_the_programs_that_know_what_it_opened(
    wired: Lab, monkeypatch: pytest.MonkeyPatch, *, of_all_networks: bool
) -> None:
    handle = 0x77
    home = wired.directory / "instance-of-test"
    (home / "links").mkdir(parents=True)
    hook = WireHook(home / "links")
    # In this order, since the newest pin is the first one that a listing has.
    hook.attach(read_device(wired.uplink), Mode.NATIVE, fd=wired.datapath.program_fd(Program.WIRE))
    fd = wired.datapath.program_fd(Program.FROM_UPLINK)
    with FilterHooks(handle) as filters:
        filters.attach(wired.uplink, Direction.INGRESS, program="from_uplink", fd=fd)
        other = FilterHooks(handle + 1)
        TcxHooks(home / "links", other).attach(
            wired.uplink, Direction.INGRESS, program="from_uplink", fd=fd
        )
        other.close()
    left: list[int] = []

    def watched(take_off: Callable[..., None]) -> Callable[..., None]:
        def look_and_take_off(*args: object) -> None:
            left.append(read_device(wired.uplink).program)
            take_off(*args)

        return look_and_take_off

    monkeypatch.setattr("kersey_loader.tcx.detach_link", watched(detach_link))
    monkeypatch.setattr(FilterHooks, "_delete", watched(FilterHooks._delete))
    if of_all_networks:
        assert remove.detach_everything(wired.directory) == 1
        remove.remove_pins(wired.directory, home.name)
    else:
        remove.remove_network(home, handle=handle)
    assert len(left) == 3
    assert left[0] != 0
    assert left[1:] == [0, 0]
    assert not home.exists()
