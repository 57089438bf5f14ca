"""The daemon's state in Prometheus' terms."""

import urllib.request
from collections import Counter
from ipaddress import IPv4Network

import pytest
from kersey_control.errors import InvalidInputError
from kersey_control.metrics import MetricsServer, StatusCollector
from kersey_control.status import Status
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families


def families(status: Status) -> dict[str, Metric]:
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(status: Status, name: str, **labels: str) -> float:
    family = families(status)[name.removesuffix("_total")]
    return next(
        sample.value
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_counts_of_the_status_are_exported_under_the_usual_names() -> None:
    status = Status(
        peers_desired=3,
        peers_programmed=2,
        refused={IPv4Network("10.1.1.0/24"): "VNI"},
        leases=Counter(vxlan=2, udp=1),
        repairs=Counter(Route=5),
        skipped_records=7,
        store_connected=True,
        lease_expires_at=1.5e9,
        ready=True,
    )
    assert value(status, "kersey_peers_desired") == 3
    assert value(status, "kersey_peers_programmed") == 2
    assert value(status, "kersey_peers_refused") == 1
    assert value(status, "kersey_leases", backend="udp") == 1
    assert value(status, "kersey_repairs_total", kind="Route") == 5
    assert value(status, "kersey_store_skipped_records_total") == 7
    assert value(status, "kersey_store_connected") == 1
    assert value(status, "kersey_lease_expiry_timestamp_seconds") == 1.5e9
    assert value(status, "kersey_ready") == 1


def test_datapath_mode_carries_its_reason() -> None:
    status = Status(datapath="netlink", datapath_reason="no bcc")
    assert value(status, "kersey_datapath_mode", mode="netlink", reason="no bcc") == 1


def test_a_reservation_has_no_expiry_to_alert_on() -> None:
    assert "kersey_lease_expiry_timestamp_seconds" not in families(Status())


def test_every_metric_is_ours_and_has_help() -> None:
    status = Status(leases=Counter(vxlan=1), repairs=Counter(rules=1), lease_expires_at=1.0)
    for name, family in families(status).items():
        assert name.startswith("kersey_")
        assert family.documentation


def test_metrics_are_served_and_a_taken_port_is_refused_by_name() -> None:
    with MetricsServer(status=Status(), address="127.0.0.1", port=19464):
        with urllib.request.urlopen("http://127.0.0.1:19464/metrics", timeout=5) as answer:
            assert b"kersey_build_info" in answer.read()
        with (
            pytest.raises(InvalidInputError, match="metrics-port"),
            MetricsServer(status=Status(), address="127.0.0.1", port=19464),
        ):
            pass
