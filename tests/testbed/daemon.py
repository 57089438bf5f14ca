"""One node's kerseyd: start, stop, crash and restart it, and read what it says about itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.errors import ClusterError
from testbed.health import http_get
from testbed.namespace import Namespace
from testbed.process import Process
from testbed.waiting import wait_until

HEALTHZ_PORT = 8471
"""The same on every node: each has a loopback of its own."""


class Daemon:
    """A node's daemon over all its restarts; its files live below `state_dir`."""

    def __init__(
        self,
        namespace: Namespace,
        *,
        program: Path,
        state_dir: Path,
        settings: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self.namespace = namespace
        self.program = program
        self.state_dir = state_dir
        self.subnet_file = state_dir / "subnet.env"
        self.log = state_dir / "kerseyd.log"
        self._settings = settings
        self._environment = environment
        self._options: tuple[str, ...] = ()
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The last started process, whether it still runs or not."""
        if self._process is None:
            raise ClusterError(f"{self.namespace.name}: the daemon was not started")
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def start(self, *options: str) -> None:
        """Start it with `options` behind the testbed's own; it may take a while to be ready."""
        if self.is_running:
            raise ClusterError(f"{self.namespace.name}: the daemon runs already")
        self._options = options
        self._process = Process(
            self.namespace,
            self.command(*options),
            log=self.log,
            environment=self._environment,
        )

    def command(self, *options: str) -> list[str | Path]:
        """Return the command line that `start` uses."""
        return [
            self.program,
            *self._settings,
            f"--subnet-file={self.subnet_file}",
            f"--state-dir={self.state_dir}",
            "--healthz-ip=127.0.0.1",
            f"--healthz-port={HEALTHZ_PORT}",
            "--probe-interval=0",  # unless asked for: tests count packets
            *options,
        ]

    def stop(self) -> None:
        """End it by SIGTERM; twice does no harm."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it by SIGKILL: it cannot tidy up."""
        self.process.kill()

    def restart(self, *options: str) -> None:
        """Stop it in good order and start it again, with the options it had or with new ones."""
        self.stop()
        self.start(*(options or self._options))

    def status(self, path: str = "/readyz") -> int | None:
        """Return the HTTP status of its health port, None where nothing answers."""
        answer = http_get(self.namespace, port=HEALTHZ_PORT, path=path)
        return None if answer is None else answer[0]

    def wait_ready(self, timeout: float = 90.0) -> None:
        """Return once /readyz says that the first snapshot is in the kernel."""
        wait_until(
            lambda: self._alive() and self.status() == 200,
            timeout=timeout,
            what=f"{self.namespace.name}: kerseyd ready",
        )

    def wait_subnet(self, timeout: float = 90.0) -> str:
        """Return the text of subnet.env once it is there; ClusterError if the daemon ends."""
        wait_until(
            lambda: self.subnet_file.exists() or not self._alive(),
            timeout=timeout,
            what=f"{self.namespace.name}: {self.subnet_file.name} written",
        )
        return self.subnet_file.read_text()

    def _alive(self) -> bool:
        if not self.process.is_running:
            ended = f"{self.namespace.name}: kerseyd ended with {self.process.exit_code}"
            raise ClusterError(f"{ended}:\n{self.log_tail()}")
        return True

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of its log, the history of earlier starts included."""
        return self.process.log_tail(lines)
