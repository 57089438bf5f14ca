"""The CNI configuration: what a container runtime calls for each pod, and with which subnet.

Promises: only plugins that every distribution has (containernetworking); a runtime sees no file,
the old one or the whole new one. A file of someone else is kept beside ours and put back when ours
is removed.

Never calls a plugin. Format: CNI specification, "network configuration lists".
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from kersey_control.options import CniMode
from kersey_control.whole_file import write_whole_file

BRIDGE = "cni0"
"""The bridge's name: flannel's plugin makes one of the same name, so pods of both share it."""

_CNI_VERSION = "0.4.0"  # the oldest with CHECK; known to every runtime since 2019
_SUFFIXES = frozenset({".conf", ".conflist", ".json"})  # what libcni looks for in a folder
_MARK = {"writtenBy": "kerseyd"}  # runtimes ignore keys that they do not know
_KEPT = ".before-kersey"


@dataclass(frozen=True, slots=True)
class CniConfig:
    """One network for pods; `mtu` is in bytes of IP packet.

    `name` is where `host-local` keeps the addresses that are taken. Under another name it would
    give living pods' addresses away again.
    """

    name: str
    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    mode: CniMode
    bandwidth: bool = False

    def format(self) -> str:
        """Return the text of the `.conflist`."""
        interface = self._routed() if self.mode is CniMode.ROUTED else self._bridged()
        plugins = [
            interface,
            {"type": "portmap", "capabilities": {"portMappings": True}},
            *([{"type": "bandwidth", "capabilities": {"bandwidth": True}}] * self.bandwidth),
        ]
        document = {"cniVersion": _CNI_VERSION, "name": self.name, **_MARK, "plugins": plugins}
        return json.dumps(document, indent=2) + "\n"

    def _bridged(self) -> dict[str, object]:
        return {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "isDefaultGateway": True,
            "forceAddress": True,  # the bridge follows when the subnet is another one
            "hairpinMode": True,  # a pod reaches itself by its service's address
            "ipMasq": False,  # the daemon's rules do that
            "mtu": self.mtu,
            "ipam": self._addresses(self.network),
        }

    def _routed(self) -> dict[str, object]:
        return {
            "type": "ptp",
            "ipMasq": False,
            "mtu": self.mtu,
            "ipam": self._addresses(IPv4Network("0.0.0.0/0")),  # ptp adds no default route itself
        }

    def _addresses(self, destination: IPv4Network) -> dict[str, object]:
        return {
            "type": "host-local",
            "ranges": [[{"subnet": str(self.subnet)}]],
            # With the gateway spelled out: CHECK does not find a route that leaves it open.
            "routes": [{"dst": str(destination), "gw": str(self.subnet[1])}],
        }


def write_cni_config(path: Path, config: CniConfig) -> bool:
    """Make the file say `config`; return whether it had to change. Raises OSError.

    A file of someone else under that name is kept beside it first.
    """
    _keep_foreign(path)
    return write_whole_file(path, config.format())


def first_config(directory: Path) -> Path | None:
    """Return the file that runtimes take: the first by name. None where there is none."""
    found = (path for path in directory.iterdir() if path.suffix in _SUFFIXES)
    return min((path for path in found if path.is_file()), default=None)


def remove_cni_configs(directory: Path) -> Iterator[Path]:
    """Remove every file in `directory` that is ours, yielding it; put back what it replaced."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.suffix in _SUFFIXES and _is_ours(path):
            kept = _kept_beside(path)
            if kept.exists():
                kept.replace(path)
            else:
                path.unlink()
            yield path


def _keep_foreign(path: Path) -> None:
    kept = _kept_beside(path)
    if path.is_file() and not _is_ours(path) and not kept.exists():
        kept.hardlink_to(path)  # ours takes the name, not the file


def _kept_beside(path: Path) -> Path:
    return path.with_name(path.name + _KEPT)


def _is_ours(path: Path) -> bool:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.items() >= _MARK.items()
