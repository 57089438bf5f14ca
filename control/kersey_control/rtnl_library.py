"""pyroute2's rtnetlink client alone.

The package's own initialisation imports over sixty further modules (nftables, wireguard, a database
layer): measured here, 6 MB and 0.1 s in a daemon that uses none of them. So a package that nobody
has imported yet is entered without initialising it; one that is loaded already is used as it is.
Import IPRoute and NetlinkError from here and nowhere else.
"""

import importlib.util
import sys

__all__ = ["IPRoute", "NetlinkError"]


def _enter_without_initialising(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if name not in sys.modules and spec is not None:
        sys.modules[name] = importlib.util.module_from_spec(spec)


_enter_without_initialising("pyroute2")

from pyroute2.iproute.linux import IPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402
