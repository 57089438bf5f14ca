"""Rule sets of other people, as a node of a Kubernetes cluster may have them.

Each is put in and taken out whole, by one nftables transaction, with its routing rules; none
touches a rule that the daemon made. What a rule set means for the fast path stands beside it.
"""

from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from packets import ACK, SYN, TCP, UDP
from testbed import Node

from oracle.shots import (
    BACKEND_PORT,
    CLIENT,
    CLIENT_ADDRESS,
    CONTROL,
    GHOST,
    MTU,
    SERVER_ADDRESS,
    SERVICE_PORT,
    SMALL_MTU,
    Checksum,
    Lane,
    Shot,
)

DSCP, TTL = 10, 7
"""What the mangle rules write."""

BURST = 10
"""Packets of one flow that the rate limit lets pass in some seconds."""

_ROUTES = 100
_EXPIRES_AT_OTHER_NODE = 2  # hops
_CLUSTER = "10.244.0.0/16"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """`chains` is the body of one nftables table; `routes` fill a routing table.

    That table serves the client pod's TCP and UDP, at its node. `bridge_mtu` is the bridge's, in
    bytes; with `daemon_options` the daemons run meanwhile.
    """

    name: str
    chains: str = ""
    table: str = "oracle"
    routes: tuple[str, ...] = ()
    lanes: tuple[Lane, ...] = (Lane.DIRECT,)
    bridge_mtu: int = MTU
    daemon_options: tuple[str, ...] = ()
    fast: bool = True
    """Whether a direct flow may be fast under it: it leaves what pods send each other as it is."""
    drops_invalid: bool = False
    """Whether packets go that conntrack has no place for."""
    dscp: int | None = None
    """What every packet's becomes."""

    def __str__(self) -> str:
        return self.name

    def comparable(self, shot: Shot, lane: Lane, *, direct: bool = False) -> Shot:
        """Return the shot without what is known to differ on a fast flow; each has its own test.

        `direct` admission is for nodes that do nothing to TCP between pods, so it is compared only
        where that is so; and it keeps connections from conntrack, which then cannot know what
        belongs to one. Translated connections are begun otherwise, and are compared everywhere.
        """
        if lane is not Lane.DIRECT:
            shot = _opened_by_client(shot)
        elif direct and shot.protocol == TCP and not self.fast:
            shot = replace(shot, protocol=UDP)
        elif direct and shot.protocol == TCP and self.drops_invalid:
            shot = _without_history(shot)
        if not shot.may_arrive_fast():
            return shot
        if self.drops_invalid:
            shot = replace(
                shot,
                length_error=0,  # one that takes the trailer in makes the checksum wrong
                checksum=Checksum.RIGHT,
            )
        if self.dscp is not None and shot.tos >> 2 == self.dscp:
            shot = replace(shot, tos=shot.tos & 3)  # the rule leaves it alone: it may be fast
        return shot

    @property
    def flushes(self) -> bool:
        """Whether the daemon hears of it: no flow is admitted any more that was so before."""
        return bool(self.chains) or self.bridge_mtu != MTU

    def install(self, node: Node) -> None:
        """Put it in."""
        if self.chains:
            node.namespace.run("nft", f"table ip {self.table} {{ {self.chains} }}")
        if self.routes and node.index == CLIENT.value:
            lines = [f"route add {route} table {_ROUTES}" for route in self.routes]
            node.namespace.ip(*lines, *(f"rule add {rule}" for rule in _selectors()))
        if self.bridge_mtu != MTU:
            node.namespace.ip(f"link set cni0 mtu {self.bridge_mtu}")

    def remove(self, node: Node) -> None:
        """Take it out."""
        if self.chains:
            node.namespace.run("nft", "delete", "table", "ip", self.table)
        if self.routes and node.index == CLIENT.value:
            rules = [f"rule del {rule}" for rule in _selectors()]
            node.namespace.ip(*rules, f"route flush table {_ROUTES}")
        if self.bridge_mtu != MTU:
            node.namespace.ip(f"link set cni0 mtu {MTU}")


