"""One node's programs on real devices in a namespace of its own, run packet by packet.

`Lab.run` gives a program one packet through BPF_PROG_TEST_RUN and tells everything it did: what it
returned, the whole packet, which counter moved. Nothing is attached.
"""

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kersey_loader import bpf
from kersey_loader.datapath import Datapath, DatapathConfig, PeerEntry, Settings, load
from kersey_loader.layout import (
    Admission,
    Config,
    Endpoint,
    Flow,
    FlowKey,
    Mac,
    Program,
    Sighting,
    SpoofCheck,
    Verdict,
    WireDuty,
)
from kersey_loader.view import View, open_view
from kersey_loader.watch import ANYWHERE, Wanted, Watch, open_watch
from packets import mac
from wires import VXLAN_WIRE, Wire

NETWORK = IPv4Network("10.244.0.0/16")
OWN, PEER, OTHER, DIRECT, NOBODY = (IPv4Network(f"10.244.{n}.0/24") for n in (1, 2, 3, 4, 9))
NODE, PEER_NODE, OTHER_NODE, DIRECT_NODE, STRANGER = (f"198.18.0.{n}" for n in (1, 2, 3, 4, 99))
VTEP, PEER_VTEP, OTHER_VTEP = (f"0e:00:00:00:00:0{n}" for n in (1, 2, 3))
POD, REMOTE, DIRECT_POD = "10.244.1.10", "10.244.2.10", "10.244.4.10"
POD_MAC, GATEWAY_MAC = "0e:aa:00:00:00:10", "0e:aa:00:00:00:01"
UPLINK_MAC, WIRE_MAC = "0e:bb:00:00:00:01", "0e:bb:00:00:00:02"
OPENED_MAC = "02:4b:45:52:53:59"
"""The source address by which from_uplink knows what wire has opened: 2, KERSY."""
DIRECT_MAC = "0e:bb:00:00:00:04"

NODE_OTHER_ADDRESS = "198.18.1.1"
SUBNET_LEN = 24
MTU = 1450
"""Of every overlay here, so that rows are the same for all: bytes of IP packet."""

_CLONE_NEWNET = 0x40000000
_MNT_DETACH = 2
_NONE = "00:00:00:00:00:00"
_libc = ctypes.CDLL(None, use_errno=True)


class Action(IntEnum):
    """What the programs can return."""

    TO_STACK = -1
    DROP = 2
    REDIRECT = 7


class XdpAction(IntEnum):
    """What the XDP program can return."""

    DROP = 1
    PASS = 2
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a TC program did with one packet."""

    action: Action
    packet: bytes
    counted: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class WireOutcome:
    """The same of the XDP program."""

    action: XdpAction
    packet: bytes
    counted: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Tuple5:
    """A flow as the pod sees it."""

    local: str = POD
    remote: str = REMOTE
    local_port: int = 40000
    remote_port: int = 80
    protocol: int = 17

    def key(self, direction: int = 0) -> bytes:
        """Return the flow's key in the maps."""
        return bytes(
            FlowKey(
                local=tuple(IPv4Address(self.local).packed),
                remote=tuple(IPv4Address(self.remote).packed),
                local_port=tuple(self.local_port.to_bytes(2, "big")),
                remote_port=tuple(self.remote_port.to_bytes(2, "big")),
                protocol=self.protocol,
                direction=direction,
            )
        )


