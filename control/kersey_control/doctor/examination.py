"""All checks in the order of a diagnosis, and one run of them.

A check that cannot be made is a note with its reason; it never keeps the others from being made.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kersey_loader.errors import LoaderError

from kersey_control.doctor import (
    daemons,
    leftovers,
    mtu,
    offload,
    ports,
    programs,
    reach,
    rules,
    store,
    system,
)
from kersey_control.doctor.finding import Finding, Severity, note
from kersey_control.doctor.host import Host
from kersey_control.errors import KerseyError
from kersey_control.node_view import NodeView
from kersey_control.subnets.etcd_options import EtcdOptions


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, and what carries it out."""

    name: str
    run: Callable[[], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found; nothing is good."""

    name: str
    findings: tuple[Finding, ...]


def checks(view: NodeView, host: Host, etcd: EtcdOptions, *, probe: bool) -> tuple[Check, ...]:
    """Return all checks of this node; `probe` allows those that send packets."""
    return (
        Check("rights", system.check_rights),
        Check("daemon", lambda: daemons.check(host, view)),
        Check("store", lambda: store.check(etcd, view)),
        Check("peers", lambda: daemons.check_peers(view)),
        Check("device", lambda: system.check_device(view)),
        Check("forwarding", lambda: system.check_forwarding(host, view)),
        Check("rp_filter", lambda: system.check_reverse_path(host, view)),
        Check("bridge", lambda: system.check_bridge(host)),
        Check("conntrack", lambda: system.check_conntrack(host, view)),
        Check("rules", lambda: rules.check(host, view)),
        Check("mtu", lambda: mtu.check(host, view)),
        Check("offload", lambda: offload.check(host, view)),
        Check("ports", lambda: ports.check(host, view)),
        Check("leftovers", lambda: leftovers.check(host, view)),
        Check("fast path", lambda: programs.check(view)),
        Check("reach", lambda: reach.check(view) if probe else reach.check_told(view)),
    )


def examine(all_checks: Iterable[Check]) -> Iterator[Result]:
    """Make the checks, one after the other."""
    for check in all_checks:
        yield Result(check.name, tuple(_findings(check)))


def worst(results: Iterable[Result]) -> Severity | None:
    """Return the worst severity of all, None if nothing was found."""
    return max((each.severity for result in results for each in result.findings), default=None)


def _findings(check: Check) -> Iterator[Finding]:
    try:
        yield from check.run()
    except (KerseyError, LoaderError, OSError) as failure:
        yield note(f"not checked: {failure}", "nothing is known of it", "sudo kersey doctor")
