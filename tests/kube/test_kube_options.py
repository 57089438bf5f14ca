"""What flags and environment mean to the Kubernetes store."""

import subprocess
import sys
from pathlib import Path

import pytest
from kersey_control.errors import InvalidInputError
from kersey_control.options import Options
from kersey_control.subnets.kube_options import AnnotationKeys, KubeOptions, PodName


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/public-ip"),
        ("example.org/net", "example.org/net-public-ip"),
        ("example.org/net-", "example.org/net-public-ip"),
        ("a_b.c-d/x_1", "a_b.c-d/x_1-public-ip"),
    ],
)
def test_prefixes_make_flannels_keys(prefix: str, key: str) -> None:
    assert AnnotationKeys.from_prefix(prefix).public_ip == key


@pytest.mark.parametrize(
    "prefix",
    ["", "org", "/", "a.b/c/d", "A.b", "a.b/C", "a.b/c.d", "a..b", ".a", "a.b /c", "a.b/\n"],
)
def test_other_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^--kube-annotation-prefix: got "):
        AnnotationKeys.from_prefix(prefix)


def test_keys_are_those_that_flannel_reads() -> None:
    keys = AnnotationKeys.from_prefix("p.q")
    assert (
        keys.managed,
        keys.backend_type,
        keys.backend_data,
        keys.public_ip,
        keys.public_ip_overwrite,
        keys.node_public_ip,
    ) == (
        "p.q/kube-subnet-manager",
        "p.q/backend-type",
        "p.q/backend-data",
        "p.q/public-ip",
        "p.q/public-ip-overwrite",
        "p.q/node-public-ip",
    )


def test_flags_are_taken_over() -> None:
    flags = Options(
        kube_api_url="http://x",
        kubeconfig_file=Path("/k"),
        kube_annotation_prefix="p.q",
        net_config_path=Path("/n"),
        set_node_network_unavailable=False,
    )
    assert KubeOptions.from_flags(flags, {"NODE_NAME": "n1"}) == KubeOptions(
        node="n1",
        net_config_path=Path("/n"),
        api_url="http://x",
        kubeconfig=Path("/k"),
        keys=AnnotationKeys.from_prefix("p.q"),
        clears_network_unavailable=False,
    )


def test_the_node_is_named_by_itself_or_by_our_pod() -> None:
    pod = {"POD_NAME": "p", "POD_NAMESPACE": "ns"}
    assert KubeOptions.from_flags(Options(), {**pod, "NODE_NAME": "n"}).node == "n"
    assert KubeOptions.from_flags(Options(), pod).node == PodName("ns", "p")
    for missing in pod:
        with pytest.raises(InvalidInputError, match=r"NODE_NAME: got '', .* POD_NAME and POD_NAM"):
            KubeOptions.from_flags(Options(), {**pod, missing: ""})


@pytest.mark.parametrize(
    ("host", "port", "service"),
    [
        ("10.96.0.1", "443", "10.96.0.1:443"),
        ("fd00::1", "6443", "[fd00::1]:6443"),
        ("", "443", ""),
        ("h", "", ""),
    ],
)
def test_the_clusters_own_server_comes_from_the_environment(
    host: str, port: str, service: str
) -> None:
    environ = {
        "NODE_NAME": "n",
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
    }
    assert KubeOptions.from_flags(Options(), environ).service == service


def test_the_store_loads_neither_grpc_nor_a_yaml_parser() -> None:
    program = "import sys; import kersey_control.subnets.kube; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "kersey_control.subnets.kube_http" in loaded
    assert not loaded & {"grpc", "etcd3", "google.protobuf", "yaml", "lightkube", "asyncio"}
