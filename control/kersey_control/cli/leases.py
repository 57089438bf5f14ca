"""`kersey leases`: every lease of the network as the store has it."""

import sys
import time
from typing import Any

from kersey_control.cli.schema import LeasesFlags
from kersey_control.cli.text import print_json, remaining, table
from kersey_control.flags import UsageError
from kersey_control.subnets.base import Inventory


def run(flags: LeasesFlags) -> int:
    """Print every lease, and what could not be read. Raises UsageError, StoreError."""
    if not flags.kube_subnet_mgr and (flags.kube_api_url or flags.kubeconfig_file):
        raise UsageError("an API server is given without --kube-subnet-mgr, so etcd would be read")
    found = _of_kubernetes(flags) if flags.kube_subnet_mgr else _of_etcd(flags)
    rows = _rows(found)
    if flags.json:
        skipped = [{"record": each.record, "reason": each.reason} for each in found.skipped]
        print_json({"leases": rows, "skipped": skipped})
        return 0
    header = ("SUBNET", "NODE", "BACKEND", "NODE ID", "EXPIRES")
    for line in table(header, [_cells(row) for row in rows]):
        print(line)
    for each in found.skipped:
        print(f"kersey: record skipped: {each.record}: {each.reason}", file=sys.stderr)
    return 0


def _of_etcd(flags: LeasesFlags) -> Inventory:
    from kersey_control.subnets.etcd import EtcdOptions, EtcdStore  # noqa: PLC0415 - loads gRPC

    with EtcdStore(EtcdOptions.from_flags(flags)) as store:
        return store.list_leases()


def _of_kubernetes(flags: LeasesFlags) -> Inventory:
    from kersey_control.subnets.kube import KubeOptions, KubeStore  # noqa: PLC0415 - only if asked

    with KubeStore(KubeOptions.of_no_node(flags)) as store:
        return store.list_leases()


def _rows(found: Inventory) -> list[dict[str, Any]]:
    now = time.time()
    return [
        {
            "subnet": str(stored.lease.subnet),
            "public_ip": str(stored.lease.public_ip),
            "backend": stored.lease.backend_type or "udp",
            "node_id": stored.lease.node_id,
            "expires_in_seconds": (
                None if stored.expires_at is None else max(0, round(stored.expires_at - now))
            ),
        }
        for stored in sorted(found.leases, key=lambda stored: stored.lease.subnet)
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    texts = [str(row[name] or "-") for name in ("subnet", "public_ip", "backend", "node_id")]
    return [*texts, remaining(row["expires_in_seconds"])]
