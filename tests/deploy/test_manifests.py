"""The manifests: one source, valid for every Kubernetes in use, and what the daemon understands."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kersey_control import __version__
from kersey_control.cli.schema import CleanupFlags
from kersey_control.flags import parse_flags
from kersey_control.netconfig import parse_network_config
from kersey_control.options import Options, parse_options
from kersey_control.subnets.kube_options import KubeOptions
from manifests import (
    CHART,
    DEPLOY,
    OVERLAYS,
    ChartError,
    Document,
    Documents,
    base,
    chart,
    daemon_arguments,
    example,
    keyed,
    kustomized,
    overlay,
    pod_spec,
)

REPOSITORY = DEPLOY.parent
KUBERNETES = ("1.25", "1.28", "1.31", "1.34", "1.37")
CLEANUP = DEPLOY / "kubernetes" / "cleanup" / "daemonset.yaml"
APP_ARMOR_FIELD = 30
"""The minor version of Kubernetes that brought `appArmorProfile`."""


def comparable(documents: Documents) -> Documents:
    """Leave out what only one side has: the namespace object, and the chart's checksum."""
    wanted = {key: each for key, each in documents.items() if key[0] != "Namespace"}
    template = wanted["DaemonSet", "kersey"]["spec"]["template"]["metadata"]
    template.pop("annotations", None)
    return wanted


def effective(documents: Documents) -> tuple[Documents, Options]:
    """Part documents into the daemon's flags, of which the last one counts, and all the rest."""
    options = parse_flags(Options, daemon_arguments(documents), {}).values
    (container,) = pod_spec(documents)["containers"]
    container["args"] = []
    container["volumeMounts"].sort(key=lambda mount: mount["mountPath"])
    config = documents["ConfigMap", "kersey"]["data"]
    config["net-conf.json"] = json.loads(config["net-conf.json"])
    for key in ("initContainers", "affinity"):
        if not pod_spec(documents).get(key):
            pod_spec(documents).pop(key, None)
    return comparable(documents), options


def test_the_charts_templates_are_what_the_base_makes_them() -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "generate-manifests", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_chart_with_its_defaults_is_the_base() -> None:
    assert comparable(chart()) == comparable(base())


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_and_the_charts_example_of_that_name_are_the_same(name: str) -> None:
    ours, theirs = effective(overlay(name)), effective(chart(example(name)))
    assert ours == theirs


def test_every_overlay_has_an_example_and_differs_from_the_others() -> None:
    assert {path.stem for path in (CHART / "examples").iterdir()} == set(OVERLAYS)
    values = [json.dumps(example(name)) for name in OVERLAYS]
    assert len(set(values)) == len(values)


def chart_documents(name: str) -> Documents:
    return chart(example(name))


@pytest.mark.parametrize("render", [overlay, chart_documents])
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_document_is_valid_for_every_kubernetes(
    render: Callable[[str], Documents], name: str
) -> None:
    oldest = APP_ARMOR_FIELD if name == "unprivileged" else 0
    documents = render(name).values()
    for version in KUBERNETES:
        if int(version.partition(".")[2]) >= oldest:
            for document in documents:
                kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("path", [CLEANUP])
def test_what_stands_alone_is_valid_too(path: Path) -> None:
    for document in keyed([path.read_text()]).values():
        for version in KUBERNETES:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda spec: spec.update(hostNetworking=True),
        lambda spec: spec.update(hostNetwork="yes"),
        lambda spec: spec["containers"][0].pop("name"),
        lambda spec: spec["containers"][0]["readinessProbe"]["httpGet"].pop("port"),
    ],
)
def test_the_schemas_refuse_what_they_should(damage: Callable[[Document], object]) -> None:
    documents = base()
    damage(pod_spec(documents))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents["DaemonSet", "kersey"], "1.37", strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_daemon_understands_what_it_is_told(name: str) -> None:
    documents = chart(example(name))
    options = parse_options(daemon_arguments(documents), {})
    assert options.ignored_arguments == ()
    if options.kube_subnet_mgr:
        text = documents["ConfigMap", "kersey"]["data"]["net-conf.json"]
        parse_network_config(text.encode())
        (container,) = pod_spec(documents)["containers"]
        environ = {each["name"]: each["valueFrom"]["fieldRef"] for each in container["env"]}
        assert environ == {"NODE_NAME": {"fieldPath": "spec.nodeName"}}
        KubeOptions.from_flags(options, {"NODE_NAME": "worker-1"})


