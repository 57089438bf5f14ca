"""The CNI configuration: what it says, how it is written, and that others' files survive it."""

import json
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from kersey_control.cni import CniConfig, first_config, remove_cni_configs, write_cni_config
from kersey_control.options import CniMode

CONFIG = CniConfig(
    name="cbr0",
    network=IPv4Network("10.244.0.0/16"),
    subnet=IPv4Network("10.244.5.0/24"),
    mtu=1450,
    mode=CniMode.BRIDGE,
)
FLANNELS = '{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}]}\n'


def plugins_of(config: CniConfig) -> list[dict[str, Any]]:
    plugins: list[dict[str, Any]] = json.loads(config.format())["plugins"]
    return plugins


def test_bridged_pods_get_what_kubenet_and_flannel_give_them() -> None:
    document = json.loads(CONFIG.format())
    assert (document["cniVersion"], document["name"]) == ("0.4.0", "cbr0")
    assert document["plugins"] == [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "isDefaultGateway": True,
            "forceAddress": True,
            "hairpinMode": True,
            "ipMasq": False,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.5.0/24"}]],
                "routes": [{"dst": "10.244.0.0/16", "gw": "10.244.5.1"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]


def test_routed_pods_get_a_default_route_and_no_bridge() -> None:
    interface, portmap = plugins_of(replace(CONFIG, mode=CniMode.ROUTED))
    assert interface == {
        "type": "ptp",
        "ipMasq": False,
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.244.5.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.5.1"}],
        },
    }
    assert portmap["type"] == "portmap"


@pytest.mark.parametrize("mode", CniMode)
def test_bandwidth_is_the_last_of_the_chain_where_asked_for(mode: CniMode) -> None:
    plugins = plugins_of(replace(CONFIG, mode=mode, bandwidth=True))
    assert plugins[2:] == [{"type": "bandwidth", "capabilities": {"bandwidth": True}}]


def test_only_a_change_is_written(tmp_path: Path) -> None:
    path = tmp_path / "net.d" / "10-kersey.conflist"
    assert write_cni_config(path, CONFIG)
    before = path.stat()
    assert not write_cni_config(path, CONFIG)
    assert path.stat().st_ino == before.st_ino
    assert write_cni_config(path, replace(CONFIG, mtu=8950))
    assert json.loads(path.read_text())["plugins"][0]["mtu"] == 8950
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_was_there_before_us_is_kept_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "10-flannel.conflist"
    path.write_text(FLANNELS)
    write_cni_config(path, CONFIG)
    write_cni_config(path, replace(CONFIG, mtu=8950))
    assert "kersey" in path.read_text()
    assert first_config(tmp_path) == path, "the kept file must not be one that runtimes take"
    assert list(remove_cni_configs(tmp_path)) == [path]
    assert path.read_text() == FLANNELS
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_is_kept_first_stays_the_kept_one(tmp_path: Path) -> None:
    path = tmp_path / "10-flannel.conflist"
    for text in (FLANNELS, "{}"):
        path.write_text(text)
        write_cni_config(path, CONFIG)
    list(remove_cni_configs(tmp_path))
    assert path.read_text() == FLANNELS


@pytest.mark.parametrize("text", [FLANNELS, "", "not json", "[]", '{"writtenBy": "someone"}'])
def test_files_of_others_are_never_removed(tmp_path: Path, text: str) -> None:
    other = tmp_path / "05-other.conflist"
    other.write_text(text)
    ours = tmp_path / "10-kersey.conflist"
    write_cni_config(ours, CONFIG)
    assert list(remove_cni_configs(tmp_path)) == [ours]
    assert [entry.name for entry in tmp_path.iterdir()] == [other.name]
    assert other.read_text() == text


def test_a_missing_folder_holds_nothing_of_ours(tmp_path: Path) -> None:
    assert list(remove_cni_configs(tmp_path / "absent")) == []


def test_the_first_by_name_is_what_runtimes_take(tmp_path: Path) -> None:
    assert first_config(tmp_path) is None
    for name in ("10-kersey.conflist", "05-x.bak", ".01-x.conflist.tmp", "20-z.conf"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "00-folder.conf").mkdir()
    assert first_config(tmp_path) == tmp_path / "10-kersey.conflist"
    (tmp_path / "05-a.json").write_text("{}")
    assert first_config(tmp_path) == tmp_path / "05-a.json"
