"""Another tunnel under the same directory takes the former one's place, as another version does."""

import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from bpf_lab import NETWORK, OWN, PEER, PEER_NODE, private_bpffs, private_network
from kersey_loader import bpf, tcx
from kersey_loader.attach import Direction, FilterHooks
from kersey_loader.datapath import Datapath, DatapathConfig, PeerEntry, Settings, load
from kersey_loader.errors import LoaderError
from kersey_loader.layout import Program
from kersey_loader.probe import probe
from kersey_loader.tunnel import TunnelKind
from wires import NO_WIRE, UDP_WIRE, VXLAN_WIRE, Wire

CONFIG = DatapathConfig(
    uplink=1, node=IPv4Address("198.18.0.1"), subnet=OWN, mtu=1400, pod_mtu=1400, tunnel=None
)
WAY_ROUND = (VXLAN_WIRE, UDP_WIRE, NO_WIRE, VXLAN_WIRE)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    found = probe(tmp_path)
    if not found.available:
        pytest.skip(f"missing: {'; '.join(found.missing)}")
    with private_network(), private_bpffs(tmp_path):
        yield Settings(tmp_path, network=NETWORK, subnet_len=24)


@pytest.fixture
def devices(settings: Settings) -> dict[str, int]:
    """Make an uplink, a pod port and one overlay device for each kind; return their indexes."""
    del settings
    names = ("wire", "pod", *TunnelKind)
    for name in names:
        made = ["ip", "link", "add", "name", name, "type", "veth", "peer", "name", f"{name}-x"]
        subprocess.run(made, check=True)
    return {name: socket.if_nametoindex(name) for name in names}


def take_over(loaded: Datapath, wire: Wire, devices: dict[str, int]) -> None:
    """Do what a daemon does when it starts: fill the maps, then attach."""
    loaded.configure(replace(CONFIG, tunnel=wire.tunnel))
    loaded.replace_peers([PeerEntry(PEER, IPv4Address(PEER_NODE), direct=wire.tunnel is None)])
    loaded.attach_uplink(devices["wire"], direct=wire.tunnel is None)
    if wire.tunnel is not None:
        loaded.attach_overlay(devices[wire.kind])
    loaded.put_pod_port(devices["pod"])


def attached(loaded: Datapath) -> set[tuple[int, str, str]]:
    return {(a.ifindex, a.direction.name, a.program) for a in loaded.attachments()}


def expected(wire: Wire, devices: dict[str, int]) -> set[tuple[int, str, str]]:
    hooks = {
        (devices["wire"], "INGRESS", "from_uplink"),
        (devices["pod"], "INGRESS", "from_pod"),
        (devices["pod"], "EGRESS", "to_pod"),
    }
    if wire.tunnel is None:
        return hooks | {(devices["wire"], "EGRESS", "to_uplink")}
    return hooks | {(devices[wire.kind], "EGRESS", "to_overlay")}


def link_ids(settings: Settings) -> dict[str, int]:
    """Return the kernel's id of each pinned link: it changes if one is made anew."""
    ids = {}
    for path in (settings.directory / "links").iterdir():
        with bpf.Descriptor(bpf.open_pin(path) or -1) as link:
            ids[path.name] = struct.unpack_from("=II", bpf._info(link.fd, 64))[1]
    return ids


def test_tunnels_take_turns_without_a_hook_ever_being_empty(
    settings: Settings, devices: dict[str, int]
) -> None:
    lasting = {
        (devices["wire"], "INGRESS"),
        (devices["pod"], "INGRESS"),
        (devices["pod"], "EGRESS"),
    }
    programs: set[int] = set()
    links: dict[str, int] = {}
    for wire in WAY_ROUND:
        with load(replace(settings, tunnel=wire.kind)) as loaded:
            assert not loaded.adopted
            # Until then the former tunnel's programs work on, with their own maps.
            assert lasting <= {hook[:2] for hook in attached(loaded)} or not links
            take_over(loaded, wire, devices)
            loaded.retire_old()
            assert attached(loaded) == expected(wire, devices)
            ids = {loaded.program_info(program).id for program in Program}
            assert not ids & programs
            programs |= ids
            kept = {name: links[name] for name in links.keys() & link_ids(settings).keys()}
            links = link_ids(settings)
            assert kept.items() <= links.items(), "a link was made anew instead of replaced"
            assert len(links) == len(expected(wire, devices))
            pinned = [path.name.split("-")[0] for path in settings.directory.glob("*-*")]
            assert sorted(pinned) == ["maps", "programs"]


def test_maps_of_one_tunnel_are_not_those_of_another(settings: Settings) -> None:
    with load(settings) as vxlan, load(replace(settings, tunnel=TunnelKind.UDP)) as udp:
        ids = [{bpf.map_info(map_.fd).id for map_ in each.maps.values()} for each in (vxlan, udp)]
        assert not ids[0] & ids[1]


def test_restarted_daemon_adopts_its_own_tunnels_programs(
    settings: Settings, devices: dict[str, int]
) -> None:
    for wire in (UDP_WIRE, NO_WIRE):
        mine = replace(settings, tunnel=wire.kind)
        with load(mine) as first:
            take_over(first, wire, devices)
            generation = first.generation
        with load(mine) as second:
            assert second.adopted
            take_over(second, wire, devices)
            assert second.generation == generation


def test_link_pins_of_deleted_devices_go_with_the_old_version(
    settings: Settings, devices: dict[str, int]
) -> None:
    if not tcx.is_supported():
        pytest.skip("the kernel has no TCX (6.6)")
    with load(settings) as loaded:
        take_over(loaded, VXLAN_WIRE, devices)
        subprocess.run(["ip", "link", "del", "vxlan"], check=True)
        overlay = settings.directory / "links" / f"{devices['vxlan']}-egress"
        assert overlay.exists()
        loaded.retire_old()
        assert not overlay.exists()
        assert len(list(overlay.parent.iterdir())) == 3


def test_uplink_without_direct_peers_has_no_program_on_its_way_out(
    settings: Settings, devices: dict[str, int]
) -> None:
    with load(settings) as loaded:
        for direct in (False, True, True, False):
            loaded.attach_uplink(devices["wire"], direct=direct)
            ways = {a.direction for a in loaded.attachments()}
            both = {Direction.INGRESS, Direction.EGRESS}
            assert ways == (both if direct else {Direction.INGRESS})


def test_filters_of_an_older_version_are_retired_too(
    settings: Settings, devices: dict[str, int]
) -> None:
    udp = replace(settings, tunnel=TunnelKind.UDP)
    with load(settings) as old, load(udp) as new, FilterHooks(settings.handle) as filters:
        for loaded, device in ((old, "vxlan"), (new, "udp")):
            filters.attach(
                devices[device],
                Direction.EGRESS,
                program="to_overlay",
                fd=loaded.program_fd(Program.TO_OVERLAY),
            )
        new.retire_old()
        assert [found.ifindex for found in filters.all_attached()] == [devices["udp"]]


def test_tunnel_of_another_kind_than_the_programs_is_refused(settings: Settings) -> None:
    with load(settings) as loaded:
        for tunnel in (UDP_WIRE.tunnel, None):
            with pytest.raises(LoaderError, match="tunnel: the programs know vxlan, got"):
                loaded.configure(replace(CONFIG, tunnel=tunnel))
