"""A real etcd in a namespace of its own: start, stop, crash, hang, and plain reads and writes.

Its data survives restarts and goes with the testbed. It never syncs to disk, so a crash of the
machine (not of etcd) may lose data: that is what makes it quick.
"""

import base64
import json
import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path

from testbed.errors import ClusterError
from testbed.health import http_get
from testbed.namespace import Namespace
from testbed.process import Process
from testbed.waiting import wait_until

PORT = 2379
_START_TIMEOUT = 20.0
_CLIENT_TIMEOUT = 30.0
_BATCH = 1000  # writes in one transaction: well below etcd's limit of 1.5 MB a request


class Etcd:
    """An etcd server and its command-line client; `endpoint` is where nodes reach it."""

    def __init__(self, namespace: Namespace, *, address: IPv4Address, state_dir: Path) -> None:
        self.namespace = namespace
        self.endpoint = f"http://{address}:{PORT}"
        self._state_dir = state_dir
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The running server."""
        if self._process is None:
            raise ClusterError("etcd was not started")
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def start(self, *options: str) -> None:
        """Start it on the data it has, with `options`, and return once it answers."""
        if self.is_running:
            raise ClusterError("etcd runs already")
        self._process = Process(
            self.namespace,
            ["etcd", *self._settings(), *options],
            log=self._state_dir / "etcd.log",
            environment={"ETCD_UNSUPPORTED_ARCH": "arm64"},  # 3.4 asks for it there
        )
        wait_until(self._answers, timeout=_START_TIMEOUT, what="etcd answers")

    def _settings(self) -> list[str]:
        return [
            "--name=testbed",
            f"--data-dir={self._state_dir / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{PORT},{self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            # A single member waits one election timeout before it serves: by default a second.
            "--heartbeat-interval=20",
            "--election-timeout=200",
            f"--max-txn-ops={_BATCH}",
            "--logger=zap",
            "--log-level=warn",
        ]

    def _answers(self) -> bool:
        if not self.process.is_running:
            raise ClusterError(f"etcd ended by itself:\n{self.process.log_tail()}")
        answer = http_get(self.namespace, port=PORT, path="/health")
        return answer is not None and '"health":"true"' in answer[1]

    def stop(self) -> None:
        """End it in good order; twice does no harm."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it as a crash would. Clients see resets, the data stays."""
        self.process.kill()

    def pause(self) -> None:
        """Let it hang: connections stay open and nothing answers."""
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def etcdctl(self, *arguments: str, stdin: str = "") -> str:
        """Return what `etcdctl` prints; ClusterError where it fails."""
        done = subprocess.run(
            self.namespace.command(
                "env", "ETCDCTL_API=3", "etcdctl", f"--endpoints=127.0.0.1:{PORT}", *arguments
            ),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_CLIENT_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def put(self, key: str, value: str, *, lease: str | None = None) -> None:
        """Write one key; `lease` is an id as `grant` returned it."""
        self.etcdctl("put", key, value, *([f"--lease={lease}"] if lease else []))

    def put_many(self, records: Mapping[str, str]) -> None:
        """Write many keys, a thousand in a transaction; text only."""
        remaining = iter(records.items())
        while batch := list(islice(remaining, _BATCH)):
            puts = "\n".join(f"put {json.dumps(key)} {json.dumps(value)}" for key, value in batch)
            self.etcdctl("txn", stdin=f"\n{puts}\n\n\n")

    def get(self, key: str) -> str | None:
        """Return the key's value, None where there is none."""
        return self._read(key).get(key)

    def get_prefix(self, prefix: str) -> dict[str, str]:
        """Return all keys below `prefix` with their values."""
        return self._read(prefix, "--prefix")

    def _read(self, *arguments: str) -> dict[str, str]:
        answer = json.loads(self.etcdctl("get", "-w", "json", *arguments))
        return {_text(record, "key"): _text(record, "value") for record in answer.get("kvs", [])}

    def delete(self, key: str) -> bool:
        """Delete one key; return whether it was there."""
        return self.etcdctl("del", key).strip() == "1"

    def grant(self, seconds: int) -> str:
        """Return the id of a new etcd lease that ends after `seconds` without a keep-alive."""
        return self.etcdctl("lease", "grant", str(seconds)).split()[1]

    def revoke(self, lease: str) -> None:
        """End an etcd lease at once: its keys vanish as if it had expired."""
        self.etcdctl("lease", "revoke", lease)

    def lease_of(self, key: str) -> str | None:
        """Return the id of the etcd lease that `key` hangs on, None for a key that stays."""
        answer = json.loads(self.etcdctl("get", "-w", "json", key))
        number = next((record.get("lease", 0) for record in answer.get("kvs", [])), 0)
        return f"{number:x}" if number else None

    def revision(self) -> int:
        """Return the store's current revision."""
        return int(json.loads(self.etcdctl("get", "-w", "json", "-"))["header"]["revision"])

    def compact(self) -> None:
        """Drop all history up to now, as a cluster's periodic compaction does."""
        self.etcdctl("compact", str(self.revision()))


def _text(record: Mapping[str, str], field: str) -> str:
    return base64.b64decode(record.get(field, "")).decode(errors="surrogateescape")
