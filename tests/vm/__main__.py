"""`scripts/test-vms`: machines, networks on them, checks, one table for each kernel.

To be run in mount and process namespaces of its own: whatever ends it ends QEMU too.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from testbed.backend import Backend
from testbed.errors import ClusterError
from testbed.signals import exit_on_signals
from vagrant_check.machine import MachineError
from vagrant_check.row import Row

from vm import checks
from vm.errors import VmError
from vm.image import Image, image
from vm.kernel import DEFAULT_KERNEL, Kernel, kernel
from vm.lab import Lab, open_lab
from vm.package import build_packages
from vm.report import Finding, as_lines

BACKENDS = {
    "vxlan": Backend("vxlan"),
    "vxlan-direct": Backend("vxlan", direct_routing=True),
    "host-gw": Backend("host-gw"),
    "udp": Backend("udp"),
    "ipip": Backend("ipip"),
    "ipip-direct": Backend("ipip", direct_routing=True),
}
"""By what --backend calls them."""

DATAPATHS = ("netlink", "auto")
"""Values of --datapath, in the order in which they are tried."""

AFTER = {
    "restart": checks.restarted_rows,
    "xdp": checks.xdp_rows,
    "upgrade": checks.upgrade_rows,
    "reboot": checks.reboot_rows,
    "lockdown": checks.lockdown_rows,
    "no-bcc": checks.without_bcc_rows,  # the last, as nothing brings it back
}
"""What is done after the backends, in this order."""

_OLDEST_FOR_BPF = (5, 13)  # docs/KERNELS.md

_DESCRIPTION = """\
Boot two small machines with a stock kernel of Debian in plain QEMU, make them nodes of a network by
deploy/vagrant/provision, and check it: for each backend without and with the fast path; then
restart the daemons, have XDP in the driver, upgrade the package, reboot, lock the kernel down and
remove bcc. Prints a table; exit status 0 if all is well, 1 if not, 2 for a wrong call.

The first run builds an image, which takes a mirror of Debian and some minutes. It is kept in
$XDG_CACHE_HOME/kersey or /var/cache/kersey. The processor is emulated: count on minutes.
"""

_KEPT = """\
The machines stay up until Ctrl-C. Another shell on node1 or node2, by this process's namespaces:
    nsenter --target {pid} --mount {ssh} node1
"""

Step = tuple[str, Callable[[], list[Row]]]


def steps(
    lab: Lab,
    backends: Iterable[str],
    *,
    datapaths: Collection[str] = DATAPATHS,
    fast: bool,
    after: Collection[str] = (),
) -> Iterator[Step]:
    """Yield what is done, in order; `fast` says whether the kernel allows the fast path."""
    for name in backends:
        backend = BACKENDS[name]
        for datapath in datapaths:
            yield f"{name}, {datapath}", partial(_made, lab, backend, datapath)
        if fast and "auto" in datapaths:
            yield f"{name}, load", partial(checks.fast_rows, lab)
        elif "auto" in datapaths:
            yield f"{name}, old kernel", partial(checks.slow_rows, lab, "too old")
    for name, check in AFTER.items():
        if name in after and (fast or check is not checks.xdp_rows):
            yield name, partial(check, lab)


def _made(lab: Lab, backend: Backend, datapath: str) -> list[Row]:
    lab.provision(json.dumps(backend.network_config["Backend"]), datapath)
    return checks.network_rows(lab, backend)


def carry_out(each: Iterable[Step]) -> Iterator[Finding]:
    """Yield what came of each step; one that cannot be made is a failed row."""
    for setting, step in each:
        say(setting)
        started = time.monotonic()
        try:
            rows = step()
        except (VmError, MachineError, ClusterError, TimeoutError) as error:
            rows = [Row("step", "all", ok=False, result=str(error))]
        for row in rows:
            say(f"    {'ok' if row.ok else 'FAILED'} {row.check} {row.where}: {row.result}")
        yield Finding(setting, time.monotonic() - started, tuple(rows))


def run(options: argparse.Namespace) -> bool:
    """Try all kernels; return whether all is well. Raises VmError where there are no machines."""
    say("image and kernels")
    base = image()
    kernels = [kernel(package) for package in options.kernel or [DEFAULT_KERNEL]]
    tried = [_try_kernel(each, options, base) for each in kernels]
    return all(tried)


def say(what: str) -> None:
    """Tell a person that it goes on."""
    print(f"test-vms: {what}", file=sys.stderr, flush=True)


def _try_kernel(booted: Kernel, options: argparse.Namespace, base: Image) -> bool:
    with tempfile.TemporaryDirectory(prefix="kersey-vms-") as scratch:
        directory = Path(scratch)
        packages = tuple(options.packages) if options.packages else build_packages(directory)
        say(f"booting kernel {booted.release}")
        with open_lab(booted, base, packages=packages, directory=directory) as lab:
            fast = booted.version >= _OLDEST_FOR_BPF
            chosen = options.backend or list(BACKENDS)
            made = steps(
                lab,
                chosen,
                datapaths=options.datapath or DATAPATHS,
                fast=fast,
                after=() if options.backends_only else options.after or AFTER,
            )
            findings = list(carry_out(made))
            print("\n".join(as_lines(booted.release, findings)), flush=True)
            if options.keep:
                say(_KEPT.format(pid=os.getpid(), ssh=shlex.join(lab.ssh)))
                with suppress(KeyboardInterrupt):
                    signal.pause()
            return all(finding.ok for finding in findings)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="scripts/test-vms", description=_DESCRIPTION)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument(
        "--backend",
        action="append",
        choices=BACKENDS,
        help="one of the networks to try; again for another; all without it",
    )
    made.add_argument(
        "--datapath",
        action="append",
        choices=DATAPATHS,
        help="what to start the daemons with, for each backend (default: one after the other)",
    )
    made.add_argument(
        "--kernel",
        action="append",
        metavar="PACKAGE",
        help="a kernel's package: NAME, NAME=VERSION or NAME/SUITE, such as"
        f" {DEFAULT_KERNEL}/bookworm-backports; again for another (default: {DEFAULT_KERNEL})",
    )
    made.add_argument(
        "--backends-only",
        action="store_true",
        help="no restart, XDP, upgrade, reboot, lockdown, removal of bcc",
    )
    made.add_argument(
        "--after",
        action="append",
        choices=AFTER,
        help="one of the steps after the backends; again for another; all without it",
    )
    made.add_argument(
        "--packages",
        nargs=2,
        type=Path,
        metavar=("OLD", "NEW"),
        help="two packages of Kersey in one directory (default: they are built)",
    )
    made.add_argument("--keep", action="store_true", help="leave the machines up until Ctrl-C")
    return made


def main(argv: Sequence[str]) -> int:
    """Run it; 0 if all is well, 1 if not."""
    options = parser().parse_args(argv)
    exit_on_signals()
    try:
        return 0 if run(options) else 1
    except (VmError, ClusterError) as error:
        say(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted, cleaned up")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
