"""What the programs' verdicts mean, in words that an operator can act on. The one place for them.

A verdict's name is that of the metric's label (`kersey_packets_total{verdict=...}`). Pure.
"""

from collections.abc import Collection, Mapping

from kersey_loader.layout import Verdict

WORDS: Mapping[Verdict, str] = {
    Verdict.FAST: "on the fast path",
    Verdict.WITNESSED: "seen to leave the stack as it went in: half of an admission",
    Verdict.UNRELATED: "not IPv4, or not between pods of two nodes",
    Verdict.UNCONFIGURED: "the programs have not been told anything yet",
    Verdict.ADMISSION_OFF: "--admission=off",
    Verdict.VLAN: "it has a VLAN tag",
    Verdict.TRUNCATED: "its headers are incomplete, or not in one piece of memory",
    Verdict.IP_OPTIONS: "it has IP options",
    Verdict.FRAGMENT: "it is a fragment",
    Verdict.TTL: "its TTL ends on the way",
    Verdict.PROTOCOL: "neither TCP nor UDP",
    Verdict.CONTROL: "a TCP SYN, FIN or RST: connections begin and end in the stack",
    Verdict.TOO_BIG: "larger than the MTU: the stack fragments it, or answers",
    Verdict.LENGTH: "the lengths in its headers are not its own",
    Verdict.MALFORMED: "a checksum, length or TCP flag that conntrack calls invalid",
    Verdict.NOT_ADMITTED: "not seen both ways through the stack",
    Verdict.STALE: "idle, next packet is re-checked by the stack",
    Verdict.FLUSHED: "flushed, not seen since",
    Verdict.OTHER_PORT: "comes in and goes out by different pod ports",
    Verdict.OTHER_KIND: "its DSCP or TTL is not that of the packets that were seen",
    Verdict.PORT_GONE: "its pod port is gone",
    Verdict.ROOM: "the kernel refuses to add or remove headers, or has no memory",
    Verdict.NOT_HOST: "broadcast, multicast, or for another host",
    Verdict.TUNNEL_FLAGS: "VXLAN flags that Kersey does not set",
    Verdict.OTHER_VNI: "another VNI than this network's",
    Verdict.OTHER_VTEP: "inner Ethernet address of another node's tunnel device",
    Verdict.NOT_IPV4: "no IPv4 packet inside",
    Verdict.CONGESTION: "a congestion mark outside that has to go inside",
    Verdict.DATAGRAMS: "several datagrams in one packet",
    Verdict.NODE: "sent by a node itself, not by a pod there",
    Verdict.OTHER_ADDRESS: "to another address of this node than its uplink's",
    Verdict.NOT_POD: "not for a pod of this node",
    Verdict.NOT_TUNNELLED: "without a tunnel, from a peer that has one",
    Verdict.TUNNELLED: "in a tunnel, from a peer that needs none",
    Verdict.UNSEEN: "did not come in as it goes out: a rule translates it, or this node sent it",
    Verdict.CHANGED: "its TOS or TTL was changed on its way through the stack",
    Verdict.OTHER_GATEWAY: "leaves by another way than the lease says (ip rule, ip neigh)",
    Verdict.DECAPSULATED: "its tunnel's headers are off; from_uplink judges what was inside",
    Verdict.UNKNOWN_NODE: "its sender is no node of this network (kersey peers)",
    Verdict.FOREIGN_SOURCE: "its inner source is in another node's subnet (kersey peers), not in"
    " its sender's",
    Verdict.OUTSIDE_SOURCE: "its inner source is neither a pod's address nor its sender's own",
    Verdict.HIDDEN_SOURCE: "a fragment or a VLAN tag hides its inner source, or it comes in"
    " with the Ethernet source that XDP marks its own frames by",
    Verdict.POD_TUNNEL: "a pod here sends tunnel packets of its own",
}
"""Why a program was done with a packet."""

FORGED = frozenset(verdict for verdict in Verdict if verdict.forged)
"""Its sender may not send it: dropped, unless --spoof-check says otherwise."""

SLOW = (
    frozenset(Verdict)
    - FORGED
    - {Verdict.FAST, Verdict.WITNESSED, Verdict.UNRELATED, Verdict.DECAPSULATED}
)
"""Left to the stack although it is the overlay's, and no witness."""


def name_of(verdict: Verdict) -> str:
    """Return a verdict's name in metrics and messages."""
    return verdict.name.lower()


def words_of(verdicts: Collection[Verdict]) -> dict[str, str]:
    """Return what these verdicts mean by their names, in the order of `Verdict`."""
    return {name_of(verdict): WORDS[verdict] for verdict in sorted(verdicts)}


def forged_among(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return how many packets were forged, by verdict, of counts by program and verdict."""
    names = {name_of(verdict) for verdict in FORGED}
    found: dict[str, int] = {}
    for each in counts.values():
        for name, count in each.items():
            if name in names and count:
                found[name] = found.get(name, 0) + count
    return found
