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

from vm.errors import VmError
from vm.image import Image
from vm.kernel import Kernel
from vm.machine import COMMAND_WITHIN, Machine

NODES = 2
_REPOSITORY = Path(__file__).resolve().parents[2]
_CHECKOUT = "/kersey"
_PACKAGES = "/packages"


@dataclass(frozen=True, slots=True)
class Lab:
    """Machines that are up. `packages` are two builds of one version, the older first."""

    machines: tuple[Machine, ...]
    packages: tuple[Path, Path]

    def provision(self, backend: str) -> None:
        """Make the machines nodes of a network, or of one with another backend. Raises VmError."""
        settings = {
            "KERSEY_ETCD": str(self.machines[0].address.ip),
            "KERSEY_BACKEND": backend,
            "KERSEY_PACKAGE": f"{_PACKAGES}/{self.packages[0].name}",
        }
        self.machines[0].run(_provision("etcd", settings))
        self.on_all(_provision("node", settings))

    def on_all(self, command: str) -> list[str]:
        """Run a shell command on all machines at once; return what each printed. Raises VmError."""
        with ThreadPoolExecutor(len(self.machines)) as pool:
            return list(pool.map(lambda machine: machine.run(command), self.machines))

    def nodes(self) -> list[Node]:
        """Return what each machine's daemon and pods are now. Raises MachineError."""
        prefixes = [(machine.name, shlex.join(machine.ssh)) for machine in self.machines]
        return [ask(Checked(name, prefix, COMMAND_WITHIN)) for name, prefix in prefixes]


@contextmanager
def open_lab(
    kernel: Kernel, image: Image, *, packages: tuple[Path, Path], directory: Path
) -> Iterator[Lab]:
    """Boot the machines and give them checkout and packages; end them with the block."""
    with ExitStack() as opened:
        namespace = opened.enter_context(Namespace("vm-lab"))
        machines = tuple(
            opened.enter_context(
                Machine(
                    f"node{number}",
                    number=number,
                    address=IPv4Interface(f"198.18.0.{10 + number}/24"),
                    kernel=kernel,
                    image=image,
                    namespace=namespace,
                    directory=directory,
                )
            )
            for number in range(1, NODES + 1)
        )
        for machine in machines:
            machine.start()
        for machine in machines:
            machine.wait_up()
            machine.send(_REPOSITORY, _CHECKOUT, "deploy")
            machine.send(packages[0].parent, _PACKAGES, *(path.name for path in packages))
        yield Lab(machines, packages)


def _provision(role: str, settings: Mapping[str, str]) -> str:
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    return f"{given} {_CHECKOUT}/deploy/vagrant/provision {role} 2>&1"
