"""Devices and their addresses, at a low rate, through pyroute2.

Promises values instead of the library's types, and one exception type that carries the errno. The
many objects of peers are `rtnetlink`'s. Works in the network namespace of the thread that makes
the `Links`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kersey_control.addresses import Mac, Vni
from kersey_control.devices import read_devices
from kersey_control.errors import KernelError
from kersey_control.instance import Instance
from kersey_control.rtnetlink import PROTOCOL, Rtnl
from kersey_control.rtnl_library import IPRoute, NetlinkError

_IFF_UP = 0x1

OWNER = "kersey"
"""The word that begins the interface alias of a device of ours, whatever its name."""

_HIGHEST_MAC = "fe:ff:ff:ff:ff:ff"
_BLACKHOLE = 6  # RTN_BLACKHOLE of include/uapi/linux/rtnetlink.h
_BLACKHOLE_METRIC = 2**31
"""Behind the bridge's own route for the same subnet, which must win while it exists."""


class RequestError(KernelError):
    """Report one refused request; `errno` says why."""

    def __init__(self, what: str, code: int, detail: str = "") -> None:
        name = errno.errorcode.get(code, str(code))
        super().__init__(f"{what}: {name}" + (f" ({detail})" if detail else ""))
        self.errno = code


@dataclass(frozen=True, slots=True)
class VxlanInfo:
    """What a VXLAN device was made with. `lower` is an ifindex, 0 if none."""

    vni: Vni
    port: int
    lower: int
    local: IPv4Address | None
    learning: bool
    gbp: bool
    udp_checksum: bool
    external: bool
    has_remote: bool


