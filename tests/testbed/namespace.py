"""A network namespace: commands, sockets and sysctls inside it. It never asks what runs there."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, Self, TypeVar

from testbed.errors import ClusterError

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_NAMED = Path("/run/netns")
_COMMAND_TIMEOUT = 30.0
_libc = ctypes.CDLL(None, use_errno=True)  # os.setns exists only from Python 3.12


class Namespace:
    """A named network namespace with loopback up and IPv6 off, which keeps captures quiet."""

    def __init__(self, name: str) -> None:
        self.name = name
        _ip_batch([f"netns add {name}"])
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        self.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        self.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        # IPv4 settings are inherited from the machine; these are Debian's own defaults.
        self.sysctl("net.ipv4.ip_forward", 0)
        self.sysctl("net.ipv4.conf.all.rp_filter", 2)
        self.sysctl("net.ipv4.conf.default.rp_filter", 2)
        self.ip("link set lo up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The file that stands for it."""
        return _NAMED / self.name

    @property
    def exists(self) -> bool:
        """Whether the name still stands for a namespace."""
        return self.path.exists()

    def close(self) -> None:
        """Remove the name; the kernel frees devices and routes once the last process is gone."""
        remove_namespace(self.name)

    def ip(self, *lines: str) -> None:
        """Run `ip` with each of `lines`, in order; ClusterError carries what `ip` said."""
        _ip_batch(lines, "-n", self.name)

    def command(self, *command: str | Path) -> list[str]:
        """Return the argument list that runs `command` in here, without a process between."""
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = _COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` to its end, return its output; with `check`, failure is a ClusterError."""
        done = subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            shown = " ".join(map(str, command))
            raise ClusterError(f"{self.name}: `{shown}` exited {done.returncode}: {done.stderr}")
        return done

    def call(self, function: Callable[[], _T]) -> _T:
        """Return `function()` as called in here; a socket it makes stays in here for good.

        A thread of its own enters the namespace and ends, so the caller never leaves its own.
        """
        visitor = _Visitor(self._enter, function)
        visitor.start()
        visitor.join()
        return visitor.result()

    def _enter(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, f"setns {self.name}: {os.strerror(number)}")
        finally:
            os.close(descriptor)

    def sysctl(self, name: str, value: int) -> None:
        """Write `value` to a `net.` sysctl; /proc/sys/net shows the calling thread's namespace."""
        path = Path("/proc/sys") / name.replace(".", "/")
        self.call(lambda: path.write_text(str(value)))


class _Visitor(threading.Thread, Generic[_T]):
    """A thread that enters a namespace, calls one function and keeps what came of it."""

    def __init__(self, enter: Callable[[], None], function: Callable[[], _T]) -> None:
        super().__init__(daemon=True)
        self._enter = enter
        self._function = function
        self._values: list[_T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._enter()
            self._values.append(self._function())
        except BaseException as error:  # noqa: BLE001  # raised again in the calling thread
            self._error = error

    def result(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._values[0]


def run_here(*command: str | Path) -> None:
    """Run a command outside all namespaces of the testbed; failure is a ClusterError."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
    )
    if done.returncode:
        shown = " ".join(map(str, command))
        raise ClusterError(f"`{shown}` exited {done.returncode}: {done.stderr.strip()}")


def remove_namespace(name: str) -> None:
    """Remove a namespace by name; one that is gone already does no harm."""
    if (_NAMED / name).exists():
        _ip_batch([f"netns del {name}"])


def _ip_batch(lines: Iterable[str], *options: str) -> None:
    # One `ip` for all lines: starting it costs more than most of what it does.
    text = "\n".join(lines) + "\n"
    done = subprocess.run(
        ["ip", *options, "-batch", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"ip {' '.join(options)}: {done.stderr.strip()} in:\n{text}")
