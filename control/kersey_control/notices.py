"""What of a node's status its operator should be told, and when. Pure: values and times in.

It promises one notice when a trouble has lasted `SETTLE` seconds, one when its words change, some
within `REPEAT` seconds while it lasts, since a cluster forgets events after an hour, and one when
it is over, if it was told. Nodes that see the same trouble at the same moment do not tell it at the
same moment: together, whatever their number, they stay below `CLUSTER_RATE`.

A lease store that is away is no trouble here: there is nobody to tell it to.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TypeVar

from kersey_control.notice import Notice
from kersey_control.status import Status

SETTLE = 3.0
"""Seconds; what is put right sooner, as most of it is within one, is nobody's business."""

QUIET = 60.0
"""Seconds between two notices of one trouble whose words change."""

REPEAT = 1800.0

CLUSTER_RATE = 100.0
"""Notices a second that all nodes together send about one thing that all of them see."""

_SHOWN = 3
_Name = TypeVar("_Name")


class Trouble(Enum):
    """A trouble of a node: the reason of its notice, and that of the one which says it is over."""

    START = "CannotStart", "Started"
    LEASE = "LeaseRefused", "LeaseHeld"
    NODES = "NodeIgnored", "NodesRead"
    PEERS = "PeersRefused", "PeersProgrammed"
    FAST_PATH_OFF = "FastPathOff", "FastPathOn"
    FAST_PATH = "FastPathTrouble", "FastPathWorks"
    FILTERS = "ForeignProgram", "ForeignProgramGone"
    KERNEL = "KernelStateTrouble", "KernelStateInOrder"
    SETUP = "NodeSetupFailed", "NodeSetUp"
    RULES = "ForeignRule", "ForeignRuleGone"
    MTU = "PodMtuTooLarge", "PodMtuFits"
    CONFIG = "NetworkConfigRefused", "NetworkConfigTaken"


def troubles(status: Status) -> dict[Trouble, str]:
    """Return what is wrong as of now, in words for an operator."""
    found = {
        Trouble.START: status.start_trouble,
        Trouble.LEASE: status.lease_trouble,
        Trouble.NODES: _listed(status.skipped),
        Trouble.PEERS: _listed(status.refused),
        Trouble.FAST_PATH_OFF: status.fast_path_lack,
        Trouble.FAST_PATH: _listed(status.fast_path_troubles),
        Trouble.FILTERS: _filters(status),
        Trouble.KERNEL: status.kernel_trouble,
        Trouble.SETUP: _listed(status.setup_troubles),
        Trouble.RULES: _listed(status.foreign_rules),
        Trouble.MTU: _pod_mtu(status),
        Trouble.CONFIG: status.config_trouble,
    }
    return {trouble: words for trouble, words in found.items() if words}


@dataclass(slots=True)
class _Entry:
    """A trouble: what it is now, when that is told, and what was told of it before."""

    words: str = ""
    due: float = math.inf
    told: str = ""


class Notices:
    """Tell the troubles of one node. One thread at a time; `tell` must not block."""

    def __init__(self, tell: Callable[[Notice], None], *, rng: random.Random | None = None) -> None:
        self._tell = tell
        self._rng = rng or random.Random()  # noqa: S311  # spreads load, guards nothing
        self._entries: dict[Trouble, _Entry] = {}

    def look(self, status: Status, now: float) -> None:
        """Tell what has changed since the last look. `now` is in seconds, monotonic."""
        found = troubles(status)
        for trouble in {**self._entries, **found}:
            words = found.get(trouble, "")
            self._note(trouble, words, now, spread=status.peers_desired / CLUSTER_RATE)

    def _note(self, trouble: Trouble, words: str, now: float, *, spread: float) -> None:
        """Take in what a trouble is now, empty if it is over, and tell what is due."""
        entry = self._entries.setdefault(trouble, _Entry())
        if entry.words != words:
            pause = (QUIET if entry.told else SETTLE) if words else 0.0
            entry.due = min(entry.due, now + pause + self._rng.uniform(0.0, spread))
            entry.words = words
        if not words and (now >= entry.due or not entry.told):
            del self._entries[trouble]
        if now < entry.due:
            return
        entry.due = now + self._rng.uniform(REPEAT / 2, REPEAT)
        if words:
            entry.told = words
            self._tell(Notice(trouble.value[0], words, is_warning=True))
        elif entry.told:
            self._tell(Notice(trouble.value[1], f"over: {entry.told}", is_warning=False))


def _filters(status: Status) -> str:
    """Return whose filters keep pod ports from the fast path, not which: pods come and go."""
    kinds = ", ".join(sorted(status.foreign_filters))
    return kinds and f"pod ports have a filter of someone else ({kinds}): packets pass there first"


def _pod_mtu(status: Status) -> str:
    if status.mtu and status.pod_mtu > status.mtu:
        return (
            f"pods have MTU {status.pod_mtu}, the overlay carries {status.mtu}: pods that live"
            " keep the MTU that they were made with"
        )
    return ""


def _listed(found: Mapping[_Name, str]) -> str:
    """Return the first of them in words, and how many there are; there may be thousands."""
    shown = "; ".join(f"{name}: {why}" for name, why in islice(found.items(), _SHOWN))
    more = len(found) - _SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
