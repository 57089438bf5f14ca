"""pyroute2's rtnetlink client alone.

The package's own initialisation imports over sixty further modules (nftables, wireguard, a database
layer): measured here, 6 MB and 0.1 s in a daemon that uses none of them. So a package that nobody
has imported yet is entered without initialising it; one that is loaded already is used as it is.
Import IPRoute and NetlinkError from here and nowhere else.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["IPRoute", "NetlinkError"]


def _enter_without_initialising(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if name not in sys.modules and spec is not None:
        sys.modules[name] = importlib.util.module_from_spec(spec)


class _Placeholder:
    """Take any call and do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


@contextmanager
def _without_test_tools() -> Iterator[None]:
    """Spare the import of unittest (1.3 MB), of which the library uses one Mock as a placeholder.

    A unittest that is loaded already is used as it is, and later imports get the real one.
    """
    if "unittest" in sys.modules:
        yield
        return
    unittest, mock = ModuleType("unittest"), ModuleType("unittest.mock")
    unittest.mock, mock.Mock = mock, _Placeholder  # type: ignore[attr-defined]
    sys.modules.update({"unittest": unittest, "unittest.mock": mock})
    try:
        yield
    finally:
        del sys.modules["unittest"], sys.modules["unittest.mock"]


_enter_without_initialising("pyroute2")

with _without_test_tools():
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError
