"""What the node's masquerade and forward rules must be, as values, independent of any engine.

Pure. An engine (iptables or nftables) renders a `RuleSet` and compares it with what the kernel
holds. Meaning and order are those of flannel's iptables rules, which its nftables rules miss in two
places (an unmasked mark, and a rule that shadows the masquerading of host traffic).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network
from typing import NamedTuple, Protocol

MASQUERADE_COMMENT = "flanneld masq"
FORWARD_COMMENT = "flanneld forward"
"""The comments that flannel writes: whoever takes over finds the rules of the one before."""

IPTABLES_FORWARD_CHAIN = "FLANNEL-FWD"
"""The chain by which any engine recognises an iptables FORWARD chain that already has our jump."""

KUBE_PROXY_MARK = 0x4000
"""The packet mark, and its mask, by which kube-proxy says that it masquerades the packet itself."""

MULTICAST = IPv4Network("224.0.0.0/4")


class Verdict(StrEnum):
    """What a rule does with a packet that matches."""

    RETURN = "return"
    ACCEPT = "accept"
    MASQUERADE = "masquerade"


class Side(NamedTuple):
    """Which addresses match on one side of a packet: those inside the network, or all others."""

    network: IPv4Network
    inside: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; a side that is None matches every address, `marked` asks for kube-proxy's mark."""

    verdict: Verdict
    source: Side | None = None
    destination: Side | None = None
    marked: bool = False


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in order. An empty part means that nothing of it may exist in the kernel."""

    masquerade: tuple[Rule, ...]
    forward: tuple[Rule, ...]
    random_fully: bool


@dataclass(frozen=True, slots=True)
class Hazard:
    """Somebody else's rule that keeps pod traffic from being forwarded; we never override it."""

    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class Repair:
    """What differed before it was put right; false if nothing did."""

    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasons)


class Engine(Protocol):
    """A way to hold rules in the kernel. Every method raises KernelError, naming what failed."""

    name: str

    def supports_random_fully(self) -> bool:
        """Return whether masquerading can pick fully random ports."""
        ...

    def differences(self, desired: RuleSet) -> tuple[str, ...]:
        """Return how the kernel differs from `desired`; empty means equal in content and order."""
        ...

    def apply(self, desired: RuleSet) -> None:
        """Make the kernel hold `desired`, each table in one transaction."""
        ...

    def hazards(self) -> tuple[Hazard, ...]:
        """Return rules of others that come before ours in a chain we share with them."""
        ...

    def remove(self) -> None:
        """Take out everything of ours, and nothing else."""
        ...


def desired_rules(
    *,
    network: IPv4Network,
    subnet: IPv4Network,
    masquerade: bool,
    forward: bool,
    random_fully: bool,
) -> RuleSet:
    """Return the rules of a node that serves `subnet` of the pod network `network`."""
    return RuleSet(
        masquerade=_masquerade_rules(network=network, subnet=subnet) if masquerade else (),
        forward=_forward_rules(network) if forward else (),
        random_fully=random_fully,
    )


def describe_differences(wanted: Sequence[str], found: Sequence[str]) -> list[str]:
    """Return how two rule lists differ, one reason per rule; order alone is one reason."""
    if list(wanted) == list(found):
        return []
    reasons = [f"missing: {rule}" for rule in wanted if rule not in found]
    reasons += [f"foreign: {rule}" for rule in found if rule not in wanted]
    return reasons or ["out of order or doubled"]


def _masquerade_rules(*, network: IPv4Network, subnet: IPv4Network) -> tuple[Rule, ...]:
    pods, own = Side(network), Side(subnet)
    others = Side(network, inside=False)
    return (
        Rule(Verdict.RETURN, marked=True),
        Rule(Verdict.RETURN, own, pods),
        Rule(Verdict.RETURN, pods, own),
        # A client from outside that reaches a pod of this node keeps its address.
        Rule(Verdict.RETURN, others, own),
        Rule(Verdict.MASQUERADE, pods, Side(MULTICAST, inside=False)),
        # A host's own address, sent to a remote pod, would be answered outside of the overlay.
        Rule(Verdict.MASQUERADE, others, pods),
    )


def _forward_rules(network: IPv4Network) -> tuple[Rule, ...]:
    pods = Side(network)
    return (Rule(Verdict.ACCEPT, source=pods), Rule(Verdict.ACCEPT, destination=pods))
