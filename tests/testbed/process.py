"""A long-running program in a namespace, its log, and its end. It never restarts by itself."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from testbed.namespace import Namespace

_STOP_TIMEOUT = 10.0


class Process:
    """One running program; output goes to the end of `log`, so restarts keep the history.

    It has a session of its own: Ctrl-C reaches only the testbed, which then ends things in order.
    """

    def __init__(
        self,
        namespace: Namespace,
        command: list[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                namespace.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The program's own pid: `ip netns exec` replaces itself by it."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._popen.poll()

    @property
    def is_running(self) -> bool:
        return self.exit_code is None

    def stop(self, timeout: float = _STOP_TIMEOUT) -> int:
        """End it by SIGTERM, or by SIGKILL after `timeout` seconds; return the exit code."""
        if self.is_running:
            self._popen.send_signal(signal.SIGTERM)
            self._popen.send_signal(
                signal.SIGCONT
            )  # a paused process gets SIGTERM only once it runs
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it by SIGKILL, as a crash would; return the exit code."""
        self._popen.kill()
        return self._popen.wait()

    def pause(self) -> None:
        """Stop it in its tracks: sockets stay open, nothing answers."""
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last `lines` lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
