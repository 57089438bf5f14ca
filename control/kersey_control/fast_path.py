"""The BPF fast path from the daemon's side: which peers, pod ports and devices it works for.

It only accelerates. Whatever fails here is reported once and tried again with the next repair, and
packets take the kernel's own path meanwhile; no failure reaches the code that keeps that path.
Whether there is a fast path at all is decided once, at start, with a reason.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kersey_loader.datapath import Datapath, DatapathConfig, PeerEntry, Settings, load
from kersey_loader.errors import AttachError, LoaderError
from kersey_loader.layout import Admission, SpoofCheck
from kersey_loader.occupancy import measure
from kersey_loader.probe import probe
from kersey_loader.tunnel import TunnelKind
from kersey_loader.xdp import read_device

from kersey_control import options as asked
from kersey_control.addresses import mac_bytes
from kersey_control.backends.base import Backend
from kersey_control.errors import KernelError, NotWantedError, UnavailableError
from kersey_control.headroom import Headroom
from kersey_control.instance import instance_of
from kersey_control.netconfig import (
    BackendConfig,
    HostGwConfig,
    IpipConfig,
    NetworkConfig,
    UdpConfig,
    VxlanConfig,
)
from kersey_control.netlink import Links, RequestError, write_sysctl
from kersey_control.options import Options
from kersey_control.peer import Peer, Via
from kersey_control.pod_ports import PodPorts
from kersey_control.status import Status
from kersey_control.underlay import Underlay
from kersey_control.uplink import Uplink
from kersey_control.xdp import XdpChoice, choose_xdp

logger = logging.getLogger(__name__)

ASKED_FOR = "asked for"
NOT_OURS = "with this backend packets are not ours to carry"
NOT_WANTED = frozenset({ASKED_FOR, NOT_OURS})
"""Reasons to have no fast path that are nobody's trouble; the alerting rules have them too."""

LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
"""Without it conntrack calls packets that return from the fast path INVALID: it saw only some of
the connection, and kube-proxy drops what is INVALID."""

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ADMISSIONS = {
    asked.Admission.STRICT: Admission.STRICT,
    asked.Admission.DIRECT: Admission.DIRECT,
    asked.Admission.OFF: Admission.OFF,
}
_TUNNELS: dict[type[BackendConfig], TunnelKind] = {
    VxlanConfig: TunnelKind.VXLAN,
    UdpConfig: TunnelKind.UDP,
    IpipConfig: TunnelKind.IPIP,
    HostGwConfig: TunnelKind.NONE,
}
_SPOOF_CHECKS = {
    asked.SpoofCheck.DROP: SpoofCheck.DROP,
    asked.SpoofCheck.COUNT: SpoofCheck.COUNT,
    asked.SpoofCheck.OFF: SpoofCheck.OFF,
}


def open_fast_path(options: Options, config: NetworkConfig) -> Datapath:
    """Return the loaded programs and their maps, adopted from the last run where they can be.

    Raises UnavailableError with every reason why there is no fast path here.
    """
    if options.datapath is asked.Datapath.NETLINK:
        raise NotWantedError(ASKED_FOR)
    kind = _TUNNELS.get(type(config.backend))
    if kind is None:
        raise NotWantedError(NOT_OURS)
    capabilities = probe(options.bpf_dir)
    if not capabilities.available:
        raise UnavailableError("; ".join(capabilities.missing))
    settings = Settings(
        directory=directory_of(options),
        network=config.network,
        subnet_len=config.subnet_len,
        tunnel=kind,
        max_flows=options.max_flows,
        handle=instance_of(options.subnet_file),
        cache=options.cache_dir,
    )
    try:
        return load(settings)
    except LoaderError as error:
        logger.warning("fast path not loaded", extra={"log": str(error)})
        raise UnavailableError(str(error).splitlines()[0]) from error
    except OSError as error:
        raise UnavailableError(f"--bpf-dir {options.bpf_dir} cannot be used: {error}") from error


def directory_of(options: Options) -> Path:
    """Return where this daemon's pins are, whatever its network and backend."""
    return options.bpf_dir / f"instance-{instance_of(options.subnet_file):08x}"


