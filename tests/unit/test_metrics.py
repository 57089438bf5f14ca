"""The daemon's state in Prometheus' terms."""

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.clocks import Moment
from kersey_control.metrics.collector import StatusCollector
from kersey_control.metrics.peers import peer_text
from kersey_control.metrics.readings import Readings
from kersey_control.status import Status
from kersey_control.status_socket import describe
from kersey_control.told import ToldOptions
from kersey_control.uplink import Uplink
from kersey_loader.occupancy import MapUse, Occupancy
from kersey_loader.peers import Sums
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

NOW = 1000.0
ENDS = Moment(wall=1.5e9, boot=1e12)


def families(status: Status, readings: Readings | None = None) -> dict[str, Metric]:
    registry = CollectorRegistry()
    registry.register(StatusCollector(status, readings or Readings(), now=NOW))
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def sample(found: dict[str, Metric], name: str, **labels: str) -> float:
    """Return the one sample of that name whose labels include these."""
    (value,) = (
        each.value
        for family in found.values()
        for each in family.samples
        if each.name == name and labels.items() <= each.labels.items()
    )
    return value


def value(status: Status, name: str, **labels: str) -> float:
    return sample(families(status), name, **labels)


def test_counts_of_the_status_are_exported_under_the_usual_names() -> None:
    status = Status(
        peers_desired=3,
        peers_programmed=2,
        refused={IPv4Network("10.1.1.0/24"): "VNI"},
        leases=Counter(vxlan=2, udp=1),
        repairs=Counter(Route=5),
        skipped_records=7,
        store_connected=True,
        store_losses=4,
        store_reconnects=3,
        resyncs=2,
        lease_expires_at=ENDS,
        mtu=1450,
        loop_failures=6,
        ready=True,
    )
    assert value(status, "kersey_peers_desired") == 3
    assert value(status, "kersey_peers_programmed") == 2
    assert value(status, "kersey_peers_refused") == 1
    assert value(status, "kersey_leases", backend="udp") == 1
    assert value(status, "kersey_repairs_total", kind="Route") == 5
    assert value(status, "kersey_store_skipped_records_total") == 7
    assert value(status, "kersey_store_connected") == 1
    assert value(status, "kersey_store_losses_total") == 4
    assert value(status, "kersey_store_reconnects_total") == 3
    assert value(status, "kersey_store_resyncs_total") == 2
    assert value(status, "kersey_lease_expiry_timestamp_seconds") == ENDS.wall
    assert value(status, "kersey_pod_mtu_bytes") == 1450
    assert value(status, "kersey_loop_failures_total") == 6
    assert value(status, "kersey_ready") == 1


def test_datapath_mode_carries_its_reason() -> None:
    status = Status(datapath="netlink", datapath_reason="no bcc")
    assert value(status, "kersey_datapath_mode", mode="netlink", reason="no bcc") == 1


def test_a_lease_is_not_shown_longer_after_the_wall_clock_was_set_back() -> None:
    now = Moment.now()
    ends = Moment(wall=now.after(86_400).wall, boot=now.after(1000).boot)
    shown = value(Status(lease_expires_at=ends), "kersey_lease_expiry_timestamp_seconds")
    assert shown == pytest.approx(now.after(1000).wall, abs=1)
    lease = describe(Status(lease_expires_at=ends), ToldOptions()).lease
    assert lease.expires_at == pytest.approx(now.after(1000).wall, abs=1)


def test_a_reservation_has_no_expiry_to_alert_on() -> None:
    assert "kersey_lease_expiry_timestamp_seconds" not in families(Status())


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status(store_connected=True, store_lost_at=NOW - 50), 0.0),
        (Status(store_connected=False, store_lost_at=NOW - 50), 50.0),
        (Status(store_connected=False, store_lost_at=NOW + 1), 0.0),
    ],
    ids=["answers", "silent", "lost between reading the clock and the status"],
)
def test_staleness_is_the_time_that_the_store_has_not_answered(
    status: Status, expected: float
) -> None:
    assert value(status, "kersey_store_stale_seconds") == expected


def test_silence_of_the_control_loop_is_seen_from_outside() -> None:
    assert value(Status(heartbeat=NOW - 42), "kersey_loop_silent_seconds") == 42
    busy = Status(heartbeat=NOW - 42, busy_until=NOW - 2)
    assert value(busy, "kersey_loop_silent_seconds") == 2


def test_kernel_requests_that_failed_are_readings_and_writings() -> None:
    status = Status(netlink_errors=2, netlink_refusals=3)
    assert value(status, "kersey_netlink_errors_total") == 5


def test_a_lease_that_is_not_renewed_shows() -> None:
    assert value(Status(), "kersey_lease_trouble") == 0
    assert value(Status(lease_trouble="etcd: permission denied"), "kersey_lease_trouble") == 1


def test_troubles_of_the_fast_path_are_counted() -> None:
    status = Status(fast_path_troubles={"attach": "EPERM", "pod port 5": "ENODEV"})
    assert value(status, "kersey_fast_path_troubles") == 2


def test_where_xdp_runs_is_told_with_the_reason_where_it_was_asked_for() -> None:
    assert "kersey_xdp_mode" not in families(Status())
    status = Status(xdp_mode="off", xdp_reason="veth loses TSO")
    assert value(status, "kersey_xdp_mode", mode="off", reason="veth loses TSO") == 1


