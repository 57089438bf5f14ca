"""The events in which a lease store speaks, whatever store it is. Pure values."""

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TypeAlias

from kersey_control.lease import Lease


@dataclass(frozen=True, slots=True)
class Skipped:
    """One record that could not be read; all others are unaffected."""

    record: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A record that may have been skipped is gone, or claims nothing any more."""

    record: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every lease at one instant, in the order of writing. What is not in it does not exist."""

    leases: tuple[Lease, ...]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """A lease was added, renewed or changed."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Removed:
    """A lease was deleted or expired."""

    subnet: IPv4Network


@dataclass(frozen=True, slots=True)
class Lost:
    """The store stopped answering; sent once per outage. The last state stays in force."""

    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """The store answers again; sent once per outage."""


StoreEvent: TypeAlias = Snapshot | Changed | Removed | Skipped | Forgotten | Lost | Restored
