"""One machine, told only how to run a command there: root's commands, by sudo where it is."""

import base64
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_WORDS = 300


class MachineError(Exception):
    """Report a command that failed on a machine, with its last words."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine by name. `prefix` has %s for the name; the command follows as one argument."""

    name: str
    prefix: str
    timeout: float
    """Seconds that one command may take."""

    def run(self, script: str) -> str:
        """Run shell lines as root; return what they print. Raises MachineError."""
        with self.start(script) as running:
            return running.result()

    @contextmanager
    def start(self, script: str) -> Iterator["Running"]:
        """Have shell lines run as root while the block runs; what is left of them is ended."""
        with subprocess.Popen(
            self._command(script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as popen:
            try:
                yield Running(self.name, popen, self.timeout)
            finally:
                popen.kill()

    def _command(self, script: str) -> list[str]:
        prefix = [word.replace("%s", self.name) for word in shlex.split(self.prefix)]
        return [*prefix, f"$(command -v sudo) env {_PATH} sh -c {shlex.quote(script)}"]


@dataclass(frozen=True, slots=True)
class Running:
    """A command under way on a machine."""

    where: str
    popen: "subprocess.Popen[str]"
    timeout: float

    def result(self) -> str:
        """Wait for its end and return what it printed. Raises MachineError."""
        try:
            printed, errors = self.popen.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"{self.where}: no answer within {self.timeout:g} s") from error
        if self.popen.returncode:
            words = (errors or printed).strip()[-_LAST_WORDS:] or "no words"
            raise MachineError(f"{self.where}: exit status {self.popen.returncode}: {words}")
        return printed


def python(source: str, *arguments: str) -> str:
    """Return the shell line that runs a Python program there, sent whole."""
    packed = base64.b64encode(source.encode()).decode()
    program = f"import base64;exec(base64.b64decode('{packed}'))"
    return shlex.join(["python3", "-c", program, *arguments])
