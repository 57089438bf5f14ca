"""The daemon's state in Prometheus' terms: one `Status` and one reading of the maps as families.

Made anew for every scrape; keeps nothing and asks nobody. Base units, `_total` for what only grows,
every value that can be known at the start there from the start, so that its first change shows.
"""

import platform
from collections.abc import Iterator, Mapping
from itertools import accumulate

from kersey_loader.occupancy import Occupancy
from kersey_loader.peers import Sums
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kersey_control import __version__
from kersey_control.durations import BOUNDS, Tally
from kersey_control.metrics.readings import Readings
from kersey_control.reach import Answering
from kersey_control.reconcile import DeviceRoute, FdbEntry, Neighbour, Nexthop, Route, StrayRoute
from kersey_control.schedule import Task
from kersey_control.status import Status

_OBJECTS = (Nexthop, Neighbour, FdbEntry, Route, DeviceRoute, StrayRoute)
_REPAIRS = (*(kind.__name__ for kind in _OBJECTS), "rules")
_TASKS = ("events", *Task)


class StatusCollector(Collector):
    """Turn one state into metric families. `now` is of the clock of `Status`, monotonic seconds."""

    def __init__(self, status: Status, readings: Readings, *, now: float) -> None:
        self._status = status
        self._readings = readings
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield every family; peers are counted, not listed, since a fleet has nodes squared."""
        yield from self._daemon()
        yield from self._peers()
        yield from self._probes()
        yield from self._store()
        yield from self._own_lease()
        yield from self._control_loop()
        yield from self._fast_path()

    def _daemon(self) -> Iterator[Metric]:
        status = self._status
        yield InfoMetricFamily(
            "kersey_build",
            "Version of the running daemon",
            {"version": __version__, "python": platform.python_version()},
        )
        yield _labelled_gauge(
            "kersey_datapath_mode",
            "1 for the datapath in use, with the reason why it is the one",
            {"mode": status.datapath, "reason": status.datapath_reason},
        )
        yield GaugeMetricFamily(
            "kersey_ready", "1 once the first snapshot of leases is in the kernel", status.ready
        )
        if status.uplink is not None and status.subnet is not None:
            yield _labelled_gauge(
                "kersey_node_info",
                "This node as its peers know it: its subnet, its address, and how it is reached",
                {
                    "subnet": str(status.subnet),
                    "network": str(status.network),
                    "address": str(status.uplink.public_ip),
                    "interface": status.uplink.name,
                    "backend": status.backend,
                },
            )
        yield GaugeMetricFamily(
            "kersey_pod_mtu_bytes",
            "MTU that pods are told to use; 0 before it is known",
            status.mtu,
        )

    def _peers(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            "kersey_peers_desired", "Peers that the leases ask for", status.peers_desired
        )
        yield GaugeMetricFamily(
            "kersey_peers_programmed", "Peers wholly in the kernel", status.peers_programmed
        )
        yield GaugeMetricFamily(
            "kersey_peers_refused", "Peers whose lease cannot be used", len(status.refused)
        )

    def _probes(self) -> Iterator[Metric]:
        """Yield what probes found; nothing where none are sent."""
        if self._status.probes is None:
            return
        sent, refused = self._status.probes()
        yield CounterMetricFamily("kersey_probes_sent", "Questions sent to peers", sent)
        family = CounterMetricFamily(
            "kersey_probes_refused",
            "Datagrams to the probe port, and replies to pings, that were not taken, by reason",
            labels=["reason"],
        )
        for reason, count in refused.items():
            family.add_metric([reason], count)
        yield family
        if self._readings.reaches is None:
            return
        reaches = self._readings.reaches.values()
        silent = [reach for reach in reaches if reach.answering is Answering.SILENT]
        yield GaugeMetricFamily(
            "kersey_peers_silent", "Peers that are programmed but do not answer", len(silent)
        )
        yield GaugeMetricFamily(
            "kersey_peers_one_way",
            "Silent peers that packets reach, or arrive from, in one direction alone",
            sum(reach.one_way is not None for reach in silent),
        )

    def _store(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            "kersey_store_connected", "1 while the lease store answers", status.store_connected
        )
        yield GaugeMetricFamily(
            "kersey_store_stale_seconds",
            "How long the lease store has not been answering; 0 while it does",
            0.0 if status.store_connected else max(0.0, self._now - status.store_lost_at),
        )
        yield CounterMetricFamily(
            "kersey_store_losses",
            "Times that the lease store stopped answering",
            status.store_losses,
        )
        yield CounterMetricFamily(
            "kersey_store_reconnects",
            "Times that the lease store answered again",
            status.store_reconnects,
        )
        yield CounterMetricFamily(
            "kersey_store_resyncs", "Full snapshots taken from the lease store", status.resyncs
        )
        yield CounterMetricFamily(
            "kersey_store_skipped_records",
            "Records of the lease store that could not be read",
            status.skipped_records,
        )
        leases = GaugeMetricFamily(
            "kersey_leases", "Leases of other nodes by backend type", labels=["backend"]
        )
        for backend, count in status.leases.items():
            leases.add_metric([backend], count)
        yield leases

    def _own_lease(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            "kersey_lease_trouble",
            "1 while the lease store does not give or renew our own lease",
            bool(status.lease_trouble),
        )
        ends = status.lease_ends()
        if ends is not None:
            yield GaugeMetricFamily(
                "kersey_lease_expiry_timestamp_seconds",
                "When our own lease expires unless it is renewed, in seconds since the epoch",
                ends,
            )

    def _control_loop(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            "kersey_loop_silent_seconds",
            "Time since the control loop began its last turn; it begins one every second",
            status.silence(self._now),
        )
        yield CounterMetricFamily(
            "kersey_loop_failures",
            "Steps of the control loop that ended in a defect; everything was checked again",
            status.loop_failures,
        )
        yield CounterMetricFamily(
            "kersey_netlink_errors",
            "Kernel requests that failed",
            status.netlink_errors + status.netlink_refusals,
        )
        repairs = CounterMetricFamily(
            "kersey_repairs",
            "Kernel objects and rule sets put right after a foreign change",
            labels=["kind"],
        )
        for kind, count in (dict.fromkeys(_REPAIRS, 0) | status.repairs).items():
            repairs.add_metric([kind], count)
        yield repairs
        yield _durations(status.reconciles.tallies)

    def _fast_path(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "kersey_fast_path_troubles",
            "Parts of the fast path that do not work; packets take the kernel's own path",
            len(self._status.fast_path_troubles),
        )
        if self._status.xdp_mode:
            yield _labelled_gauge(
                "kersey_xdp_mode",
                "1 for where the uplink's XDP program runs, with the reason; where asked for",
                {"mode": self._status.xdp_mode, "reason": self._status.xdp_reason},
            )
        if self._readings.verdicts is not None:
            yield _verdicts(self._readings.verdicts)
        if self._readings.total is not None:
            yield from _tunnel_traffic(self._readings.total)
        if self._readings.occupancy is not None:
            yield from _maps(self._readings.occupancy)
        failures = CounterMetricFamily(
            "kersey_map_read_failures",
            "Readings of the fast path's maps that failed; their metrics are missing meanwhile",
            labels=["part"],
        )
        for part, count in self._readings.failures.items():
            failures.add_metric([part], count)
        yield failures


def _durations(tallies: Mapping[str, Tally]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "kersey_reconcile_duration_seconds",
        "How long the control loop was busy with one task until the kernel agreed or refused",
        labels=["task"],
    )
    for task in dict.fromkeys((*_TASKS, *tallies)):
        tally = tallies.get(task, Tally())
        bounds = (*(str(bound) for bound in BOUNDS), "+Inf")
        buckets = list(zip(bounds, accumulate(tally.counts), strict=True))
        family.add_metric([task], buckets, tally.seconds)
    return family


def _verdicts(counts: Mapping[tuple[str, str], int]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "kersey_packets",
        "Packets that a BPF program was done with, by program and verdict; fast is the fast path",
        labels=["program", "verdict"],
    )
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _tunnel_traffic(total: Sums) -> Iterator[Metric]:
    """Yield packets and bytes by direction and path, of all peers since the daemon's first look."""
    packets = CounterMetricFamily(
        "kersey_tunnel_packets",
        "Tunnel packets to and from all peers, as on the wire, by the path that they took here",
        labels=["direction", "path"],
    )
    size = CounterMetricFamily(
        "kersey_tunnel_bytes",
        "Bytes of IP packets to and from all peers, without the tunnel's headers",
        labels=["direction", "path"],
    )
    for way, packet_count, byte_count in (
        (("sent", "fast"), total.fast_sent_packets, total.fast_sent_bytes),
        (("sent", "slow"), total.slow_sent_packets, total.slow_sent_bytes),
        (("received", "fast"), total.fast_received_packets, total.fast_received_bytes),
        (("received", "slow"), total.slow_received_packets, total.slow_received_bytes),
    ):
        packets.add_metric(way, packet_count)
        size.add_metric(way, byte_count)
    yield packets
    yield size


def _maps(occupancy: Occupancy) -> Iterator[Metric]:
    entries = GaugeMetricFamily(
        "kersey_map_entries",
        "Elements of a map of the fast path, dead ones of flows included",
        labels=["map"],
    )
    room = GaugeMetricFamily(
        "kersey_map_max_entries",
        "Elements that a map of the fast path has room for",
        labels=["map"],
    )
    for name, use in occupancy.maps.items():
        entries.add_metric([name], use.entries)
        room.add_metric([name], use.max_entries)
    yield entries
    yield room
    yield GaugeMetricFamily(
        "kersey_flows_admitted",
        "Flows whose next packet would take the fast path",
        occupancy.admitted_flows,
    )


def _labelled_gauge(name: str, documentation: str, labels: dict[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family
