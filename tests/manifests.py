"""What is deployed, as objects: the kustomize base, its overlays, and the Helm chart.

Documents are keyed by kind and name. Overlays are rendered by kustomize or kubectl, the chart by
Helm's own engine; nothing here renders by itself.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

Document: TypeAlias = dict[str, Any]
Documents: TypeAlias = dict[tuple[str, str], Document]

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
OVERLAYS = sorted(path.name for path in (DEPLOY / "kubernetes" / "overlays").iterdir())
CHART = DEPLOY / "helm" / "kersey"
_CHILD = Path(__file__).with_name("helm_child.py")
_TIMEOUT = 60


class ChartError(Exception):
    """Report what Helm said against a chart or its values."""


def keyed(texts: Iterable[str]) -> Documents:
    """Return all documents of some YAML texts by kind and name."""
    found = [document for text in texts for document in yaml.safe_load_all(text) if document]
    documents = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(documents) == len(found), "two documents of one kind and name"
    return documents


def base() -> Documents:
    """Return the base as it stands in its files."""
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return keyed((BASE / name).read_text() for name in names)


def overlay(name: str) -> Documents:
    """Return what kustomize makes of an overlay; skips where there is no kustomize 4 or newer."""
    return kustomized(Path("overlays", name))


def kustomized(folder: Path) -> Documents:
    """Return what kustomize makes of a folder below deploy/kubernetes; skips as `overlay`."""
    directory = DEPLOY / "kubernetes" / folder
    done = subprocess.run(
        [*_kustomize(), str(directory)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert not done.returncode, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return keyed([done.stdout])


def _kustomize() -> list[str]:
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]) and _is_new_enough(command[0]):
            return command
    # Not a lack of this machine: Debian 12 has none, its kubectl is of before `patches`.
    pytest.skip("no kustomize 4 or newer")


def _is_new_enough(program: str) -> bool:
    arguments = ["version"] if program == "kustomize" else ["version", "--client", "-o", "json"]
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    if program == "kustomize":
        return done.stdout.lstrip("{kustomize/v") >= "4"
    return bool(json.loads(done.stdout or "{}").get("kustomizeVersion"))  # absent before 4.5


def chart(values: Mapping[str, object] | None = None) -> Documents:
    """Return what Helm makes of the chart with `values`. Raises ChartError, for lint's too."""
    if importlib.util.find_spec("helm_python") is None:
        pytest.skip("no helm-python-sdk for this machine")
    done = subprocess.run(
        ["unshare", "--user", "--net", sys.executable, "-I", str(_CHILD)],
        input=json.dumps({"chart": str(CHART), "values": dict(values or {})}),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    answer = json.loads(done.stdout)
    if "error" in answer or answer["lint"]:
        raise ChartError(answer.get("error") or "; ".join(answer["lint"]))
    return keyed(text for name, text in answer["files"].items() if name.endswith(".yaml"))


def example(name: str) -> Document:
    """Return the chart's values that ask for what the overlay of the same name does."""
    values: Document = yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text()) or {}
    return values


def daemon_arguments(documents: Documents) -> list[str]:
    """Return the daemon's command line in a set of documents, without its name."""
    (container,) = pod_spec(documents)["containers"]
    name, *arguments = container["args"]
    assert name == "kerseyd"
    return [str(each) for each in arguments]


def pod_spec(documents: Documents) -> Document:
    """Return the DaemonSet's pod."""
    spec: Document = documents["DaemonSet", "kersey"]["spec"]["template"]["spec"]
    return spec


def granted_capabilities() -> list[str]:
    """Return what the overlay `unprivileged` adds, by Kubernetes' names."""
    patch = DEPLOY / "kubernetes" / "overlays" / "unprivileged" / "daemonset.yaml"
    (container,) = yaml.safe_load(patch.read_text())["spec"]["template"]["spec"]["containers"]
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    return [str(name) for name in capabilities["add"]]
