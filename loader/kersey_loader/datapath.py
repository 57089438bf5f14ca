"""The fast path of one network, as the daemon sees it: maps, programs and where they are attached.

It only accelerates: closing it, or losing the process, leaves every program forwarding with what
the maps hold; detaching everything leaves the kernel's own devices and routes. Decides nothing
about leases or pods, and never imports the control plane. Not safe for concurrent use.
"""

import logging
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from socket import inet_ntoa
from types import TracebackType
from typing import Self

from kersey_loader import bpf, pins, source, tcx
from kersey_loader.attach import Attachment, Direction, FilterHooks, Hooks
from kersey_loader.bpffs import ensure_bpffs
from kersey_loader.errors import AttachError, LoaderError, PeersFullError
from kersey_loader.layout import (
    VERDICT_BITS,
    Address,
    Admission,
    Config,
    Endpoint,
    Mac,
    Program,
    SpoofCheck,
    Verdict,
    WireDuty,
    map_specs,
)
from kersey_loader.peers import PeerTable, Record, Sums, Underlay
from kersey_loader.tunnel import Identity, Tunnel, TunnelKind, tunnel_of
from kersey_loader.xdp import Features, Mode, WireHook, XdpDevice, features_of

logger = logging.getLogger(__name__)

_WITNESS_SECONDS = 0.2
_TICK_RATES = (100, 250, 300, 1000)
_CLOCK_SECONDS = 0.1
_MOST_SLOTS = 1 << 15
_LINKS = "links"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the maps are made for; another value makes new maps.

    `directory` is the network's own on bpffs. Peers beyond `max_peers` stay on the slow path.
    `handle` tells the filters of this network from those of another one on the same devices; the
    VNI is a good one. Another `tunnel` under the same directory takes the place of the former one
    as another version does. `cache`, if there is one, keeps compiled programs for when no pins are
    left.
    """

    directory: Path
    network: IPv4Network
    subnet_len: int
    max_flows: int = 65536
    max_ports: int = 1024
    handle: int = 1
    tunnel: TunnelKind = TunnelKind.VXLAN
    cache: Path | None = None

    @property
    def subnets(self) -> int:
        """Return how many leases the network has room for."""
        return 1 << (self.subnet_len - self.network.prefixlen)

    @property
    def max_peers(self) -> int:
        """Return how many peers can be in the maps at a time."""
        return min(self.subnets, _MOST_SLOTS)


@dataclass(frozen=True, slots=True)
class DatapathConfig:
    """How this node takes part. MTUs in bytes of IP packet, `max_age` in seconds.

    `mtu` is the overlay device's, `pod_mtu` the smallest of any pod port and of the bridge.
    `tunnel` is of the kind that the settings name; None for the kind that has none. `carrier` is
    the TUN device whose packets a user-space proxy would carry; 0 where a kernel device does.
    `overlay` is the ifindex of the overlay device, 0 without one.
    `source_ports` is net.ipv4.ip_local_port_range, from which the kernel's device takes its own.
    """

    uplink: int
    node: IPv4Address
    subnet: IPv4Network
    mtu: int
    pod_mtu: int
    tunnel: Tunnel | None
    carrier: int = 0
    overlay: int = 0
    admission: Admission = Admission.STRICT
    spoof: SpoofCheck = SpoofCheck.DROP
    max_age: float = 5.0
    source_ports: tuple[int, int] = (32768, 60999)


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """A remote lease. `vtep_mac` is six bytes in wire order, for VXLAN only.

    A `direct` peer's node is on our link: packets go there as they are, without a tunnel.
    `nexthop` is the on-link address by which `node` is reached; None asks the routing table for
    every packet, which is always right and costs some hundred nanoseconds.
    """

    subnet: IPv4Network
    node: IPv4Address
    vtep_mac: bytes = bytes(6)
    direct: bool = False
    nexthop: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """Packets as on the wire and bytes of inner packets."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """What went to and came from one peer, by path."""

    fast_sent: Count
    slow_sent: Count
    fast_received: Count
    slow_received: Count


@dataclass(frozen=True, slots=True)
class Clock:
    """The kernel's jiffies now, and how many there are in a second."""

    jiffies: int
    hertz: int


