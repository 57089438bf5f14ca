"""The differential oracle: one packet through two testbeds, and everything that came of it.

Promises: both testbeds have the same addresses, rules and settings, and differ in one thing, the
programs; what arrives and what comes back is compared as whole frames. It never decides which side
is right, and it never sleeps in place of waiting for a packet.
"""

from oracle.pair import Pair, side_by_side
from oracle.rules import RULE_SETS, RuleSet
from oracle.shots import CLIENT, SERVER, End, Flow, Lane, Shot, shots
from oracle.side import Side

__all__ = [
    "CLIENT",
    "RULE_SETS",
    "SERVER",
    "End",
    "Flow",
    "Lane",
    "Pair",
    "RuleSet",
    "Shot",
    "Side",
    "shots",
    "side_by_side",
]
