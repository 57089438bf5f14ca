"""The vxlan backend: the kernel device `flannel.<VNI>`, and what a peer becomes on it.

Promises the device that flannel makes (flannel pkg/backend/vxlan), or adopts the one flannel left,
MAC and peers included. It never changes a device of another name, and never programs peers
itself: it says what the kernel must hold, `forwarding` does it. With DirectRouting a peer whose
node is a neighbour on the uplink's link is reached by a plain route, others through the tunnel.
"""

import errno
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import msgspec
from kersey_loader.tunnel import VxlanTunnel

from kersey_control.addresses import Mac, Vni, gateway_of, mac_bytes, mac_from_bytes, parse_mac
from kersey_control.backends.base import Backend, check_lease, refusal, routed_by
from kersey_control.backends.device import (
    MIN_MTU,
    ignore_router_advertisements,
    keep_address,
    outer_source,
)
from kersey_control.errors import InvalidInputError, KernelError, PeerRefusedError
from kersey_control.lease import Lease
from kersey_control.netconfig import BackendConfig, VxlanConfig
from kersey_control.netlink import Link, Links, RequestError, VxlanSpec
from kersey_control.peer import Peer, Via
from kersey_control.reconcile import FdbEntry, KernelObject, KernelState, Neighbour
from kersey_control.rtnetlink import Rtnl
from kersey_control.underlay import Underlay
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)


class _BackendData(msgspec.Struct):
    vni: int = msgspec.field(name="VNI")
    mac: str = msgspec.field(name="VtepMAC")


_decode_data = msgspec.json.Decoder(_BackendData).decode
_encode_data = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Device:
    """The device as it stands; `mac` also outlives it, for the one that takes its place."""

    ifindex: int
    uplink: int
    source: IPv4Address
    mac: Mac
    mtu: int