def test_probes_ask_where_the_daemon_answers() -> None:
    for documents in (base(), chart({"healthz": {"port": 9000}})):
        options = parse_flags(Options, daemon_arguments(documents), {}).values
        (container,) = pod_spec(documents)["containers"]
        for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            asked = container[probe]["httpGet"]
            told = {"host": options.healthz_ip, "port": options.healthz_port, "path": path}
            assert asked == told
    assert options.healthz_port == 9000


def test_every_folder_that_outlives_the_daemon_is_the_nodes() -> None:
    spec = pod_spec(base())
    (container,) = spec["containers"]
    paths = {
        each["name"]: each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each
    }
    mounted = {each["mountPath"]: paths.get(each["name"]) for each in container["volumeMounts"]}
    options = parse_flags(Options, daemon_arguments(base()), {}).values
    kept = [
        *(options.subnet_file.parent, options.state_dir),
        *(options.cache_dir, options.cni_conf_dir),
    ]
    for path in (*map(str, kept), "/sys/fs/bpf", "/run/xtables.lock", "/etc/machine-id"):
        assert mounted[path] == path
    assert options.bpf_dir.is_relative_to("/sys/fs/bpf")
    assert str(options.net_config_path.parent) in mounted


def test_the_clean_up_reaches_the_same_folders() -> None:
    def host_paths(documents: Documents, name: str) -> set[str]:
        spec = documents["DaemonSet", name]["spec"]["template"]["spec"]
        return {each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each}

    cleaned = host_paths(keyed([CLEANUP.read_text()]), "kersey-cleanup")
    assert host_paths(base(), "kersey") - cleaned == {"/etc/machine-id", "/opt/cni/bin"}
    assert cleaned <= host_paths(base(), "kersey")
    spec = keyed([CLEANUP.read_text()])["DaemonSet", "kersey-cleanup"]["spec"]["template"]["spec"]
    (step,) = spec["initContainers"]
    assert {each["mountPath"] for each in step["volumeMounts"]} == cleaned


def test_the_step_back_to_flannel_is_the_clean_up_that_keeps_the_network() -> None:
    document = kustomized(Path("give-back"))["DaemonSet", "kersey-give-back"]
    for version in KUBERNETES:
        kubernetes_validate.validate(document, version, strict=True)
    (cleanup,) = keyed([CLEANUP.read_text()]).values()
    assert document["spec"]["selector"] != cleanup["spec"]["selector"]
    spec = document["spec"]["template"]["spec"]
    (step,) = spec["initContainers"]
    assert step["args"][:2] == ["kersey", "cleanup"]
    assert parse_flags(CleanupFlags, step["args"][2:], {}).values.keep_network
    only_as_told = cleanup["spec"]["template"]["spec"]
    step["args"] = only_as_told["initContainers"][0]["args"]
    del spec["nodeSelector"]["network-daemon"]
    assert spec == only_as_told


@pytest.mark.parametrize(
    ("label", "present"),
    [(None, {"flannel"}), ("kersey", {"kersey"}), ("leaving", {"give-back"})],
)
def test_a_nodes_label_says_whose_it_is(label: str | None, present: set[str]) -> None:
    def wants(pod: Document) -> bool:
        wanted = pod.get("nodeSelector", {}).get("network-daemon")
        return wanted is None or wanted == label

    path = DEPLOY / "kubernetes" / "overlays" / "migration" / "kube-flannel-affinity.yaml"
    patch = yaml.safe_load(path.read_text())
    terms = patch["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (rule,) = (each for each in term["matchExpressions"] if each["key"] == "network-daemon")
    assert rule["operator"] == "NotIn"
    give_back = kustomized(Path("give-back"))["DaemonSet", "kersey-give-back"]
    found = {
        "flannel": label not in rule["values"],
        "kersey": wants(pod_spec(overlay("migration"))),
        "give-back": wants(give_back["spec"]["template"]["spec"]),
    }
    assert {name for name, is_there in found.items() if is_there} == present


def test_the_role_allows_what_is_used_and_nothing_else() -> None:
    rules = base()["ClusterRole", "kersey"]["rules"]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {
        ("", "nodes", "get"),
        ("", "nodes", "list"),
        ("", "nodes", "watch"),
        ("", "nodes/status", "patch"),
        ("", "events", "create"),
        ("", "events", "patch"),
    }
    assert ("ClusterRole", "kersey") not in chart(example("etcd"))


def test_versions_are_the_programs() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)
    for path in (DEPLOY / "kubernetes").rglob("*.yaml"):
        for image in re.findall(r"^ +image: (\S+)", path.read_text(), re.MULTILINE):
            assert image == f"kersey:{__version__}", path


