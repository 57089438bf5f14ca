"""What the daemon knows about itself: written by the control loop, read by health and metrics.

Each field is replaced, never modified in place, so that a reader on another thread sees an old or a
new value and no mixture. Nothing here blocks or asks the kernel.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import NamedTuple

from kersey_loader.occupancy import Occupancy
from kersey_loader.peers import Sums

from kersey_control.clocks import Moment
from kersey_control.durations import Durations
from kersey_control.peer import Peer
from kersey_control.reach import Reach
from kersey_control.uplink import Uplink


class PeerState(NamedTuple):
    """What became of a peer (programmed, failing, refused), with the reason unless it is in."""

    peer: Peer
    condition: str
    reason: str


class ProbeCounts(NamedTuple):
    """Questions that were sent to peers, and datagrams that were not taken, by reason."""

    sent: int
    refused: Mapping[str, int]


@dataclass(slots=True)
class Status:
    """One node's state as of the last turn of the control loop. Times are seconds, monotonic."""

    datapath: str = "netlink"
    datapath_reason: str = ""
    fast_path_lack: str = ""
    """Why there is no fast path where one was wanted."""
    backend: str = ""
    device: str = ""
    """The overlay device's name, empty where the backend has none."""
    tunnel: str = ""
    """What goes between nodes, as firewalls call it (`UDP port 8472`); empty without a tunnel."""
    network: IPv4Network | None = None
    subnet: IPv4Network | None = None
    uplink: Uplink | None = None
    mtu: int = 0
    pod_mtu: int = 0
    """The largest MTU of a pod port; 0 without pods, or without a fast path."""
    lease_expires_at: Moment | None = None
    """None for a reservation, or before the first lease."""
    store_connected: bool = False
    store_trouble: str = "not connected yet"
    store_lost_at: float = field(default_factory=time.monotonic)
    """When the store last stopped answering; the start, until it did so for the first time."""
    start_trouble: str = ""
    """What the store still lacks for us to start with, such as a podCIDR."""
    lease_trouble: str = ""
    config_trouble: str = ""
    """What of the network config in the store is not followed, and why."""
    kernel_trouble: str = ""
    """Why uplink, device or peers cannot be put right."""
    setup_troubles: Mapping[str, str] = field(default_factory=dict)
    """Why steps of our own part of the overlay fail: rules, subnet.env, CNI configuration."""
    foreign_rules: Mapping[str, str] = field(default_factory=dict)
    """Rules of others that stop pods' packets, each with the reason."""
    foreign_filters: frozenset[str] = frozenset()
    """Kinds of filters of someone else for which pod ports are left to the stack."""
    leases: Counter[str] = field(default_factory=Counter)
    """Leases of other nodes by backend type."""
    peers_desired: int = 0
    peers_programmed: int = 0
    refused: dict[IPv4Network, str] = field(default_factory=dict)
    """Peers that cannot be programmed, with the reason."""
    peers: tuple[PeerState, ...] = ()
    """All but the leases that cannot be peers at all; those are in `refused` alone."""
    skipped_records: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Records that cannot be read, or cannot be right, since the last snapshot."""
    resyncs: int = 0
    store_losses: int = 0
    store_reconnects: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    """Kernel objects and rule sets put right after someone else changed them, by kind."""
    netlink_errors: int = 0
    """Readings of the kernel's state that failed."""
    netlink_refusals: int = 0
    """Requests for a peer's objects that the kernel refused."""
    reconciles: Durations = field(default_factory=Durations)
    """How long the control loop was busy, by task."""
    loop_failures: int = 0
    """Steps of the control loop that a defect ended."""
    fast_path_troubles: dict[str, str] = field(default_factory=dict)
    """What of the fast path does not work, and why; packets take the kernel's own path."""
    xdp_mode: str = ""
    """native, generic or off; empty where no XDP program was asked for."""
    xdp_reason: str = ""
    verdicts: Callable[[], Mapping[tuple[str, str], int]] | None = None
    """How often each program was done with a packet for each reason; None without a fast path.
    Safe to call from any thread."""
    traffic: Callable[[], Mapping[str, Sums]] | None = None
    """What went to and came from each peer, by its subnet; None without a fast path. Any thread."""
    occupancy: Callable[[], Occupancy] | None = None
    """How full the fast path's maps are; reads them through. None and threads as above."""
    reach: Callable[[], Mapping[IPv4Network, Reach]] | None = None
    """Which peers answer probes, by subnet; None where none are sent. Safe from any thread."""
    probes: Callable[[], ProbeCounts] | None = None
    """None and threads as above."""
    probes_trouble: str = ""
    """Why no probes can be sent although they were asked for."""
    ready: bool = False
    heartbeat: float = 0.0
    """When the control loop turned last."""
    busy_until: float = 0.0
    """Until when no turn is expected: what is being done may take so long."""

    def silence(self, now: float) -> float:
        """Return for how many seconds the control loop has owed a turn."""
        return max(0.0, now - max(self.heartbeat, self.busy_until))

    def lease_ends(self) -> float | None:
        """Return when our lease ends, in seconds since the epoch by the wall clock as it is now."""
        ends = self.lease_expires_at
        return None if ends is None else Moment.now().epoch(ends)
