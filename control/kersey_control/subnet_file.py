"""The subnet file (`subnet.env`): what the CNI plugin reads to set up pods.

Promises: flannel's lines in flannel's order; a reader sees the old file or the whole new one, also
after a power loss; mode 0644 whatever the umask. Never removes the file: pods are added while the
daemon is down.
"""

import logging
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from kersey_control.whole_file import write_whole_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SubnetFile:
    """The file's content; `mtu` is in bytes of IP packet, one for both families."""

    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    ip_masq: bool
    network_v6: IPv6Network | None = None
    subnet_v6: IPv6Network | None = None

    def format(self) -> str:
        """Return the text: flannel pkg/subnet/subnet.go, WriteSubnetFile."""
        lines = [
            f"FLANNEL_NETWORK={self.network}",
            f"FLANNEL_SUBNET={_first_address(self.subnet)}",
        ]
        if self.network_v6 is not None and self.subnet_v6 is not None:
            lines.append(f"FLANNEL_IPV6_NETWORK={self.network_v6}")
            lines.append(f"FLANNEL_IPV6_SUBNET={_first_address(self.subnet_v6)}")
        lines.append(f"FLANNEL_MTU={self.mtu}")
        lines.append(f"FLANNEL_IPMASQ={'true' if self.ip_masq else 'false'}")
        return "".join(f"{line}\n" for line in lines)


def write_subnet_file(path: Path, content: SubnetFile) -> bool:
    """Make the file say `content`; return whether it had to change. Raises OSError."""
    return write_whole_file(path, content.format())


def read_subnet_file(path: Path) -> IPv4Network | None:
    """Return the subnet that the file names; None, with a warning, if it names no valid one.

    A missing file is None without a warning.
    """
    return _read(path, "FLANNEL_SUBNET")


def read_network(path: Path) -> IPv4Network | None:
    """Return the network that the file names, as `read_subnet_file` does the subnet."""
    return _read(path, "FLANNEL_NETWORK")


def _read(path: Path, name: str) -> IPv4Network | None:
    try:
        return _value_of(name, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("subnet file unusable", extra={"path": str(path), "reason": str(error)})
        return None


def _value_of(name: str, text: str) -> IPv4Network:
    """Return what a file's text says of a name; ValueError if that is none or several."""
    value = dict(map(_assignment, text.splitlines())).get(name)
    if not value:
        raise ValueError(f"no {name}")
    return IPv4Network(value, strict=False)


def _assignment(line: str) -> tuple[str, str]:
    """Read one shell-like assignment; the key of any other line is a text that no one asks for."""
    key, _, value = line.strip().removeprefix("export ").partition("=")
    value = value.strip()
    if value[:1] in {'"', "'"}:
        return key.strip(), value[1:].partition(value[0])[0]
    return key.strip(), value.partition(" #")[0].strip()


def _first_address(subnet: IPv4Network | IPv6Network) -> str:
    """Return the bridge's address, the one behind the subnet's base."""
    return f"{subnet.network_address + 1}/{subnet.prefixlen}"
