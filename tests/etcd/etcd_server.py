"""A real etcd on the loopback interface, and its HTTP gateway as an oracle that shares no code.

It promises that the process it starts is ended by its own pid; it never touches another one.
"""

import base64
import json
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.waiting import wait_until

ETCD = "/usr/bin/etcd"
START_TIMEOUT = 15.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EtcdServer:
    """One member with a data directory; may be killed, stopped, continued and started again."""

    def __init__(
        self, data: Path, *, flags: Iterable[str] = (), tls: ssl.SSLContext | None = None
    ) -> None:
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{free_port()}"
        self._peer_url = f"http://127.0.0.1:{free_port()}"
        self._data = data
        self._flags = tuple(flags)
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._cluster_name = "kersey"
        self.token = ""
        self._user: dict[str, str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        with (self._data / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    ETCD,
                    "--unsafe-no-fsync",
                    f"--data-dir={self._data / 'member'}",
                    f"--listen-client-urls={self.url}",
                    f"--advertise-client-urls={self.url}",
                    f"--listen-peer-urls={self._peer_url}",
                    f"--initial-advertise-peer-urls={self._peer_url}",
                    f"--initial-cluster=default={self._peer_url}",
                    f"--initial-cluster-token={self._cluster_name}",
                    "--heartbeat-interval=20",
                    "--election-timeout=200",
                    *self._flags,
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, timeout=START_TIMEOUT, what="etcd answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Run on another port for a while, where only the caller finds it."""
        url, self.url = self.url, f"http://127.0.0.1:{free_port()}"
        self.start()
        try:
            yield
        finally:
            self.kill()
            self.url = url

    def wipe(self) -> None:
        """Forget all data; what starts next is a new cluster."""
        shutil.rmtree(self._data / "member")
        self._cluster_name += "x"

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the gateway's answer to one request, e.g. `kv/put`.

        Logs in again where etcd has forgotten the token, as it may while others log in.
        """
        try:
            return self._ask(path, body)
        except urllib.request.HTTPError as error:
            if error.code != HTTPStatus.UNAUTHORIZED or self._user is None:
                raise
        user, self._user = self._user, None  # a second refusal is an error
        self.login(**user)
        return self._ask(path, body)

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": self.token} if self.token else {}
        request = urllib.request.Request(  # noqa: S310  # always our own loopback URL
            f"{self.url}/v3/{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=5, context=self._tls) as answer:  # noqa: S310
            result: dict[str, Any] = json.load(answer)
            return result

    def put(self, key: str, value: str, *, lease: int = 0) -> int:
        """Write one key; return the revision."""
        answer = self.call("kv/put", {"key": b64(key), "value": b64(value), "lease": lease})
        return int(answer["header"]["revision"])

    def put_many(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write all pairs, 128 a transaction (etcd's limit)."""
        operations = [{"requestPut": {"key": b64(k), "value": b64(v)}} for k, v in pairs]
        for start in range(0, len(operations), 128):
            self.call("kv/txn", {"success": operations[start : start + 128]})

    def get(self, key: str) -> dict[str, Any] | None:
        """Return one key as etcd describes it, with the value decoded."""
        found = self.call("kv/range", {"key": b64(key)}).get("kvs", [])
        return {**found[0], "value": base64.b64decode(found[0]["value"])} if found else None

    def keys(self, prefix: str) -> list[str]:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        body = {"key": b64(prefix), "range_end": b64(end), "keys_only": True}
        found = self.call("kv/range", body).get("kvs", [])
        return [base64.b64decode(kv["key"]).decode() for kv in found]

    def delete(self, key: str) -> None:
        self.call("kv/deleterange", {"key": b64(key)})

    def grant(self, seconds: int) -> int:
        return int(self.call("lease/grant", {"TTL": seconds})["ID"])

    def lease_ids(self) -> set[int]:
        return {int(lease["ID"]) for lease in self.call("lease/leases", {}).get("leases", [])}

    def compact(self) -> None:
        revision = self.call("kv/range", {"key": b64("x")})["header"]["revision"]
        self.call("kv/compaction", {"revision": revision, "physical": True})

    def login(self, *, name: str, password: str) -> None:
        self.token = ""  # etcd refuses a login that shows a token which it has forgotten
        answer = self._ask("auth/authenticate", {"name": name, "password": password})
        self.token = answer["token"]
        self._user = {"name": name, "password": password}

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError((self._data / "log").read_text()[-2000:])
        port = int(self.url.rsplit(":", 1)[1])
        try:
            self.call("kv/range", {"key": b64("x")})
        except urllib.request.HTTPError:  # it answers, and wants a login
            return True
        except OSError:
            with socket.socket() as probe:  # a server that wants client certificates only connects
                return self._tls is not None and probe.connect_ex(("127.0.0.1", port)) == 0
        return True

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