class VxlanBackend(Backend):
    """Own `flannel.<VNI>`: the name that flannel nodes expect too.

    `last_data` is the BackendData of our last run's lease; a new device takes the MAC in it, which
    peers still know us by.
    """

    name = lease_type = "vxlan"
    overhead = 50  # inner Ethernet 14, VXLAN 8, UDP 8, IP 20 (RFC 7348)
    device_name: str

    def __init__(
        self,
        config: VxlanConfig,
        *,
        network: IPv4Network,
        subnet_len: int,
        node_id: str,
        links: Links,
        rtnl: Rtnl,
        underlay: Underlay,
        last_data: bytes = b"",
    ) -> None:
        self._config = config
        self.device_name = f"flannel.{config.vni}"
        self._network = network
        self._subnet_len = subnet_len
        self._node_id = node_id
        self._links = links
        self._rtnl = rtnl
        self._underlay = underlay
        self._last_mac = remembered_mac(last_data, config.vni)
        self._device_now: _Device | None = None

    @property
    def ifindex(self) -> int:
        """Return our device's ifindex; another one after the device was made again."""
        return self._device.ifindex

    @property
    def tunnel(self) -> VxlanTunnel:
        """Return VXLAN with our VTEP MAC."""
        return VxlanTunnel(
            vni=self._config.vni, port=self._config.port, mac=mac_bytes(self._device.mac)
        )

    @property
    def source(self) -> IPv4Address:
        """Return the device's local address."""
        return self._device.source

    @property
    def has_direct_peers(self) -> bool:
        """Return whether DirectRouting is set."""
        return self._config.direct_routing

    @property
    def mtu(self) -> int:
        """Return the MTU that pods must use, in bytes of IP packet."""
        return self._device.mtu

    @property
    def lease_data(self) -> bytes:
        """Return `{"VNI":1,"VtepMAC":"..."}`: flannel recovers its MAC from exactly this form."""
        return _encode_data(_BackendData(vni=self._config.vni, mac=self._device.mac))

    def configure(self, config: BackendConfig) -> None:
        """Follow another MTU from the next `prepare` on."""
        if isinstance(config, VxlanConfig):
            self._config = config

    def prepare(self, uplink: Uplink) -> None:
        """Create, adopt or repair our device. Idempotent. Raises KernelError.

        A device that differs in what the kernel cannot change is deleted and made again with the
        same MAC; everything on it is then gone until the next `forwarding.audit`.
        """
        found = self._links.find(self.device_name)
        spec = self._spec(uplink, found)
        if found is not None:
            found = self._keep_or_delete(found, spec)
        if found is None:
            found = self._create(spec)
        self._links.mark(found)
        self._bring_up(found, spec)
        self._device_now = _Device(found.ifindex, uplink.ifindex, spec.local, spec.mac, spec.mtu)
        ignore_router_advertisements(self.device_name)

    def assign(self, subnet: IPv4Network) -> None:
        """Give the device the subnet's base as a /32, and take other pod addresses from it."""
        keep_address(self._links, self.ifindex, subnet, self._network)

    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes. Raises PeerRefusedError with the reason."""
        check_lease(lease, frozenset({self.lease_type}))
        try:
            data = _decode_data(lease.backend_data)
            mac = parse_mac(data.mac, field="BackendData.VtepMAC")
        except InvalidInputError as error:
            raise PeerRefusedError(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            expected = f'{{"VNI":<n>,"VtepMAC":"<mac>"}} ({error})'
            raise refusal("BackendData", lease.backend_data[:200], expected) from None
        if data.vni != self._config.vni:
            raise refusal("BackendData.VNI", data.vni, f"our VNI {self._config.vni}")
        if self._device_now is not None and mac == self._device_now.mac:
            raise refusal("BackendData.VtepMAC", mac, "one that is not our own")
        if self._config.direct_routing and self._underlay.is_neighbour(
            lease.public_ip, self._device.uplink
        ):
            return Peer(subnet=lease.subnet, node=lease.public_ip, via=Via.DIRECT)
        return Peer(subnet=lease.subnet, node=lease.public_ip, via=Via.VXLAN, mac=mac)

    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return forwarding entry, neighbour, nexthop and route, or only the latter two."""
        if peer.via is Via.DIRECT:
            return routed_by(peer, self._device.uplink, peer.node, onlink=False)
        if peer.via is not Via.VXLAN or peer.mac is None:
            raise refusal("via", peer.via, "vxlan, with a MAC")
        ifindex, gateway = self._device.ifindex, gateway_of(peer.subnet)
        return (
            FdbEntry(ifindex, peer.mac, peer.node),
            Neighbour(ifindex, gateway, peer.mac),
            *routed_by(peer, ifindex, gateway, onlink=True),
        )

    def actual(self) -> KernelState:
        """Read back every kernel object that is ours to keep or remove. Raises KernelError."""
        device = self._device
        return self._rtnl.owned(
            overlay=device.ifindex,
            uplink=device.uplink,
            network=self._network,
            adopt=self._subnet_len if self._config.direct_routing else None,
        )

    @property
    def _device(self) -> _Device:
        if self._device_now is None:
            raise KernelError(f"{self.device_name}: not prepared yet")
        return self._device_now

    def _spec(self, uplink: Uplink, found: Link | None) -> VxlanSpec:
        return VxlanSpec(
            name=self.device_name,
            vni=self._config.vni,
            port=self._config.port,
            lower=uplink.ifindex,
            local=outer_source(self._links, uplink),
            learning=self._config.learning,
            gbp=self._config.gbp,
            mac=self._choose_mac(found, uplink),
            mtu=self._choose_mtu(uplink),
        )

    def _choose_mac(self, found: Link | None, uplink: Uplink) -> Mac:
        """Return the MAC in use, or a stable one: peers know us by it, so it must not wander."""
        if self._device_now is not None:
            return self._device_now.mac
        if found is not None and found.kind == "vxlan":
            try:
                return parse_mac(found.mac, field=f"MAC of {found.name}")
            except InvalidInputError:
                pass  # all-zero or multicast: nobody can send to it
        return self._last_mac or derive_mac(self._node_id, uplink.public_ip, self._config.vni)

    def _choose_mtu(self, uplink: Uplink) -> int:
        underlay = min(self._config.mtu or uplink.mtu, uplink.mtu)
        mtu = underlay - self.overhead
        if mtu < MIN_MTU:
            raise KernelError(
                f"MTU of {self.device_name}: got {mtu} ({uplink.name} has {uplink.mtu}, Backend.MTU"
                f" is {self._config.mtu}), expected at least {MIN_MTU}"
            )
        unchanged = self._device_now is not None and self._device_now.mtu == mtu
        if self._config.mtu and self._config.mtu > uplink.mtu and not unchanged:
            self._log("MTU limited by uplink", wanted=self._config.mtu, uplink_mtu=uplink.mtu)
        return mtu

    def _keep_or_delete(self, found: Link, spec: VxlanSpec) -> Link | None:
        """Return the device if it can serve, changed in place where needed, or None."""
        difference = incompatibility(found, spec)
        if difference is None and not self._change_in_place(found, spec):
            difference = "source address or learning, which this kernel cannot change"
        if difference is None:
            return found
        self._refuse_if_taken(spec)
        self._links.delete(found)
        self._log("deleted to be made again", difference=difference)
        return None

    def _change_in_place(self, found: Link, spec: VxlanSpec) -> bool:
        """Correct source address and learning; return whether the kernel could."""
        info = found.vxlan
        if info is None or (info.local, info.learning) == (spec.local, spec.learning):
            return info is not None
        try:
            self._links.change_vxlan(found, local=spec.local, learning=spec.learning)
        except RequestError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return False
            raise
        self._log("changed", local=str(spec.local), learning=spec.learning)
        return True

    def _create(self, spec: VxlanSpec) -> Link:
        self._refuse_if_taken(spec)
        self._links.create_vxlan(spec)
        found = self._reread(spec)
        self._log("created", mac=spec.mac, mtu=spec.mtu)
        return found

    def _refuse_if_taken(self, spec: VxlanSpec) -> None:
        """Raise KernelError for another's device of our VNI; ours that was renamed goes."""
        for other in self._links.vxlans():
            info = other.vxlan
            if (
                other.name == spec.name
                or not info
                or (info.vni, info.port) != (spec.vni, spec.port)
            ):
                continue
            if not self._links.is_own(other):
                raise KernelError(
                    f"{spec.name}: got device {other.name} with the same VNI {spec.vni} and port"
                    f" {spec.port}, expected none; delete it (ip link del {other.name}) or choose"
                    " another VNI or Port in the network config"
                )
            self._links.delete(other)
            self._log("deleted, it had another name", name=other.name)

    def _bring_up(self, found: Link, spec: VxlanSpec) -> None:
        if found.mtu != spec.mtu:
            self._links.change(found, mtu=spec.mtu)
            self._log("MTU changed", mtu=spec.mtu, before=found.mtu)
        if not found.up:
            self._open(found, spec)
        self._insist_on_mac(spec)

    def _open(self, found: Link, spec: VxlanSpec) -> None:
        """Set the device up, which is when the kernel binds the UDP port."""
        try:
            self._links.change(found, up=True)
        except RequestError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise KernelError(self._port_conflict(spec)) from error
        self._log("set up")

    def _port_conflict(self, spec: VxlanSpec) -> str:
        others = [
            link.name
            for link in self._links.vxlans()
            if link.name != spec.name and link.up and link.vxlan and link.vxlan.port == spec.port
        ]
        holder = f"device {', '.join(others)} with other settings" if others else "another program"
        return (
            f"{spec.name}: got UDP port {spec.port} held by {holder}, expected it free; stop that"
            " one (ss -ulpn shows programs) or choose another Port in the network config"
        )

    def _insist_on_mac(self, spec: VxlanSpec) -> None:
        """Check the MAC once the device is up, since systemd-udevd may have put another there."""
        found = self._reread(spec)
        if found.mac == spec.mac:
            return
        self._links.change(found, mac=spec.mac)
        self._log("MAC put back", mac=spec.mac, before=found.mac)
        now = self._reread(spec).mac
        if now != spec.mac:
            raise KernelError(f"MAC of {spec.name}: got {now}, expected {spec.mac} to stay")

    def _reread(self, spec: VxlanSpec) -> Link:
        found = self._links.find(spec.name)
        if found is None:
            raise KernelError(f"{spec.name}: deleted by someone while being prepared")
        return found

    def _log(self, event: str, **fields: object) -> None:
        logger.info("overlay device %s", event, extra={"device": self.device_name, **fields})