class FastPath:
    """Keep the fast path equal to peers, pod ports and devices. One thread at a time."""

    def __init__(
        self,
        *,
        datapath: Datapath,
        options: Options,
        backend: Backend,
        network: NetworkConfig,
        links: Links,
        underlay: Underlay,
        status: Status,
    ) -> None:
        self._datapath = datapath
        self._options = options
        self._backend = backend
        self._network = network
        self._underlay = underlay
        self._headroom = Headroom(links, instance_of(options.subnet_file))
        self._status = status
        self._subnet: IPv4Network | None = None
        self._uplink: Uplink | None = None
        self._pod_mtu: int | None = None
        self._entries: dict[IPv4Network, PeerEntry] = {}
        self._unfit: set[IPv4Network] = set()
        self._served: frozenset[int] = frozenset()
        self._shaped: Mapping[int, str] = {}
        self._troubles: dict[str, str] = {}
        status.verdicts, status.traffic = self._verdicts, datapath.traffic_sums
        status.occupancy = partial(measure, datapath)

    def settle(self, *, subnet: IPv4Network, uplink: Uplink) -> None:
        """Take part with this subnet and uplink; cheap when nothing changed."""
        self._subnet, self._uplink = subnet, uplink
        self._attempt("configure", self._configure)

    def attach(self) -> None:
        """Have our programs on uplink, overlay device and every known pod port, whatever happened.

        Peers must be in the maps before, since the sender check refuses who is not.
        """
        received = self._attempt("attach", self._attach)
        self._attempt("xdp", partial(self._attach_wire, received=received))
        for ifindex in self._datapath.pod_ports():
            self._attempt(f"pod port {ifindex}", partial(self._datapath.put_pod_port, ifindex))

    def replace_peers(self, peers: Iterable[Peer]) -> None:
        """Make these all the peers of the fast path."""
        self._troubles.pop("next hops", None)
        self._entries = {}
        for peer in peers:
            self._note(peer)
        self._attempt("peers", lambda: self._datapath.replace_peers(self._entries.values()))
        self._attempt("configure", self._configure)

    def put_peer(self, peer: Peer) -> None:
        """Accept and serve one peer; call it before the kernel's route leads there."""
        entry = self._note(peer)
        if entry is not None:
            self._attempt("peers", lambda: self._datapath.put_peer(entry))
        elif peer.subnet in self._unfit:
            self._attempt("configure", self._configure)

    def remove_peer(self, subnet: IPv4Network) -> None:
        """Forget one peer; call it after the kernel's route is gone."""
        self._unfit.discard(subnet)
        if self._entries.pop(subnet, None) is not None:
            self._attempt("peers", lambda: self._datapath.remove_peer(subnet))

    def follow_ports(self, found: PodPorts) -> None:
        """Serve exactly these pod ports, and give their packets room for our headers."""
        self._status.pod_mtu, self._status.foreign_filters = (
            found.largest_mtu,
            found.foreign_filters,
        )
        if found.mtu != self._pod_mtu:
            self._pod_mtu = found.mtu
            self._attempt("configure", self._configure)
        if found.shaped != self._shaped:
            self._shaped = found.shaped
            logger.info("pod ports left to the stack", extra={"shaped": dict(found.shaped)})
        known = self._datapath.pod_ports()
        # The kernel itself takes a deleted device out of that map, but not its links and endpoints.
        for ifindex in (known | self._served) - found.ports:
            self._attempt(f"pod port {ifindex}", partial(self._datapath.remove_pod_port, ifindex))
        for ifindex in found.ports - known:
            self._attempt(f"pod port {ifindex}", partial(self._datapath.put_pod_port, ifindex))
        self._served = found.ports
        self._troubles = {
            step: why
            for step, why in self._troubles.items()
            if not step.startswith("pod port ") or int(step.split()[-1]) in found.ports
        }
        bridge = found.bridge
        if bridge is not None and self._backend.overhead:
            self._attempt("headroom", lambda: self._headroom.keep(bridge))

    def check_admission(self) -> None:
        """Have conntrack forgive gaps again, or admit no flow; call it when rules changed.

        It may have been loaded, or set back, by whoever brought the rules.
        """
        self._attempt("configure", self._configure)

    def flush(self) -> None:
        """Have every admitted flow witnessed anew: a rule changed that may forbid it."""
        self._attempt("flush", self._datapath.flush)

    def tidy(self) -> None:
        """Take back what removed peers held, and the pins of an older version."""
        self._attempt("settle", self._datapath.settle)

    @property
    def is_untidy(self) -> bool:
        """Return whether `tidy` should be called soon: an XDP program has just gone."""
        return self._datapath.awaits_opened

    def retire_old(self) -> None:
        """Remove pins of other versions and of gone devices, once everything is attached anew."""
        self._attempt("retire", self._datapath.retire_old)
        self._attempt("leftover links", self._datapath.attachments)

    def _verdicts(self) -> dict[tuple[str, str], int]:
        return {
            (program.function, verdict.name.lower()): count
            for (program, verdict), count in self._datapath.counters().items()
        }

    def _configure(self) -> None:
        if self._subnet is None or self._uplink is None:
            return
        first, last = map(int, _PORT_RANGE.read_text().split())
        self._datapath.configure(
            DatapathConfig(
                uplink=self._uplink.ifindex,
                node=self._backend.source or self._uplink.address,
                subnet=self._subnet,
                tunnel=self._backend.tunnel,
                carrier=self._backend.carrier,
                overlay=self._backend.ifindex or 0,
                mtu=self._backend.mtu,
                pod_mtu=min(self._pod_mtu or self._backend.mtu, self._backend.mtu),
                admission=self._admission(),
                spoof=self._spoof_check(),
                source_ports=(first, last),
            )
        )

    def _attach(self) -> None:
        if self._uplink is None:
            return
        if self._backend.ifindex is not None:
            self._datapath.attach_overlay(self._backend.ifindex)
        self._datapath.attach_uplink(self._uplink.ifindex, direct=self._backend.has_direct_peers)

    def _attach_wire(self, *, received: bool) -> None:
        """Have the uplink's XDP program if it was asked for and can be; else go without.

        `received`: the TC programs are there, which have to know what this one opened.
        """
        if self._options.xdp is asked.Xdp.OFF or self._uplink is None:
            self._datapath.detach_wire()
            return
        device = read_device(self._uplink.ifindex)
        is_foreign = device.program not in (0, self._datapath.wire_program())
        choice = choose_xdp(
            self._options.xdp, device, foreign=device.program_name if is_foreign else ""
        )
        if choice.mode is not None and not received:
            choice = XdpChoice(None, "the TC programs of the uplink could not be attached")
        if choice.mode is not None:
            try:
                self._datapath.attach_wire(
                    device, choice.mode, redirects=self._options.xdp_redirect
                )
            except AttachError as error:
                choice = XdpChoice(None, str(error))
        if choice.mode is None:
            self._datapath.detach_wire()
        self._tell_xdp(choice)

    def _tell_xdp(self, choice: XdpChoice) -> None:
        status = self._status
        if (status.xdp_mode, status.xdp_reason) != (choice.name, choice.reason):
            logger.info("xdp", extra={"mode": choice.name, "reason": choice.reason})
        status.xdp_mode, status.xdp_reason = choice.name, choice.reason

    def _admission(self) -> Admission:
        """Return the admission that is safe: strict needs a conntrack that forgives gaps."""
        wanted = _ADMISSIONS[self._options.admission]
        try:
            write_sysctl(LIBERAL, "1")
        except RequestError as error:
            if wanted is Admission.STRICT:
                self._tell("admission", f"switched off: {error}")
                return Admission.OFF
        self._troubles.pop("admission", None)
        return wanted

    def _spoof_check(self) -> SpoofCheck:
        """Return the sender check; peers that the maps cannot name must not be dropped by it."""
        wanted = _SPOOF_CHECKS[self._options.spoof_check]
        return min(wanted, SpoofCheck.COUNT) if self._unfit else wanted

    def _note(self, peer: Peer) -> PeerEntry | None:
        """Return the peer as the maps have it; None for one that they have no place for."""
        self._unfit.discard(peer.subnet)
        self._entries.pop(peer.subnet, None)
        network = self._network
        if peer.subnet == self._subnet or self._uplink is None:
            return None
        if not peer.subnet.subnet_of(network.network):
            return None
        if peer.subnet.prefixlen != network.subnet_len:
            self._unfit.add(peer.subnet)
            return None
        entry = PeerEntry(
            subnet=peer.subnet,
            node=peer.node,
            vtep_mac=mac_bytes(peer.mac) if peer.mac else bytes(6),
            direct=peer.via is Via.DIRECT,
            nexthop=peer.node if self._is_neighbour(peer.node) else None,
        )
        self._entries[peer.subnet] = entry
        return entry

    def _is_neighbour(self, node: IPv4Address) -> bool:
        """Return whether the node is its own next hop; where unknown, the kernel finds the way."""
        try:
            return self._uplink is not None and self._underlay.is_neighbour(
                node, self._uplink.ifindex
            )
        except KernelError as error:
            self._tell("next hops", str(error))
            return False

    def _attempt(self, step: str, action: Callable[[], object]) -> bool:
        """Do it, or say once that it failed; the next repair tries again. Return if it worked."""
        works = False
        try:
            action()
        except (LoaderError, KernelError, OSError) as error:
            self._tell(step, str(error))
        else:
            works = True
            if self._troubles.pop(step, None) is not None:
                logger.info("fast path works again", extra={"step": step})
        self._status.fast_path_troubles = dict(self._troubles)
        return works

    def _tell(self, step: str, trouble: str) -> None:
        if self._troubles.get(step) != trouble:
            logger.warning("fast path in trouble", extra={"step": step, "reason": trouble})
        self._troubles[step] = trouble