class Datapath:
    """Loaded programs and their maps; a context manager that closes descriptors, nothing else."""

    def __init__(self, settings: Settings, pinned: pins.Pinned) -> None:
        self._settings = settings
        self._pinned = pinned
        self._hooks = _open_hooks(settings)
        self._wire = WireHook(settings.directory / _LINKS)
        maps = pinned.maps
        self._peers = PeerTable(
            index=maps["peer_index"],
            slots=maps["peers"],
            nodes=maps["nodes"],
            counters=maps["peer_counters"],
        )
        self._raw = Config.from_buffer_copy(maps["cfg"].lookup(bytes(4)) or bytes(Config()))
        self._spoof = SpoofCheck(self._raw.spoof)
        self._complete = True
        # Maps may be fresh while the XDP program on the uplink is not, or know of one that went.
        known = WireDuty(self._raw.wire)
        self._set_duties(known | WireDuty.ATTACHED if self._wire.on() else WireDuty(0))

    @property
    def adopted(self) -> bool:
        """Return whether the maps were there before, with flows and peers in them."""
        return not self._pinned.fresh

    @property
    def generation(self) -> int:
        """Return the current generation: flows of another one are void."""
        return int(self._raw.generation)

    @property
    def maps(self) -> dict[str, bpf.Map]:
        """Return the open maps by name, for inspection."""
        return self._pinned.maps

    def program_info(self, program: Program) -> bpf.ProgramInfo:
        """Return what the kernel says of a program, run time included where it is counted."""
        return bpf.program_info(self.program_fd(program))

    def program_fd(self, program: Program) -> int:
        """Return the descriptor of a program."""
        return self._pinned.programs[program.function].fd

    def clock(self) -> Clock:
        """Return the clock that stamps are made of."""
        jiffies, _ = _read_clock(self._pinned.programs[pins.CLOCK].fd)
        return Clock(jiffies=jiffies, hertz=int(self._raw.hertz))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor; programs stay attached and pinned."""
        self._hooks.close()
        self._pinned.close()

    def configure(self, config: DatapathConfig) -> None:
        """Take part as `config` says; voids every admitted flow if anything differs.

        Peers in the maps get new headers. Raises BpfError, LoaderError for a tunnel of another
        kind than the programs know.
        """
        raw = self._encode(config)
        self._spoof = config.spoof
        if bytes(raw) == bytes(self._raw):
            return
        before = self._underlay()
        raw.generation = (self.generation + 1) & 0xFFFF
        self._raw = raw
        self._write_config()
        if self._underlay() != before and self._peers.records:
            self._apply(dict(self._peers.records))
        logger.info(
            "fast path configured",
            extra={"admission": config.admission.name, "generation": self.generation},
        )

    def flush(self) -> None:
        """Void every admitted flow at once; each is witnessed anew by its next packets."""
        self._raw.generation = (self.generation + 1) & 0xFFFF
        self._write_config()

    def put_peer(self, entry: PeerEntry) -> None:
        """Add or change one peer.

        Do this before the kernel's route, neighbour and FDB entry: from now on its packets are
        accepted. Raises BpfError, PeersFullError.
        """
        index, record = self._record(entry)
        if self._peers.records.get(index) != record:
            self._apply({index: record})

    def remove_peer(self, subnet: IPv4Network) -> None:
        """Withdraw one peer; do this after the kernel's route. Raises BpfError."""
        index = self._index(subnet)
        if index in self._peers.records:
            self._apply({index: None})

    def replace_peers(self, entries: Iterable[PeerEntry]) -> None:
        """Make `entries` all the peers there are; those that did not change are not touched.

        Raises BpfError, PeersFullError.
        """
        desired = dict(self._record(entry) for entry in entries)
        current = self._peers.records
        changes: dict[int, Record | None] = dict.fromkeys(current.keys() - desired)
        changes.update(
            (index, record) for index, record in desired.items() if current.get(index) != record
        )
        self._complete = True
        if changes:
            self._apply(changes)
        self._write_config()

    def settle(self) -> None:
        """Reclaim what withdrawn peers held; call it every few seconds."""
        self._peers.settle()
        if self.awaits_opened:
            self._set_duties(WireDuty(0))  # what it opened before it went has been judged by now

    @property
    def awaits_opened(self) -> bool:
        """Return whether frames that a gone XDP program opened are believed, until `settle`."""
        return bool(self._raw.wire) and not self._wire.on()

    def put_pod_port(self, ifindex: int) -> None:
        """Attach both programs to the host end of a pod's veth, and let its flows be fast.

        The caller makes sure that it is a veth whose peer is in another network namespace
        (IFLA_LINK_NETNSID): bpf_redirect_peer drops what it cannot deliver. Raises AttachError or
        BpfError, also if the device is gone.
        """
        self._attach(ifindex, Direction.EGRESS, Program.TO_POD)
        self._attach(ifindex, Direction.INGRESS, Program.FROM_POD)
        self.maps["pod_ports"].update(_u32(ifindex), _u32(ifindex))
        if self._raw.wire & WireDuty.REDIRECTS and (features_of(ifindex) or 0) & Features.NDO_XMIT:
            self.maps["redirect_ports"].update(_u32(ifindex), _u32(ifindex))
        else:
            self.maps["redirect_ports"].delete(_u32(ifindex))

    def remove_pod_port(self, ifindex: int) -> None:
        """Forget a pod port, alive or gone; a port that is alive stays on the slow path."""
        self.maps["redirect_ports"].delete(_u32(ifindex))
        self.maps["pod_ports"].delete(_u32(ifindex))
        self._hooks.detach(ifindex, Direction.INGRESS)
        self._hooks.detach(ifindex, Direction.EGRESS)
        for address, value in list(self.maps["endpoints"].items()):
            endpoint = Endpoint.from_buffer_copy(value)
            if ifindex in (endpoint.delivered_port, endpoint.sent_port):
                self.maps["endpoints"].delete(address)

    def pod_ports(self) -> frozenset[int]:
        """Return the ifindexes that can be fast; the kernel itself takes a deleted device out."""
        return frozenset(int.from_bytes(key, "little") for key in self.maps["pod_ports"])

    def attach_uplink(self, ifindex: int, *, direct: bool) -> None:
        """Receive from this device; further ones than cfg's get the sender check as well.

        `direct` says that there are direct peers, or may be: then what the stack sends to them is
        witnessed here, at a price for all that the node sends. Raises AttachError.
        """
        self._attach(ifindex, Direction.INGRESS, Program.FROM_UPLINK)
        if direct:
            self._attach(ifindex, Direction.EGRESS, Program.TO_UPLINK)
        else:
            self._hooks.detach(ifindex, Direction.EGRESS)

    def attach_wire(self, device: XdpDevice, mode: Mode, *, redirects: bool) -> None:
        """Check senders by XDP on the uplink, and open packets of fast flows where it is native.

        Do this after `attach_uplink`, which has to know what was opened. `redirects`: hand direct
        peers' packets to pods whose device takes frames, from the next `put_pod_port` of each on;
        for native mode, and never where senders leave checksums to the device (veth): TCP would
        not work. Raises AttachError with the reason; then it is off.
        """
        fd = self._pinned.programs.get(pins.WIRE)
        if fd is None:
            self.detach_wire()
            raise AttachError("this kernel refuses the program, see the log of its loading")
        duties = WireDuty.ATTACHED
        if mode is Mode.NATIVE and self._raw.overlay:
            duties |= WireDuty.DECAPSULATES
        if mode is Mode.NATIVE and redirects:
            duties |= WireDuty.REDIRECTS
        try:
            self._wire.attach(device, mode, fd=fd.fd)
        except AttachError:
            self._set_duties(WireDuty(self._raw.wire) & WireDuty.ATTACHED)
            raise
        self._set_duties(duties, device.address)

    def detach_wire(self) -> None:
        """Take the XDP program off; what it opened is still known. Raises AttachError."""
        if self._wire.on():
            self._set_duties(WireDuty.ATTACHED)
        self._wire.detach()

    def wire_program(self) -> int:
        """Return the id of our XDP program that is on a device; 0 if there is none."""
        return self._wire.program()

    def attach_overlay(self, ifindex: int) -> None:
        """Witness what the stack sends through the overlay device. Raises AttachError."""
        self._attach(ifindex, Direction.EGRESS, Program.TO_OVERLAY)

    def attachments(self) -> tuple[Attachment, ...]:
        """Return every filter of ours in this network namespace."""
        return self._hooks.all_attached()

    def retire_old(self) -> tuple[str, ...]:
        """Remove pins of other layouts and programs; for when everything is attached anew.

        What still runs another version's programs, or another tunnel's, is on a device that is not
        ours any more: it is taken off. Raises AttachError.
        """
        current = (bpf.program_info(each.fd).id for each in self._pinned.programs.values())
        self._hooks.retire(frozenset(current))
        return pins.prune(self._settings.directory, self._pinned.keep)

    def counters(self) -> dict[tuple[Program, Verdict], int]:
        """Return how often each program was done with a packet for each reason. From any thread."""
        map_ = self.maps["verdicts"]
        cells = struct.unpack(f"={map_.spec.max_entries * map_.cpus}Q", map_.values())
        return {
            (program, verdict): sum(cells[at * map_.cpus : (at + 1) * map_.cpus])
            for program in Program
            for verdict in Verdict
            if (at := program << VERDICT_BITS | verdict) >= 0
        }

    def traffic(self) -> dict[IPv4Network, PeerTraffic]:
        """Return the traffic of each peer since it was added. Safe to call from any thread."""
        return {
            self._subnet(index): PeerTraffic(
                fast_sent=Count(sums.fast_sent_packets, sums.fast_sent_bytes),
                slow_sent=Count(sums.slow_sent_packets, sums.slow_sent_bytes),
                fast_received=Count(sums.fast_received_packets, sums.fast_received_bytes),
                slow_received=Count(sums.slow_received_packets, sums.slow_received_bytes),
            )
            for index, sums in self._peers.traffic().items()
        }

    def traffic_sums(self) -> dict[str, Sums]:
        """Return the same by the subnet's text, at a third of the cost: for who reads it often."""
        length = self._settings.subnet_len
        base, shift = int(self._settings.network.network_address), 32 - length
        return {
            f"{inet_ntoa((base + (index << shift)).to_bytes(4))}/{length}": sums
            for index, sums in self._peers.traffic().items()
        }

    def _attach(self, ifindex: int, direction: Direction, program: Program) -> None:
        fd = self.program_fd(program)
        self._hooks.attach(ifindex, direction, program=program.function, fd=fd)

    def _apply(self, changes: Mapping[int, Record | None]) -> None:
        if not self._peers.turns(changes):
            self._publish(changes)
            return
        # What was witnessed on one way is no witness for the other. Twice, since a packet may
        # have been witnessed on the old way before the new one was published.
        self.flush()
        try:
            self._publish(changes)
        finally:
            self.flush()

    def _publish(self, changes: Mapping[int, Record | None]) -> None:
        try:
            self._peers.apply(changes, self._underlay())
        except PeersFullError:
            # A peer that is not in the maps is a stranger to the sender check: only count.
            self._complete = False
            self._write_config()
            raise

    def _write_config(self) -> None:
        most = SpoofCheck.DROP if self._complete else SpoofCheck.COUNT
        self._raw.spoof = min(self._spoof, most)
        self.maps["cfg"].update(bytes(4), bytes(self._raw))

    def _set_duties(self, duties: WireDuty, mac: bytes | None = None) -> None:
        """Say what the XDP program does, and which address (None: as before) frames are for."""
        known = bytes(self._raw.uplink_mac)
        wanted = known if mac is None else mac[: len(known)].ljust(len(known), b"\0")
        if (self._raw.wire, known) != (duties, wanted):
            self._raw.wire, self._raw.uplink_mac = duties, Mac(*wanted)
            self._write_config()

    def _underlay(self) -> Underlay:
        raw = self._raw
        identity = Identity(port=bytes(raw.port), vni=bytes(raw.vni), mac=bytes(raw.vtep_mac))
        return Underlay(
            node=IPv4Address(bytes(raw.node)), tunnel=tunnel_of(self._settings.tunnel, identity)
        )

    def _encode(self, config: DatapathConfig) -> Config:
        identity = self._identity(config.tunnel)
        hertz = self._raw.hertz or _tick_rate(self._pinned.programs[pins.CLOCK].fd)
        first, last = config.source_ports
        return Config(
            max_age=round(config.max_age * hertz),
            witness_window=max(2, round(_WITNESS_SECONDS * hertz)),
            network=int(self._settings.network.network_address),
            subnet_shift=32 - self._settings.subnet_len,
            node=Address(*config.node.packed),
            vni=(type(Config().vni))(*identity.vni),
            uplink=config.uplink,
            own_subnet=self._index(config.subnet),
            subnets=self._settings.subnets,
            generation=self.generation,
            mtu=config.mtu,
            pod_mtu=config.pod_mtu,
            port=(type(Config().port))(*identity.port),
            source_port=first,
            source_ports=last - first,
            admission=config.admission,
            spoof=config.spoof,
            vtep_mac=Mac(*identity.mac),
            hertz=hertz,
            wire=self._raw.wire if self._wire.on() in (0, config.uplink) else 0,
            uplink_mac=self._raw.uplink_mac,
            carrier=config.carrier,
            overlay=config.overlay,
        )

    def _identity(self, tunnel: Tunnel | None) -> Identity:
        kind = TunnelKind.NONE if tunnel is None else tunnel.kind
        if kind is not self._settings.tunnel:
            raise LoaderError(f"tunnel: the programs know {self._settings.tunnel}, got {kind}")
        return Identity() if tunnel is None else tunnel.identity

    def _index(self, subnet: IPv4Network) -> int:
        settings = self._settings
        if subnet.prefixlen != settings.subnet_len or not subnet.subnet_of(settings.network):
            raise LoaderError(
                f"subnet {subnet}: not a /{settings.subnet_len} of {settings.network}"
            )
        offset = int(subnet.network_address) - int(settings.network.network_address)
        return offset >> (32 - settings.subnet_len)

    def _subnet(self, index: int) -> IPv4Network:
        length = self._settings.subnet_len
        base = int(self._settings.network.network_address) + (index << (32 - length))
        return IPv4Network((base, length))

    def _record(self, entry: PeerEntry) -> tuple[int, Record]:
        if self._settings.tunnel is TunnelKind.NONE and not entry.direct:
            raise LoaderError(f"peer {entry.subnet}: not direct, and there is no tunnel")
        record = Record(
            node=entry.node,
            vtep_mac=entry.vtep_mac,
            direct=entry.direct,
            nexthop=entry.node if entry.direct else entry.nexthop,
        )
        return self._index(entry.subnet), record