def remembered_mac(data: bytes, vni: Vni) -> Mac | None:
    """Return the MAC in a lease's BackendData, None unless it is usable and for this VNI."""
    try:
        found = _decode_data(data)
        mac = parse_mac(found.mac, field="BackendData.VtepMAC")
    except (InvalidInputError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return mac if found.vni == vni else None


def derive_mac(node_id: str, address: IPv4Address, vni: Vni) -> Mac:
    """Return a node's VTEP MAC: the same at every start, locally administered, unicast.

    The address is part of it because machines cloned from one image may share their node id.
    """
    digest = hashlib.sha256(f"kersey vtep {vni} {node_id} {address}".encode()).digest()
    return mac_from_bytes(bytes([digest[0] & 0xFC | 0x02]) + digest[1:6])


def incompatibility(found: Link, spec: VxlanSpec) -> str | None:
    """Return what makes an existing device unusable and cannot be changed in it, None if nothing.

    The outer UDP checksum is not compared: the kernel cannot change it, and to make flannel's
    device again only for that would cut every connection.
    """
    info = found.vxlan
    if info is None:
        return f"kind: got {found.kind or 'none'}, expected vxlan"
    for name, got, expected in (
        ("VNI", info.vni, spec.vni),
        ("port", info.port, spec.port),
        ("lower device", info.lower, spec.lower),
        ("GBP", info.gbp, spec.gbp),
        ("external", info.external, False),
        ("remote or group", info.has_remote, False),
    ):
        if got != expected:
            return f"{name}: got {got}, expected {expected}"
    return None