def test_a_node_is_named_by_its_subnet_for_who_looks_at_a_peers_series() -> None:
    assert "kersey_node_info" not in families(Status())
    uplink = Uplink(
        name="eth0",
        ifindex=2,
        mtu=1500,
        address=IPv4Address("198.18.0.11"),
        public_ip=IPv4Address("198.19.0.5"),
        reason="asked for",
    )
    status = Status(subnet=IPv4Network("10.244.3.0/24"), uplink=uplink, backend="vxlan")
    labels = {"subnet": "10.244.3.0/24", "address": "198.19.0.5", "interface": "eth0"}
    assert value(status, "kersey_node_info", backend="vxlan", **labels) == 1


def test_durations_are_a_histogram_by_task_with_every_task_from_the_start() -> None:
    status = Status()
    status.reconciles.observe("repair", 0.0003)
    status.reconciles.observe("repair", 0.07)
    status.reconciles.observe("repair", 60.0)
    found = families(status)
    buckets = {"0.001": 1, "0.05": 1, "0.1": 2, "10.0": 2, "+Inf": 3}
    for le, count in buckets.items():
        name = "kersey_reconcile_duration_seconds_bucket"
        assert sample(found, name, task="repair", le=le) == count
    assert sample(found, "kersey_reconcile_duration_seconds_count", task="repair") == 3
    total = sample(found, "kersey_reconcile_duration_seconds_sum", task="repair")
    assert total == pytest.approx(60.0703)
    assert sample(found, "kersey_reconcile_duration_seconds_count", task="events") == 0


def test_what_can_be_repaired_is_zero_before_it_was() -> None:
    found = families(Status(repairs=Counter(Custom=1)))
    assert sample(found, "kersey_repairs_total", kind="FdbEntry") == 0
    assert sample(found, "kersey_repairs_total", kind="rules") == 0
    assert sample(found, "kersey_repairs_total", kind="Custom") == 1


FULL = Readings(
    verdicts={("from_pod", "fast"): 12, ("to_pod", "unseen"): 3},
    peers={},
    total=Sums(*range(1, 9)),
    occupancy=Occupancy({"flows": MapUse(10, 100)}, admitted_flows=4),
    failures={"traffic": 2},
)


def test_every_way_of_the_traffic_has_its_own_label() -> None:
    found = families(Status(), FULL)
    expected = {
        ("sent", "fast"): (1, 2),
        ("sent", "slow"): (3, 4),
        ("received", "fast"): (5, 6),
        ("received", "slow"): (7, 8),
    }
    for (direction, path), (packets, size) in expected.items():
        labels = {"direction": direction, "path": path}
        assert sample(found, "kersey_tunnel_packets_total", **labels) == packets
        assert sample(found, "kersey_tunnel_bytes_total", **labels) == size


def test_verdicts_and_maps_are_exported_as_they_were_read() -> None:
    found = families(Status(), FULL)
    assert sample(found, "kersey_packets_total", program="to_pod", verdict="unseen") == 3
    assert sample(found, "kersey_map_entries", map="flows") == 10
    assert sample(found, "kersey_map_max_entries", map="flows") == 100
    assert sample(found, "kersey_flows_admitted") == 4
    assert sample(found, "kersey_map_read_failures_total", part="traffic") == 2


def test_without_a_fast_path_there_is_nothing_of_it_but_no_failure_either() -> None:
    names = families(Status()).keys()
    assert not names & {"kersey_packets", "kersey_tunnel_packets", "kersey_map_entries"}
    assert {"kersey_fast_path_troubles", "kersey_map_read_failures"} <= names


def test_every_metric_is_ours_and_has_help() -> None:
    status = Status(leases=Counter(vxlan=1), repairs=Counter(rules=1), lease_expires_at=ENDS)
    for name, family in families(status, FULL).items():
        assert name.startswith("kersey_")
        assert family.documentation


@dataclass
class Fleet:
    peers: dict[str, Sums] = field(default_factory=dict)

    def add(self, number: int, *counts: int) -> str:
        subnet = f"10.244.{number}.0/24"
        self.peers[subnet] = Sums(*counts)
        return subnet


def test_a_peer_has_two_counters_by_direction_and_path() -> None:
    fleet = Fleet()
    peer = fleet.add(1, *range(1, 9))
    found = parsed(peer_text(fleet.peers, 10))
    packets, size = "kersey_peer_packets_total", "kersey_peer_bytes_total"
    assert sample(found, packets, peer=peer, direction="sent", path="fast") == 1
    assert sample(found, size, peer=peer, direction="sent", path="slow") == 4
    assert sample(found, packets, peer=peer, direction="received", path="fast") == 5
    assert sample(found, size, peer=peer, direction="received", path="slow") == 8
    assert all(family.documentation for family in found.values())


def test_the_busiest_peers_are_listed_and_the_others_counted() -> None:
    fleet = Fleet()
    fleet.add(1, 100, 10)  # many packets, few bytes
    loud = {fleet.add(2, 1, 500), fleet.add(3, 0, 0, 0, 0, 0, 0, 1, 400)}
    found = parsed(peer_text(fleet.peers, 2))
    for name in ("kersey_peer_packets", "kersey_peer_bytes"):
        assert {each.labels["peer"] for each in found[name].samples} == loud
    assert sample(found, "kersey_peers_unlisted") == 1


def test_peers_can_be_switched_off() -> None:
    fleet = Fleet()
    fleet.add(1, 1, 1)
    found = parsed(peer_text(fleet.peers, 0))
    assert not found["kersey_peer_packets"].samples
    assert sample(found, "kersey_peers_unlisted") == 1