def load(settings: Settings) -> Datapath:
    """Adopt what is pinned for `settings`, or compile, load and pin it; attaches nothing.

    Raises CompileError or VerifierError with the whole log, ToolchainError, BpfError.
    """
    ensure_bpffs(settings.directory)
    specs = map_specs(
        subnets=settings.subnets,
        peers=settings.max_peers,
        flows=settings.max_flows,
        ports=settings.max_ports,
    )
    files = source.bpf_directory()
    map_home, maps, fresh = pins.open_maps(
        settings.directory, specs, tunnel=settings.tunnel, network=settings.network
    )
    program_home, programs = pins.open_programs(
        settings.directory,
        text=source.program_text(files, settings.tunnel),
        headers=files / "headers",
        map_home=map_home,
        maps=maps,
        kept=settings.cache and settings.cache / pins.kept_name(settings.tunnel),
    )
    keep = frozenset((map_home.name, program_home.name))
    return Datapath(settings, pins.Pinned(maps, programs, keep, fresh))


def _open_hooks(settings: Settings) -> Hooks:
    """Return TCX links where the kernel has them (6.6), else filters of clsact."""
    if tcx.is_supported():
        return tcx.TcxHooks(settings.directory / _LINKS, FilterHooks(settings.handle))
    return FilterHooks(settings.handle)


def _read_clock(clock: int) -> tuple[int, int]:
    jiffies, nanoseconds = struct.unpack("=QQ", bpf.run_once(clock, bytes(64)).packet[:16])
    return jiffies, nanoseconds


def _tick_rate(clock: int) -> int:
    """Return the kernel's jiffies per second, measured: not every kernel tells its CONFIG_HZ."""
    first = _read_clock(clock)
    time.sleep(_CLOCK_SECONDS)
    last = _read_clock(clock)
    measured = (last[0] - first[0]) * 1e9 / (last[1] - first[1])
    return min(_TICK_RATES, key=lambda rate: abs(rate - measured) / rate)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")