def _without_history(shot: Shot) -> Shot:
    """Return the shot so that conntrack takes it alike whether it saw the connection before.

    It knows no end of what it saw no beginning of, and no error about it from the other node.
    """
    if shot.is_control and shot.has_valid_flags:
        shot = replace(shot, flags=shot.flags & ~CONTROL | ACK)
    return replace(shot, ttl=3) if shot.ttl == _EXPIRES_AT_OTHER_NODE else shot


def _opened_by_client(shot: Shot) -> Shot:
    """Return the shot with the client as its sender if it may begin a connection.

    One begun by the backend has the tuple that the service's is translated to, and for one of both
    the kernel then picks a port by chance.
    """
    begins = not shot.primed or (shot.protocol == TCP and shot.flags & (SYN | ACK) == SYN)
    return replace(shot, sender=CLIENT) if begins else shot


def _selectors() -> list[str]:
    return [
        f"from {CLIENT_ADDRESS} ipproto {name} lookup {_ROUTES} pref 1000"
        for name in ("tcp", "udp")
    ]


def _hook(name: str, kind: str, hook: str, priority: str, rules: str) -> str:
    return f"chain {name} {{ type {kind} hook {hook} priority {priority}; {rules} }}; "


def _forward(rules: str, priority: str = "filter") -> str:
    return _hook("forward", "filter", "forward", priority, rules)


def _to_backend(service: IPv4Address, before: str = "") -> str:
    destination = f"ip daddr {service} meta l4proto {{ tcp, udp }} th dport {SERVICE_PORT}"
    return f"{destination} {before} dnat to {SERVER_ADDRESS}:{BACKEND_PORT}; "


_DROP_INVALID = "ct state invalid drop;"
_SERVICES = (
    _hook(
        *("services", "nat", "prerouting", "dstnat"),
        _to_backend(Lane.SERVICE.value[0])
        + _to_backend(Lane.MASQUERADED.value[0], "meta mark set meta mark or 0x4000"),
    )
    + _hook(
        *("leaving", "nat", "postrouting", "srcnat"),
        "meta mark and 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade;",
    )
    + _forward(_DROP_INVALID)
)
_NO_TRACKING = _hook("untracked", "filter", "prerouting", "raw", f"ip saddr {_CLUSTER} notrack;")
NO_RULES = RuleSet("no rules")
SERVICES = RuleSet("services", _SERVICES, lanes=tuple(Lane), drops_invalid=True)
INVALID_DROP = RuleSet("drop of invalid", _forward(_DROP_INVALID), drops_invalid=True)
DSCP_MANGLE = RuleSet(
    "dscp mangle",
    _forward(f"meta l4proto {{ tcp, udp }} ip dscp set {DSCP};", "mangle"),
    fast=False,
    dscp=DSCP,
)
TTL_MANGLE = RuleSet(
    "ttl mangle",
    _forward(f"oifname flannel.1 meta l4proto {{ tcp, udp }} ip ttl set {TTL};", "mangle"),
    fast=False,
)
RULE_SETS = (
    NO_RULES,
    SERVICES,
    INVALID_DROP,
    DSCP_MANGLE,
    TTL_MANGLE,
    RuleSet("policy route to nowhere", routes=("unreachable default",), fast=False),
    RuleSet("policy route to another gateway", routes=("default via 198.18.0.1",), fast=False),
    RuleSet("policy route past the tunnel", routes=("10.244.2.0/24 via 198.18.0.12",), fast=False),
    RuleSet(
        "policy route to another tunnel end",
        routes=(f"default via {GHOST[0]} dev flannel.1 onlink",),
        fast=False,
    ),
    RuleSet("no tracking", _NO_TRACKING + _forward(_DROP_INVALID)),
    RuleSet("bridge of a smaller mtu", bridge_mtu=SMALL_MTU),
    RuleSet("masquerade", daemon_options=("--ip-masq",)),
)
"""Those that random packets go through."""

RATE_LIMIT = RuleSet(
    "rate limit",
    _forward(
        "meta l4proto udp meter each { ip saddr . udp sport . ip daddr . udp dport"
        f" limit rate over 1/minute burst {BURST} packets }} drop;"
    ),
)
DROP = RuleSet("drop", _forward("meta l4proto { tcp, udp } drop;"), fast=False)
ANY_OTHER = RuleSet("any other", _hook("idle", "filter", "forward", "filter", ""), table="other")
"""Changes nothing but the generation of the rules."""