@pytest.mark.parametrize(
    "values",
    [
        {"admision": "direct"},
        {"admission": "Direct"},
        {"cni": {"mode": "ptp"}},
        {"cni": {"confName": "10-kersey.conf"}},
        {"netConf": {"Network": "10.244.0.0"}},
        {"netConf": {"Backend": {"Type": "wireguard"}}},
        {"store": "etcd"},
        {"healthz": {"port": 0}},
        {"metrics": {"port": 70000}},
        {"metrics": {"statusPage": True}},
        {"metrics": {"port": 9475, "clientCertificates": True}},
        {"probes": {"interval": -1}},
        {"probes": {"port": 0}},
        {"maxUnavailable": 0},
        {"extraArgs": ["verbose"]},
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_sent(
    values: dict[str, Any],
) -> None:
    with pytest.raises(ChartError):
        chart(values)


def test_the_pages_patch_leads_to_etcd_by_tls(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "KUBERNETES.md").read_text()
    (patches,) = re.findall(r"^```yaml\n(patches:\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    etcd = os.path.relpath(DEPLOY / "kubernetes" / "overlays" / "etcd", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{etcd}]\n{patches}")
    ours, theirs = (
        effective(documents)
        for documents in (
            kustomized(tmp_path),
            chart(
                {
                    "store": "etcd",
                    "etcd": {"endpoints": ["https://etcd.example:2379"], "tlsSecret": "etcd-tls"},
                }
            ),
        )
    )
    assert ours == theirs


@pytest.mark.parametrize("asks", [False, True])
def test_metrics_are_served_by_tls_with_a_secret_that_is_mounted(*, asks: bool) -> None:
    tls = {"tlsSecret": "prometheus", "clientCertificates": asks}
    documents = chart({"metrics": {"port": 9475, **tls}})
    for version in KUBERNETES:
        kubernetes_validate.validate(documents["DaemonSet", "kersey"], version, strict=True)
    options = parse_options(daemon_arguments(documents), {})
    spec = pod_spec(documents)
    (volume,) = (each for each in spec["volumes"] if "secret" in each)
    assert volume["secret"] == {"secretName": "prometheus"}
    (mount,) = (
        each for each in spec["containers"][0]["volumeMounts"] if each["name"] == volume["name"]
    )
    folder = Path(mount["mountPath"])
    assert options.metrics_certfile == folder / "tls.crt"
    assert options.metrics_keyfile == folder / "tls.key"
    assert options.metrics_cafile == (folder / "ca.crt" if asks else None)
    without_port = chart({"metrics": tls})
    assert without_port == chart()


def test_further_values_reach_their_places() -> None:
    documents = chart(
        {
            "image": {"repository": "registry.example/kersey", "tag": "1"},
            "metrics": {"port": 8473, "statusPage": True},
            "probes": {"interval": 0, "port": 8476},
            "extraArgs": ["--iface=eth1", "--max-flows=131072"],
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
            "maxUnavailable": "10%",
            "resources": {"limits": {"memory": "1Gi"}},
            "imagePullSecrets": [{"name": "pull"}],
            "nodeSelector": {"pool": "a"},
            "store": "etcd",
            "etcd": {"endpoints": ["https://a:2379", "https://b:2379"], "tlsSecret": "etcd"},
        }
    )
    for version in KUBERNETES:
        for document in documents.values():
            kubernetes_validate.validate(document, version, strict=True)
    options = parse_flags(Options, daemon_arguments(documents), {}).values
    assert options.etcd_endpoints == ("https://a:2379", "https://b:2379")
    assert (options.metrics_port, options.iface, options.max_flows) == (8473, ("eth1",), 131072)
    assert options.status_page
    assert (options.probe_interval, options.probe_rate, options.probe_port) == (0, 20, 8476)
    assert str(options.etcd_cafile) == "/etc/kersey-etcd/ca.crt"
    assert not options.kube_subnet_mgr
    spec = pod_spec(documents)
    (container,) = spec["containers"]
    assert container["image"] == "registry.example/kersey:1"
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    assert {"name": "TZ", "value": "UTC"} in container["env"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "a"}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    update = documents["DaemonSet", "kersey"]["spec"]["updateStrategy"]
    assert update["rollingUpdate"] == {"maxUnavailable": "10%"}
