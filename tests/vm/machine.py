"""One virtual machine: its disk, its QEMU process, and commands in it over ssh.

Two network cards, as a Vagrant machine has: eth0 leads out through QEMU, has the default route and
the same address in every machine; eth1 is on the lab's own network. QEMU runs in the lab's network
namespace, so that its ports are nobody else's.
"""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.namespace import Namespace
from testbed.process import Process
from testbed.waiting import wait_until

from vm.disk import overlay
from vm.errors import VmError
from vm.image import Image
from vm.kernel import Kernel

MEMORY = 768  # MB
BOOT_WITHIN = 600.0  # seconds; 30 to 60 where nothing else runs
COMMAND_WITHIN = 600.0
_ENDS_WITHIN = 120.0
_ANSWERS_WITHIN = 120.0
_PROCESSOR = "Nehalem,-cx16"
"""What Debian asks for. On hosts with AVX-512 QEMU 7.2 emulates newer instructions wrongly: with
`max` systemd finds no mounts and no machine-id, with cmpxchg16b Linux 6.12 double faults."""

_SSH_PORT = 2200
_CONSOLE_LINES = 25
_SSH_FAILED = 255


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a command in a machine said, and how it ended."""

    code: int
    out: str
    err: str


class Machine:
    """A machine that keeps its disk when it is stopped; a context manager that ends QEMU.

    `peer` is the number of the machine at the other end of the lab's network; `ssh` are the words
    before its name and a command.
    """

    def __init__(
        self,
        name: str,
        *,
        number: int,
        peer: int,
        address: IPv4Interface,
        kernel: Kernel,
        image: Image,
        namespace: Namespace,
        ssh: Sequence[str],
        directory: Path,
    ) -> None:
        self.name = name
        self.address = address
        self._number, self._peer = number, peer
        self._kernel = kernel
        self._namespace = namespace
        self._ssh = ssh
        self._directory = directory
        self._console = directory / f"{name}.console"
        self._disk = directory / f"{name}.qcow2"
        self._qemu: Process | None = None
        overlay(self._disk, image.disk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cut_off()

    def start(self, *kernel_options: str) -> None:
        """Switch it on; `wait_up` says when it answers."""
        command = self._qemu_command(*kernel_options)
        self._qemu = Process(self._namespace, command, log=self._console)

    def wait_up(self) -> None:
        """Return once commands can be run in it. Raises VmError with the console's last lines."""
        try:
            wait_until(self._answers, timeout=BOOT_WITHIN, what=f"{self.name} boots")
        except TimeoutError as error:
            raise VmError(f"{error}\n{self.console_tail()}") from error

    def run(self, command: str, *, timeout: float = COMMAND_WITHIN) -> str:
        """Return what a shell command printed. Raises VmError if it failed or took too long."""
        said = self.attempt(command, timeout=timeout)
        if said.code:
            raise VmError(f"{self.name}: {command}: exit {said.code}\n{said.out}{said.err}")
        return said.out

    def attempt(
        self, command: str, *, timeout: float = COMMAND_WITHIN, stdin: bytes = b""
    ) -> Spoken:
        """Return how a shell command ended. Raises VmError if it could not be run to its end."""
        try:
            done = subprocess.run(
                [*self._ssh, self.name, command],
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise VmError(f"{self.name}: {command}: not within {timeout:g} s") from error
        said = Spoken(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        if said.code == _SSH_FAILED:
            raise VmError(
                f"{self.name}: {command}: no connection: {said.err}\n{self.console_tail()}"
            )
        return said

    def send(self, tree: Path, target: str, *names: str) -> None:
        """Copy `names` below `tree`, or all of it, into the directory `target`."""
        pack = ["tar", "-C", str(tree), "-cf", "-", *(names or ".")]
        packed = subprocess.run(pack, stdout=subprocess.PIPE, check=True).stdout
        place = shlex.quote(target)
        said = self.attempt(
            f"mkdir -p {place} && tar -xf - --no-same-owner -C {place}", stdin=packed
        )
        if said.code:
            raise VmError(f"{self.name}: copying to {target}: {said.err}")

    def boot_id(self) -> str:
        """Return what changes with every boot. Raises VmError."""
        return self.run("cat /proc/sys/kernel/random/boot_id").strip()

    def reboot(self) -> None:
        """Restart it as its administrator would, and wait until it answers again."""
        before = self.boot_id()
        self.attempt("systemctl reboot --no-block")
        self._hang_up()
        try:
            wait_until(
                lambda: self._booted_since(before), timeout=BOOT_WITHIN, what=f"{self.name} reboots"
            )
        except TimeoutError as error:
            raise VmError(f"{error}\n{self.console_tail()}") from error

    def shut_down(self) -> None:
        """Switch it off in order; the disk stays."""
        if self._qemu is None:
            return
        self.attempt("systemctl poweroff --no-block")
        self._hang_up()
        qemu = self._qemu
        try:
            wait_until(
                lambda: not qemu.is_running, timeout=_ENDS_WITHIN, what=f"{self.name} switches off"
            )
        except TimeoutError as error:
            raise VmError(f"{error}\n{self.console_tail()}") from error
        self._qemu = None

    def cut_off(self) -> None:
        """End it as a power failure would."""
        if self._qemu is not None:
            self._hang_up()
            self._qemu.kill()
            self._qemu = None

    def console_tail(self) -> str:
        """Return the last lines of its console."""
        lines = self._console.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_CONSOLE_LINES:])

    @property
    def ssh_entry(self) -> str:
        """Return what an ssh_config(5) says of it."""
        return f"""\
Host {self.name}
    HostName 127.0.0.1
    Port {_SSH_PORT + self._number}
    ControlPath {self._directory}/{self.name}.ssh
"""

    def _answers(self) -> bool:
        if self._qemu is not None and not self._qemu.is_running:
            raise VmError(f"{self.name}: QEMU has ended\n{self.console_tail()}")
        try:
            return self.attempt("true", timeout=_ANSWERS_WITHIN).code == 0
        except VmError:
            return False

    def _booted_since(self, before: str) -> bool:
        """Return whether it answers in another boot; a connection to the former one is useless."""
        up = self._answers() and self.boot_id() != before
        if not up:
            self._hang_up()
        return up

    def _hang_up(self) -> None:
        """End the shared connection, if there is one: it would outlive the machine's boot."""
        subprocess.run([*self._ssh, "-O", "exit", self.name], capture_output=True, check=False)

    def _end(self, which: str, number: int) -> str:
        """Return an end of the link: a Unix socket, whose datagrams wait where UDP's are lost."""
        return f"{which}.type=unix,{which}.path={self._directory}/link{number}"

    def _qemu_command(self, *kernel_options: str) -> list[str | Path]:
        options = (
            *("console=ttyS0", "quiet", "net.ifnames=0", "panic=5", "mitigations=off"),
            f"systemd.hostname={self.name}",
            f"ip={self.address.ip}:::{self.address.netmask}::eth1:none",  # by systemd's generator
            *kernel_options,
        )
        far_end = self._end("remote", self._peer)
        forward = f"hostfwd=tcp:127.0.0.1:{_SSH_PORT + self._number}-:22"
        return [
            *("qemu-system-x86_64", "-name", self.name, "-M", "q35", "-cpu", _PROCESSOR),
            *("-accel", "tcg,tb-size=256"),  # never KVM: it opens here, and then hangs
            *(
                "-smp",
                "1",
                "-m",
                str(MEMORY),
                "-nodefaults",
                "-display",
                "none",
                "-serial",
                "stdio",
            ),
            *("-kernel", self._kernel.vmlinuz, "-initrd", self._kernel.initrd),
            *("-append", " ".join(options)),
            *("-drive", f"file={self._disk},format=qcow2,if=virtio,cache=unsafe"),
            *("-drive", f"file={self._kernel.modules},format=raw,if=virtio,readonly=on"),
            *("-netdev", f"user,id=out,restrict=on,{forward}"),
            *("-device", f"virtio-net-pci,netdev=out,mac=52:54:00:00:00:{self._number:02x}"),
            *("-netdev", f"dgram,id=lab,{self._end('local', self._number)},{far_end}"),
            *("-device", f"virtio-net-pci,netdev=lab,mac=52:54:00:00:01:{self._number:02x}"),
            *("-device", "virtio-rng-pci"),
        ]