@dataclass(frozen=True, slots=True)
class Link:
    """One network device as the kernel shows it; `mtu` in bytes."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    alias: str = ""
    master: int = 0
    local: IPv4Address | None = None
    """Of an ipip device."""
    vxlan: VxlanInfo | None = None


@dataclass(frozen=True, slots=True)
class VxlanSpec:
    """The VXLAN device to make."""

    name: str
    vni: Vni
    port: int
    lower: int
    local: IPv4Address
    learning: bool
    gbp: bool
    mac: Mac
    mtu: int


class Links:
    """Read and change devices and their addresses. A context manager; one thread at a time.

    Devices that it makes or marks bear the instance's mark.
    """

    def __init__(self, instance: Instance | None = None) -> None:
        self._ipr = IPRoute()
        self._alias = OWNER if instance is None else f"{OWNER} {instance:08x}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; twice without harm."""
        self._ipr.close()

    def find(self, name: str) -> Link | None:
        """Return the device of this name, None if there is none. Raises RequestError."""
        try:
            with _request(f"read device {name}"):
                answers = list(self._ipr.link("get", ifname=name))
        except RequestError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answers[0]) if answers else None

    def vxlans(self) -> tuple[Link, ...]:
        """Return all VXLAN devices. Raises KernelError."""
        with Rtnl() as rtnl:
            names = [device.name for device in read_devices(rtnl, kind="vxlan")]
        links = map(self.find, names)
        return tuple(link for link in links if link is not None and link.vxlan is not None)

    def owned(self) -> tuple[Link, ...]:
        """Return all devices that bear the mark of any instance. Raises RequestError."""
        with _request("list devices"):
            links = [_link(answer) for answer in self._ipr.get_links()]
        return tuple(link for link in links if link.alias.split(" ")[0] == OWNER)

    def of_instance(self) -> tuple[Link, ...]:
        """Return the devices that bear our own mark. Raises RequestError."""
        return tuple(link for link in self.owned() if self.is_own(link))

    def is_own(self, link: Link) -> bool:
        """Return whether a device bears our own mark, whatever its name."""
        return link.alias == self._alias

    def create_vxlan(self, spec: VxlanSpec) -> None:
        """Create a VXLAN device, down. Raises RequestError.

        The MAC is part of the request: set afterwards, systemd-udevd may put its own in its place.
        The outer UDP checksum is off, which keeps clear of NICs that get the checksum of
        encapsulated packets wrong; every receiver takes 0 (RFC 7348 section 5).
        """
        with _request(f"create VXLAN device {spec.name}"):
            self._ipr.link(
                "add",
                ifname=spec.name,
                kind="vxlan",
                address=spec.mac,
                mtu=spec.mtu,
                vxlan_id=spec.vni,
                vxlan_link=spec.lower,
                vxlan_local=str(spec.local),
                vxlan_port=spec.port,
                vxlan_learning=spec.learning,
                vxlan_udp_csum=0,
                **({"vxlan_gbp": True} if spec.gbp else {}),
            )

    def create_ipip(self, name: str, local: IPv4Address) -> None:
        """Create an ipip device for many peers, down, as flannel does. Raises RequestError.

        EOPNOTSUPP: the kernel has none. TTL and DF of the outer header are the inner packet's.
        """
        with _request(f"create ipip device {name}"):
            self._ipr.link(
                "add",
                ifname=name,
                kind="ipip",
                ipip_local=str(local),
                ipip_ttl=0,
                ipip_pmtudisc=0,
            )

    def change_vxlan(self, link: Link, *, local: IPv4Address, learning: bool) -> None:
        """Change source address and learning of a VXLAN device in place. Raises RequestError."""
        with _request(f"change VXLAN device {link.name}"):
            self._ipr.link(
                "set",
                index=link.ifindex,
                kind="vxlan",
                vxlan_local=str(local),
                vxlan_learning=learning,
            )

    def change(
        self,
        link: Link,
        *,
        mtu: int | None = None,
        mac: Mac | None = None,
        up: bool | None = None,
    ) -> None:
        """Change what is given of a device. Raises RequestError."""
        wanted: dict[str, Any] = {}
        if mtu is not None:
            wanted["mtu"] = mtu
        if mac is not None:
            wanted["address"] = mac
        if up is not None:
            wanted["state"] = "up" if up else "down"
        with _request(f"set {wanted} on device {link.name}"):
            self._ipr.link("set", index=link.ifindex, **wanted)

    def mark(self, link: Link) -> None:
        """Make an adopted device ours, so that cleaning up finds it. Raises RequestError."""
        if link.alias != self._alias:
            with _request(f"mark device {link.name}"):
                self._ipr.link("set", index=link.ifindex, ifalias=self._alias)

    def unmark(self, link: Link) -> None:
        """Have a device be nobody's, so that cleaning up leaves it alone. Raises RequestError."""
        with _request(f"unmark device {link.name}"):
            self._ipr.link("set", index=link.ifindex, ifalias="")

    def delete(self, link: Link) -> None:
        """Delete a device; one that is gone already is no error. Raises RequestError."""
        try:
            with _request(f"delete device {link.name}"):
                self._ipr.link("del", index=link.ifindex)
        except RequestError as error:
            if error.errno != errno.ENODEV:
                raise

    def addresses(self, ifindex: int) -> tuple[IPv4Interface, ...]:
        """Return a device's IPv4 addresses with their prefix lengths. Raises RequestError."""
        with _request(f"list addresses of ifindex {ifindex}"):
            answers = list(self._ipr.get_addr(index=ifindex, family=2))
        return tuple(
            IPv4Interface((answer.get("local") or answer.get("address"), int(answer["prefixlen"])))
            for answer in answers
        )

    def has_address(self, address: IPv4Address) -> bool:
        """Return whether any device of this host has the address. Raises RequestError."""
        with _request(f"look for address {address}"):
            answers = list(self._ipr.get_addr(family=2))
        return any((a.get("local") or a.get("address")) == str(address) for a in answers)

    def add_address(self, ifindex: int, address: IPv4Interface) -> None:
        """Add an address; one that is there already is no error. Raises RequestError."""
        try:
            with _request(f"add address {address} to ifindex {ifindex}"):
                self._ipr.addr(
                    "add",
                    index=ifindex,
                    address=str(address.ip),
                    prefixlen=address.network.prefixlen,
                )
        except RequestError as error:
            if error.errno != errno.EEXIST:
                raise

    def remove_address(self, ifindex: int, address: IPv4Interface) -> None:
        """Remove an address; one that is gone already is no error. Raises RequestError."""
        try:
            with _request(f"remove address {address} from ifindex {ifindex}"):
                self._ipr.addr(
                    "del",
                    index=ifindex,
                    address=str(address.ip),
                    prefixlen=address.network.prefixlen,
                )
        except RequestError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise

    def keep_headroom_port(self, name: str, *, vni: Vni, bridge: int, mtu: int) -> None:
        """Have a VXLAN device that stays down as a port of `bridge` (ifindex). Raises RequestError.

        Its MAC is the highest there is, so that a bridge which takes the lowest MAC of its ports
        for its own keeps it; its MTU is the bridge's, which follows its smallest port.
        """
        found = self.find(name)
        if found is None:
            with _request(f"create device {name}"):
                self._ipr.link(
                    "add",
                    ifname=name,
                    kind="vxlan",
                    address=_HIGHEST_MAC,
                    mtu=mtu,
                    vxlan_id=vni,
                    vxlan_learning=False,
                )
            found = self.find(name)
        if found is None:
            raise RequestError(f"create device {name}", errno.ENODEV)
        self.mark(found)  # an alias in the request to create is ignored
        if (found.master, found.mtu) != (bridge, mtu):
            with _request(f"make device {name} a port of ifindex {bridge}"):
                self._ipr.link("set", index=found.ifindex, mtu=mtu, master=bridge)

    def keep_blackhole(self, subnet: IPv4Network) -> None:
        """Have our blackhole route for `subnet`, and no other. Raises RequestError."""
        present = self._blackholes()
        if subnet not in present:
            with _request(f"add blackhole route {subnet}"):
                self._blackhole("add", subnet)
        for stale in present - {subnet}:
            self._remove_blackhole(stale)

    def remove_blackholes(self) -> tuple[IPv4Network, ...]:
        """Remove our blackhole routes and return them. Raises RequestError."""
        present = self._blackholes()
        for subnet in present:
            self._remove_blackhole(subnet)
        return tuple(present)

    def _blackholes(self) -> set[IPv4Network]:
        with _request("list blackhole routes"):
            answers = list(self._ipr.get_routes(family=2, type=_BLACKHOLE, proto=PROTOCOL))
        return {
            IPv4Network(f"{answer.get('dst')}/{answer['dst_len']}")
            for answer in answers
            if answer["type"] == _BLACKHOLE and answer["proto"] == PROTOCOL
        }

    def _remove_blackhole(self, subnet: IPv4Network) -> None:
        with _request(f"remove blackhole route {subnet}"):
            self._blackhole("del", subnet)

    def _blackhole(self, verb: str, subnet: IPv4Network) -> None:
        self._ipr.route(
            verb, dst=str(subnet), type=_BLACKHOLE, proto=PROTOCOL, priority=_BLACKHOLE_METRIC
        )


