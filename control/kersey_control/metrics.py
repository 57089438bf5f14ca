"""The daemon's state in Prometheus' terms, made at scrape time from `Status`.

The control loop never waits for a scrape and keeps no library object; the registry is our own, so
that nothing of the Python process is exported by accident.
"""

import platform
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from kersey_control import __version__
from kersey_control.errors import InvalidInputError
from kersey_control.status import Status


class StatusCollector(Collector):
    """Turn one `Status` into metric families."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield every family; peers are counted, not listed, since a fleet has nodes squared."""
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
        yield GaugeMetricFamily(
            "kersey_peers_desired", "Peers that the leases ask for", status.peers_desired
        )
        yield GaugeMetricFamily(
            "kersey_peers_programmed", "Peers wholly in the kernel", status.peers_programmed
        )
        yield GaugeMetricFamily(
            "kersey_peers_refused", "Peers whose lease cannot be used", len(status.refused)
        )
        yield GaugeMetricFamily(
            "kersey_store_connected", "1 while the lease store answers", status.store_connected
        )
        yield from self._lease_families()
        if status.verdicts is not None:
            yield _verdicts(status.verdicts())
        yield from self._counters()

    def _lease_families(self) -> Iterator[Metric]:
        leases = GaugeMetricFamily(
            "kersey_leases", "Leases of other nodes by backend type", labels=["backend"]
        )
        for backend, count in self._status.leases.items():
            leases.add_metric([backend], count)
        yield leases
        if self._status.lease_expires_at is not None:
            yield GaugeMetricFamily(
                "kersey_lease_expiry_timestamp_seconds",
                "When our own lease expires unless it is renewed, in seconds since the epoch",
                self._status.lease_expires_at,
            )

    def _counters(self) -> Iterator[Metric]:
        status = self._status
        yield CounterMetricFamily(
            "kersey_store_losses",
            "Times that the lease store stopped answering",
            status.store_losses,
        )
        yield CounterMetricFamily(
            "kersey_store_resyncs", "Full snapshots taken from the lease store", status.resyncs
        )
        yield CounterMetricFamily(
            "kersey_store_skipped_records",
            "Records of the lease store that could not be read",
            status.skipped_records,
        )
        yield CounterMetricFamily(
            "kersey_netlink_errors", "Kernel requests that failed", status.netlink_errors
        )
        yield CounterMetricFamily(
            "kersey_loop_failures",
            "Turns of the control loop that ended in a defect; everything was checked again",
            status.loop_failures,
        )
        repairs = CounterMetricFamily(
            "kersey_repairs",
            "Kernel objects and rule sets put right after a foreign change",
            labels=["kind"],
        )
        for kind, count in status.repairs.items():
            repairs.add_metric([kind], count)
        yield repairs


def _verdicts(counts: Mapping[tuple[str, str], int]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "kersey_packets",
        "Packets that a BPF program was done with, by program and verdict; fast is the fast path",
        labels=["program", "verdict"],
    )
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _labelled_gauge(name: str, documentation: str, labels: dict[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


class MetricsServer:
    """Serve /metrics on its own thread. A context manager.

    Entering raises InvalidInputError when the address cannot be listened on.
    """

    def __init__(self, *, status: Status, address: str, port: int) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(StatusCollector(status))
        self._address = address
        self._port = port

    def __enter__(self) -> Self:
        try:
            self._server, self._thread = start_http_server(
                self._port, addr=self._address, registry=self._registry
            )
        except OSError as error:
            raise InvalidInputError(
                field="metrics-ip and metrics-port",
                value=f"{self._address}:{self._port}",
                expected=f"an address to listen on ({error.strerror or error})",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
