"""What the Kubernetes lease store takes in memory and processor time with many nodes, over TLS.

A process of its own lists all nodes and follows them, as the daemon does; this one is the API
server. A kubelet reports each five minutes, or each ten seconds where something of its node keeps
changing: one minute of 5,000 nodes is 1,000 heartbeats, or 30,000.
"""

import json
import resource
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kersey_control.events import Changed, Snapshot
from kersey_control.memory import release_memory
from kersey_control.subnets.kube import KubeOptions, KubeStore

SIZES = (1_000, 5_000)
HEARTBEATS = 5_000
IMAGES = 30
"""Images in a node's status: they make most of its size, some 8 KB in all."""


def figures() -> dict[str, float]:
    """Return this process's processor time in seconds, and its memory in MB, now and at most."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = {}
    with Path("/proc/self/status").open(encoding="ascii") as file:
        for line in file:
            key, _, value = line.partition(":")
            memory[key] = value.strip()
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": int(memory["VmRSS"].split()[0]) / 1024,
        "peak": int(memory["VmHWM"].split()[0]) / 1024,
    }


def follow(service: str, account: str) -> None:
    """Be the node: print figures at the start, after the list, and at each lease that changes."""
    print(json.dumps(figures()), flush=True)
    held = {}
    options = KubeOptions(node="n", service=service, service_account=Path(account))
    with KubeStore(options) as store:
        for event in store.watch(threading.Event()):
            match event:
                case Snapshot(leases):
                    held = {lease.subnet: lease for lease in leases}
                    del leases, event
                    release_memory()
                case Changed(lease):
                    held[lease.subnet] = lease
            print(json.dumps({**figures(), "leases": len(held)}), flush=True)


def measure(count: int, folder: Path) -> Iterator[tuple[str, float, str]]:
    """Yield name, figure and unit of everything measured with `count` nodes."""
    # Only here, so that the process that is measured does not load a server.
    from kube.api_server import ApiServer  # noqa: PLC0415
    from kube.certificates import make_certificates  # noqa: PLC0415

    certificates = make_certificates(folder / "pki")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    (folder / "ca.crt").write_bytes(certificates.ca.read_bytes())
    (folder / "token").write_text("token")
    with ApiServer(context) as api:
        api.ballast = {"images": [image(number) for number in range(IMAGES)]}
        for number in range(count):
            add_node(api, number)
        yield "size of a node", len(json.dumps(api.get("node-0"))) / 1024, "KB"
        command = (sys.executable, __file__, "--follow", api.address, str(folder))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
            try:
                yield from observe(api, node, count)
            finally:
                node.terminate()


def observe(
    api: Any, node: "subprocess.Popen[str]", count: int
) -> Iterator[tuple[str, float, str]]:
    before = read(node)
    began = time.monotonic()
    listed = read(node)
    assert listed["leases"] == count, listed
    yield "from the first request to the snapshot", time.monotonic() - began, "s"
    yield "processor time of list and snapshot", listed["cpu"] - before["cpu"], "s"
    yield "RSS before", before["rss"], "MB"
    yield "RSS with all leases held", listed["rss"], "MB"
    yield "RSS at most", listed["peak"], "MB"
    for number in range(HEARTBEATS):
        api.heartbeat(f"node-{number % count}")
        time.sleep(0.001)  # as they come in a cluster: one by one, not a burst in one piece
    api.annotate("node-0", public_ip="198.18.9.9")  # the end of the heartbeats
    after = read(node)
    spent = after["cpu"] - listed["cpu"]
    yield "processor time of one heartbeat", 1e6 * spent / HEARTBEATS, "us"
    yield "the same, a minute of reports each 5 min", spent / HEARTBEATS * count / 5, "s"
    yield "the same, a minute of reports each 10 s", spent / HEARTBEATS * count * 6, "s"
    yield "RSS after the heartbeats", after["rss"], "MB"


def read(node: "subprocess.Popen[str]") -> dict[str, float]:
    assert node.stdout is not None
    found: dict[str, float] = json.loads(node.stdout.readline())
    return found


def image(number: int) -> dict[str, Any]:
    name = f"registry.example/team/application-{number}"
    digest = f"{number:064x}"
    return {"names": [f"{name}@sha256:{digest}", f"{name}:v1.2.{number}"], "sizeBytes": 123456789}


def add_node(api: Any, number: int) -> None:
    prefix = "flannel.alpha.coreos.com/"
    high, low = divmod(number, 256)
    mac = "0e:2a:00:00:" + number.to_bytes(2).hex(":")
    annotations = {
        prefix + "kube-subnet-manager": "true",
        prefix + "backend-type": "vxlan",
        prefix + "backend-data": f'{{"VNI":1,"VtepMAC":"{mac}"}}',
        prefix + "public-ip": f"198.18.{high}.{low}",
        "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
        "node.alpha.kubernetes.io/ttl": "300",
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
    }
    api.put(f"node-{number}", cidr=f"10.{high}.{low}.0/24", annotations=annotations)


def main() -> None:
    if sys.argv[1:2] == ["--follow"]:
        follow(*sys.argv[2:])
        return
    for count in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for name, figure, unit in measure(count, Path(folder)):
                print(f"{count:>7,} nodes  {name:<45} {figure:9.3f} {unit}", flush=True)


if __name__ == "__main__":
    main()
