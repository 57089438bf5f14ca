"""What the Kubernetes lease store is told: node, annotations, API server. Pure; opens no file.

The node's name and the address of the API server inside a cluster come from the environment, all
else from flannel's flags.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from kersey_control.errors import InvalidInputError
from kersey_control.options import KubeFlags, Options

DEFAULT_PREFIX = "flannel.alpha.coreos.com"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PREFIX = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?")


@dataclass(frozen=True, slots=True)
class AnnotationKeys:
    """The node annotations by which flannel's nodes know each other."""

    managed: str
    """`true` on every node that takes part."""

    backend_type: str
    backend_data: str
    public_ip: str

    public_ip_overwrite: str
    """An administrator's: advertised in place of the node's own address."""

    node_public_ip: str
    """An administrator's: stands for `--public-ip`."""

    @classmethod
    def from_prefix(cls, prefix: str) -> Self:
        """Return the keys for `--kube-annotation-prefix` (`example.org` or `example.org/name`).

        By flannel's rules (pkg/subnet/kube/annotations.go): a slash is put behind a bare domain,
        a dash behind a name. Raises InvalidInputError.
        """
        text = prefix if "/" in prefix else f"{prefix}/"
        text = text if text.endswith(("/", "-")) else f"{text}-"
        if not _PREFIX.fullmatch(text):
            raise InvalidInputError(
                field="--kube-annotation-prefix",
                value=prefix,
                expected="a lower-case domain, with or without a name behind one slash",
            )
        return cls(
            managed=f"{text}kube-subnet-manager",
            backend_type=f"{text}backend-type",
            backend_data=f"{text}backend-data",
            public_ip=f"{text}public-ip",
            public_ip_overwrite=f"{text}public-ip-overwrite",
            node_public_ip=f"{text}node-public-ip",
        )


@dataclass(frozen=True, slots=True)
class PodName:
    """The pod that we run in, by which the node can be asked for."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class KubeOptions:
    """The store's settings, as flannel's flags and its DaemonSet's environment give them.

    `node` is the node's name, or a pod that runs on it. Without `api_url` and `kubeconfig` the API
    server is that of the cluster we run in: `service`, HOST:PORT, empty outside of a cluster.
    """

    node: str | PodName
    net_config_path: Path = Path("/etc/kube-flannel/net-conf.json")
    api_url: str = ""
    kubeconfig: Path | None = None
    service: str = ""
    service_account: Path = SERVICE_ACCOUNT
    keys: AnnotationKeys = field(default_factory=lambda: AnnotationKeys.from_prefix(DEFAULT_PREFIX))
    clears_network_unavailable: bool = True

    @classmethod
    def from_flags(cls, flags: Options, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the settings that these flags and variables ask for. Raises InvalidInputError."""
        return replace(
            cls.of_no_node(flags, environ),
            node=_node(environ),
            net_config_path=flags.net_config_path,
            clears_network_unavailable=flags.set_node_network_unavailable,
        )

    @classmethod
    def of_no_node(cls, flags: KubeFlags, environ: Mapping[str, str] = os.environ) -> Self:
        """Return what suffices to read all nodes. Raises InvalidInputError."""
        return cls(
            node="",
            api_url=flags.kube_api_url,
            kubeconfig=flags.kubeconfig_file,
            service=_service(environ),
            keys=AnnotationKeys.from_prefix(flags.kube_annotation_prefix),
        )


def _node(environ: Mapping[str, str]) -> str | PodName:
    name = environ.get("NODE_NAME", "")
    if name:
        return name
    pod = PodName(environ.get("POD_NAMESPACE", ""), environ.get("POD_NAME", ""))
    if not (pod.namespace and pod.name):
        raise InvalidInputError(
            field="environment variable NODE_NAME",
            value="",
            expected="the name of this node, or else both POD_NAME and POD_NAMESPACE",
        )
    return pod


def _service(environ: Mapping[str, str]) -> str:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not (host and port):
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
