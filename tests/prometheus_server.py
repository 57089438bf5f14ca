"""A real Prometheus in a namespace of the testbed: started, asked, stopped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from testbed import Namespace, Process, wait_until
from testbed.health import http_get

_PORT = 9090


@dataclass(frozen=True, slots=True)
class Sample:
    """One element of an instant query's answer."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A server that scrapes every second. A context manager.

    `jobs` are scrape configurations in JSON, which is YAML; `rules` is a file.
    """

    def __init__(
        self, namespace: Namespace, directory: Path, *, jobs: Sequence[object], rules: Path
    ) -> None:
        self._namespace = namespace
        self._config = directory / "prometheus.yml"
        self._log = directory / "prometheus.log"
        self._data = directory / "data"
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": [str(rules)], "scrape_configs": jobs}
        self._config.write_text(json.dumps(config))

    def __enter__(self) -> Self:
        self._process = Process(
            self._namespace,
            [
                "prometheus",
                f"--config.file={self._config}",
                f"--storage.tsdb.path={self._data}",
                f"--web.listen-address=127.0.0.1:{_PORT}",
                "--log.level=warn",
            ],
            log=self._log,
        )
        try:
            wait_until(self._is_ready, timeout=30, what="Prometheus is ready")
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.stop()

    def _is_ready(self) -> bool:
        assert self._process.is_running, self._process.log_tail()
        answer = http_get(self._namespace, port=_PORT, path="/-/ready")
        return answer is not None and answer[0] == 200

    def query(self, expression: str) -> list[Sample]:
        """Return what an expression gives now: a vector, or a scalar as one sample."""
        data = self._ask("/api/v1/query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(found["metric"], float(found["value"][1])) for found in data["result"]]

    def value(self, expression: str) -> float | None:
        """Return the one value that an expression gives now, None where it gives none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0].value if found else None

    def targets(self) -> list[dict[str, Any]]:
        """Return what is scraped, with health and last error."""
        found: list[dict[str, Any]] = self._ask("/api/v1/targets")["activeTargets"]
        return found

    def _ask(self, path: str, **query: str) -> Any:
        answer = http_get(self._namespace, port=_PORT, path=f"{path}?{urlencode(query)}")
        assert answer is not None, f"Prometheus does not answer {path}"
        status, text = answer
        assert status == 200, f"{query}: {text}"
        return json.loads(text)["data"]