class Lab:
    """A configured datapath with two peers behind the tunnel, a direct one, and two pod ports."""

    def __init__(self, datapath: Datapath, wire: Wire, directory: Path) -> None:
        self.datapath = datapath
        self.directory = directory
        self.wire = wire
        self.uplink = _ifindex("up0")
        self.port, self.other_port = _ifindex("pod0"), _ifindex("pod1")
        self.overlay = _ifindex("overlay0")
        self.config = DatapathConfig(
            uplink=self.uplink,
            node=IPv4Address(NODE),
            subnet=OWN,
            mtu=MTU,
            pod_mtu=MTU,
            tunnel=wire.tunnel,
            overlay=self.overlay,
        )

    def reset(self) -> None:
        """Forget flows, sightings and endpoints; default configuration, peers and pod ports."""
        for name in ("flows", "sightings", "endpoints", "pod_ports", "redirect_ports"):
            for key in list(self.datapath.maps[name]):
                self.datapath.maps[name].delete(key)
        self.datapath.configure(self.config)
        node = IPv4Address(PEER_NODE)
        tunnelled = (
            PeerEntry(PEER, node, mac(PEER_VTEP), nexthop=node),
            PeerEntry(OTHER, IPv4Address(OTHER_NODE), mac(OTHER_VTEP)),
        )
        direct = PeerEntry(DIRECT, IPv4Address(DIRECT_NODE), direct=True)
        self.datapath.replace_peers((*(tunnelled if self.wire.tunnel else ()), direct))
        for port in (self.port, self.other_port):
            self.live(port)
        self.charge(WireDuty(0))

    def live(self, port: int) -> None:
        """Let flows of a port be fast, without attaching anything to it."""
        self.datapath.maps["pod_ports"].update(_u32(port), _u32(port))

    def take_frames(self, port: int) -> None:
        """Say of a port that it takes redirected frames."""
        self.datapath.maps["redirect_ports"].update(_u32(port), _u32(port))

    def charge(self, duties: WireDuty) -> None:
        """Give the XDP program its duties as if it were attached; `configure` undoes it."""
        cfg = self.datapath.maps["cfg"]
        raw = Config.from_buffer_copy(cfg.lookup(bytes(4)) or b"")
        raw.wire, raw.uplink_mac = duties, Mac(*mac(UPLINK_MAC))
        cfg.update(bytes(4), bytes(raw))

    def configure(
        self,
        *,
        admission: Admission = Admission.STRICT,
        spoof: SpoofCheck = SpoofCheck.DROP,
        max_age: float = 5.0,
        carrier: int = 0,
    ) -> None:
        """Change what tests vary."""
        changed = replace(
            self.config, admission=admission, spoof=spoof, max_age=max_age, carrier=carrier
        )
        self.datapath.configure(changed)

    def run(self, program: Program, packet: bytes, *, device: int, gso_size: int = 0) -> Outcome:
        """Run a TC program once on a packet that is on `device`."""
        before = self.datapath.counters()
        answer = self.start(program, packet, device=device, gso_size=gso_size)
        return Outcome(Action(answer.verdict), answer.packet, self._moved(before))

    def run_wire(self, frame: bytes) -> WireOutcome:
        """Run the XDP program once on a frame from the wire."""
        before = self.datapath.counters()
        answer = bpf.run_once(self.datapath.program_fd(Program.WIRE), frame)
        return WireOutcome(XdpAction(answer.verdict), answer.packet, self._moved(before))

    def _moved(self, before: dict[tuple[Program, Verdict], int]) -> tuple[Verdict, ...]:
        """Return the verdicts that were counted since, whoever did."""
        return tuple(
            verdict
            for (owner, verdict), count in self.datapath.counters().items()
            for _ in range(count - before[owner, verdict])
        )

    def start(
        self, program: Program, packet: bytes, *, device: int, gso_size: int = 0
    ) -> bpf.RunResult:
        """Run a program once without a look at its counters, which takes most of the time."""
        context = bytearray(192)  # struct __sk_buff
        struct.pack_into("=I", context, 40, device)
        if gso_size:
            struct.pack_into("=I", context, 164, -(-len(packet) // gso_size))
            struct.pack_into("=I", context, 176, gso_size)
        return bpf.run_once(self.datapath.program_fd(program), packet, bytes(context))

    @contextmanager
    def watched(
        self,
        *,
        dropped: Iterable[Verdict] = Verdict,
        passed: Iterable[Verdict] = Verdict,
        within: IPv4Network = ANYWHERE,
        rate: int = 100_000,
    ) -> Iterator[tuple[View, Watch]]:
        """Have the programs tell of packets, of all unless asked for less."""
        wanted = Wanted(frozenset(dropped), frozenset(passed), within, rate)
        with open_view(self.directory) as view, open_watch(view, wanted) as watch:
            yield view, watch

    def flow(self, flow: Tuple5) -> Flow | None:
        """Return a flow's entry."""
        value = self.datapath.maps["flows"].lookup(flow.key())
        return None if value is None else Flow.from_buffer_copy(value)

    def sighting(self, flow: Tuple5, direction: int) -> Sighting | None:
        """Return what was last seen entering the stack."""
        value = self.datapath.maps["sightings"].lookup(flow.key(direction))
        return None if value is None else Sighting.from_buffer_copy(value)

    def endpoint(self, pod: str) -> Endpoint | None:
        """Return where a pod is believed to be."""
        value = self.datapath.maps["endpoints"].lookup(IPv4Address(pod).packed)
        return None if value is None else Endpoint.from_buffer_copy(value)

    def admit(
        self,
        flow: Tuple5,
        *,
        egress_age: float | None = 0.0,
        ingress_age: float | None = 0.0,
        generation: int | None = None,
        egress_port: int | None = None,
        ingress_port: int | None = None,
        egress_kind: int = 64,
        ingress_kind: int = 63,
    ) -> None:
        """Write a flow's entry as if its directions had been witnessed; None is never.

        A kind is DSCP << 8 and TTL, of a packet that comes from the pod or out of the tunnel.
        """
        shift = (self.datapath.generation if generation is None else generation) << 48
        now, hertz = self._clock()
        stamps = [
            0 if age is None else shift | now - round(age * hertz)
            for age in (egress_age, ingress_age)
        ]
        entry = Flow(
            egress=stamps[0],
            ingress=stamps[1],
            egress_port=self.port if egress_port is None else egress_port,
            ingress_port=self.port if ingress_port is None else ingress_port,
            pod_mac=tuple(mac(POD_MAC)),
            gateway_mac=tuple(mac(GATEWAY_MAC)),
            egress_kind=egress_kind,
            ingress_kind=ingress_kind,
        )
        self.datapath.maps["flows"].update(flow.key(), bytes(entry))

    def _clock(self) -> tuple[int, int]:
        clock = self.datapath.clock()
        return clock.jiffies, clock.hertz


@contextmanager
def open_lab(directory: Path, wire: Wire = VXLAN_WIRE) -> Iterator[Lab]:
    """Load a tunnel's programs with a bpffs and in a network namespace of their own."""
    with private_network(), private_bpffs(directory):
        for line in (
            f"link add up0 address {UPLINK_MAC} type veth peer name wire0 address {WIRE_MAC}",
            f"link add pod0 address {GATEWAY_MAC} type veth peer name eth0 address {POD_MAC}",
            f"link add pod1 address {GATEWAY_MAC} type veth peer name eth1",
            "link add overlay0 type veth peer name overlay1",
            "link set up0 up",
            "link set pod0 up",
            "link set pod1 up",
            f"addr add {NODE}/24 dev up0",
            f"addr add {NODE_OTHER_ADDRESS}/24 dev up0",
            "route add default via 198.18.0.254",
            f"neigh add {DIRECT_NODE} lladdr {DIRECT_MAC} dev up0 nud permanent",
        ):
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        settings = Settings(
            directory,
            network=NETWORK,
            subnet_len=SUBNET_LEN,
            tunnel=wire.kind,
            cache=kept_programs(),
        )
        with load(settings) as datapath:
            yield Lab(datapath, wire, directory)


def kept_programs() -> Path | None:
    """Return where a run of the suite keeps compiled programs (conftest.py); a bench has none."""
    folder = os.environ.get("KERSEY_CACHE_DIR")
    return Path(folder) if folder else None


@contextmanager
def private_network() -> Iterator[None]:
    """Move this thread into a new network namespace for a while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    try:
        yield
    finally:
        _check(_libc.setns(home, _CLONE_NEWNET), "setns")
        os.close(home)


@contextmanager
def private_bpffs(directory: Path) -> Iterator[None]:
    """Take a BPF file system that the loader mounts on `directory` away again."""
    try:
        yield
    finally:
        _libc.umount2(os.fsencode(directory), _MNT_DETACH)


def _check(result: int, call: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def _ifindex(name: str) -> int:
    links = subprocess.run(
        ["ip", "-o", "link", "show", name], check=True, capture_output=True, text=True
    )
    return int(links.stdout.split(":", 1)[0])


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")
