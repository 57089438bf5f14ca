"""What checks read of this host: sysctls, devices, processes, sockets, rules. Changes nothing.

Sees the network namespace of the calling thread. A right that is missing makes things invisible,
never an error; the check on rights says so once.
"""

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Interface
from pathlib import Path

from kersey_control.devices import Device, read_devices
from kersey_control.errors import KernelError
from kersey_control.netlink import Link, Links
from kersey_control.node_view import NodeView
from kersey_control.pod_ports import PodPorts, read_pod_ports
from kersey_control.rtnetlink import Rtnl
from kersey_control.rules.process import ask, is_installed

_PROC = Path("/proc")
_SIOCETHTOOL = 0x8946
_GET_TX_CHECKSUM = 0x16  # ETHTOOL_GTXCSUM of include/uapi/linux/ethtool.h
_IFREQ = struct.Struct("16sP")
_ETHTOOL_VALUE = struct.Struct("=II")


@dataclass(frozen=True, slots=True)
class Process:
    """A process in our network namespace. `name` is its script's or its program's."""

    pid: int
    name: str
    command: str


class Host:
    """This host as of now; what is costly is read once."""

    def sysctl(self, path: str) -> str | None:
        """Return a sysctl by its path (`net/ipv4/ip_forward`), None if the kernel has none."""
        try:
            return (_PROC / "sys" / path).read_text().strip()
        except OSError:
            return None

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices at a glance."""
        with Rtnl() as rtnl:
            return read_devices(rtnl)

    @cached_property
    def vxlans(self) -> tuple[Link, ...]:
        """All VXLAN devices, looked at closely."""
        with Links() as links:
            return links.vxlans()

    def device(self, name: str) -> Device | None:
        """Return the device of a name."""
        return next((device for device in self.devices if device.name == name), None)

    def addresses(self, ifindex: int) -> tuple[IPv4Interface, ...]:
        """Return a device's addresses. Raises KernelError."""
        with Links() as links:
            return links.addresses(ifindex)

    def pod_ports(self, view: NodeView) -> PodPorts:
        """Return this node's pod ports and bridge; none while our subnet is unknown."""
        if view.subnet is None:
            return PodPorts(frozenset(), None, None)
        uplink = self.device(view.uplink)
        with Rtnl() as rtnl:
            return read_pod_ports(
                rtnl,
                subnet=view.subnet,
                overlay=view.overlay.ifindex if view.overlay else 0,
                uplink=uplink.ifindex if uplink else 0,
            )

    def sends_with_checksum_offload(self, device: str) -> bool | None:
        """Return whether a device leaves checksums of sent packets to hardware, None if unknown."""
        value = ctypes.create_string_buffer(_ETHTOOL_VALUE.pack(_GET_TX_CHECKSUM, 0))
        request = _IFREQ.pack(device.encode(), ctypes.addressof(value))
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return None
        return bool(_ETHTOOL_VALUE.unpack_from(value.raw)[1])

    @cached_property
    def processes(self) -> tuple[Process, ...]:
        """The processes in our network namespace, as far as we may see them."""
        return tuple(_processes())

    def udp_holders(self, port: int) -> list[Process]:
        """Return the processes that have a UDP socket on a port; the kernel's own has none."""
        inodes = set(_udp_sockets(port))
        return [each for each in self.processes if inodes & set(_sockets_of(each.pid))]

    @cached_property
    def ruleset(self) -> str:
        """The whole nftables rule set as JSON with handles, empty where there is no nft."""
        if not is_installed("nft"):
            return ""
        answer = ask(["nft", "-j", "-a", "list", "ruleset"], package="nftables")
        if answer.status:
            raise KernelError(f"nft list ruleset: {' '.join(answer.error.split())}")
        return answer.output


def _processes() -> Iterator[Process]:
    ours = _namespace("self")
    for path in _PROC.iterdir():
        if path.name.isdecimal() and ours and _namespace(path.name) == ours:
            with suppress(OSError):  # it ended meanwhile
                yield _process(path)


def _process(path: Path) -> Process:
    words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
    name = (path / "comm").read_text().strip()
    return Process(int(path.name), name, " ".join(words).strip() or name)


def _namespace(pid: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _udp_sockets(port: int) -> Iterator[str]:
    """Yield the inodes of UDP sockets on a port of ours."""
    for line in Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            yield fields[9]


def _sockets_of(pid: int) -> Iterator[str]:
    with suppress(OSError):  # ended, or not ours to look at
        for path in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                target = str(path.readlink())
                if target.startswith("socket:["):
                    yield target[len("socket:[") : -1]