def write_sysctl(path: str, value: str) -> bool:
    """Set a sysctl (`net/ipv6/conf/x/accept_ra`) if it exists; return whether it had to change.

    Raises RequestError.
    """
    file = Path("/proc/sys") / path
    try:
        if not file.exists() or file.read_text().strip() == value:
            return False
        file.write_text(value)
    except OSError as error:
        raise RequestError(f"set sysctl {path}={value}", error.errno or 0) from error
    return True


@contextmanager
def _request(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise RequestError(what, int(error.code), str(error.args[-1])) from error
    except OSError as error:
        raise RequestError(what, error.errno or 0) from error


def _link(answer: Any) -> Link:
    info = answer.get("linkinfo")
    kind = str(info.get("kind") or "") if info else ""
    data = info.get("data") if info else None
    return Link(
        ifindex=int(answer["index"]),
        name=str(answer.get("ifname")),
        kind=kind,
        mac=str(answer.get("address") or ""),
        mtu=int(answer.get("mtu") or 0),
        up=bool(int(answer["flags"]) & _IFF_UP),
        alias=str(answer.get("ifalias") or ""),
        master=int(answer.get("master") or 0),
        local=_ipip_local(data) if kind == "ipip" and data else None,
        vxlan=_vxlan(data) if kind == "vxlan" and data else None,
    )


def _ipip_local(data: Any) -> IPv4Address | None:
    local = data.get("ipip_local")
    return IPv4Address(local) if local else None


def _vxlan(data: Any) -> VxlanInfo:
    local = data.get("vxlan_local")
    return VxlanInfo(
        vni=Vni(int(data.get("vxlan_id") or 0)),
        port=int(data.get("vxlan_port") or 0),
        lower=int(data.get("vxlan_link") or 0),
        local=IPv4Address(local) if local else None,
        learning=bool(data.get("vxlan_learning")),
        gbp=data.get_attr("IFLA_VXLAN_GBP") is not None,
        udp_checksum=bool(data.get("vxlan_udp_csum")),
        external=bool(data.get("vxlan_collect_metadata")),
        has_remote=bool(data.get("vxlan_group") or data.get("vxlan_group6")),
    )
