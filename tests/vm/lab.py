"""The machines of one run, on a network of their own, made nodes by deploy/vagrant/provision.

Two machines: the first is etcd's too, so that each has a processor where this machine has two.
Everything lives in one directory and one network namespace, both gone at the end.
"""

import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from testbed.namespace import Namespace
from vagrant_check.machine import Machine as Checked
from vagrant_check.node import Node, ask

from vm.image import Image
from vm.kernel import Kernel
from vm.machine import COMMAND_WITHIN, Machine

_ENDS = ((1, 2), (2, 1))
"""Each machine's number, and that of the machine at the other end of their link."""

_LINK_PACKETS = 512
"""Packets that may wait for the other end; with few, QEMU would spin while that is busy."""
_REPOSITORY = Path(__file__).resolve().parents[2]
_CHECKOUT = "/kersey"
_PACKAGES = "/packages"
_NAMESPACE = "vm-lab"
_PROVISION_WITHIN = 1800.0

_SSH_CONFIG = """
Host *
    User root
    IdentityFile {key}
    BatchMode yes
    ConnectTimeout 90
    ControlMaster auto
    ControlPersist yes
    LogLevel ERROR
    ServerAliveInterval 30
    ServerAliveCountMax 10
    # They are behind ports of the lab's own loopback interface.
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
"""


@dataclass(frozen=True, slots=True)
class Lab:
    """Machines that are up. `packages` are two builds of one version, the older first."""

    machines: tuple[Machine, ...]
    packages: tuple[Path, Path]
    ssh: tuple[str, ...]

    def provision(self, backend: str, datapath: str = "auto") -> None:
        """Make the machines nodes of a network, or of one with another backend. Raises VmError."""
        settings = {
            "KERSEY_ETCD": str(self.machines[0].address.ip),
            "KERSEY_BACKEND": backend,
            "KERSEY_DATAPATH": datapath,
            "KERSEY_PACKAGE": f"{_PACKAGES}/{self.packages[0].name}",
            "KERSEY_WAIT": f"{_PROVISION_WITHIN:.0f}",
        }
        self.machines[0].run(_provision("etcd", settings), timeout=_PROVISION_WITHIN)
        self.on_all(_provision("node", settings), timeout=_PROVISION_WITHIN)

    def on_all(self, command: str, *, timeout: float = COMMAND_WITHIN) -> list[str]:
        """Run a shell command on all machines at once; return what each printed. Raises VmError."""
        with ThreadPoolExecutor(len(self.machines)) as pool:
            runs = [pool.submit(each.run, command, timeout=timeout) for each in self.machines]
            return [run.result() for run in runs]

    def restart(self, *kernel_options: str) -> None:
        """Switch all machines off in order and on again. Raises VmError."""
        for machine in self.machines:
            machine.shut_down()
        for machine in self.machines:
            machine.start(*kernel_options)
        for machine in self.machines:
            machine.wait_up()

    def nodes(self) -> list[Node]:
        """Return what each machine's daemon and pods are now. Raises MachineError."""
        prefix = shlex.join([*self.ssh, "%s"])
        return [ask(Checked(machine.name, prefix, COMMAND_WITHIN)) for machine in self.machines]

    @property
    def newer_package(self) -> str:
        """Return where the machines have the later build."""
        return f"{_PACKAGES}/{self.packages[1].name}"


@contextmanager
def open_lab(
    kernel: Kernel, image: Image, *, packages: tuple[Path, Path], directory: Path
) -> Iterator[Lab]:
    """Boot the machines and give them checkout and packages; end them with the block."""
    with ExitStack() as opened:
        namespace = opened.enter_context(Namespace(_NAMESPACE))
        namespace.sysctl("net.unix.max_dgram_qlen", _LINK_PACKETS)
        config = directory / "ssh_config"
        ssh = tuple(namespace.command("ssh", "-F", config))
        machines = tuple(
            opened.enter_context(
                Machine(
                    f"node{number}",
                    number=number,
                    peer=peer,
                    address=IPv4Interface(f"198.18.0.{10 + number}/24"),
                    kernel=kernel,
                    image=image,
                    namespace=namespace,
                    ssh=ssh,
                    directory=directory,
                )
            )
            for number, peer in _ENDS
        )
        entries = "".join(machine.ssh_entry for machine in machines)
        config.write_text(entries + _SSH_CONFIG.format(key=image.key))
        for machine in machines:
            machine.start()
        for machine in machines:
            machine.wait_up()
            machine.send(_REPOSITORY, _CHECKOUT, "deploy")
            machine.send(packages[0].parent, _PACKAGES, *(path.name for path in packages))
        yield Lab(machines, packages, ssh)


def _provision(role: str, settings: Mapping[str, str]) -> str:
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    return f"{given} {_CHECKOUT}/deploy/vagrant/provision {role} 2>&1"
