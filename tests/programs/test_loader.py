"""The loader: what is adopted, what is made anew, and how failures come out."""

import base64
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import packets as p
import pytest
from bpf_lab import NETWORK, OWN, PEER, PEER_NODE, PEER_VTEP, VTEP, private_bpffs, private_network
from kersey_loader import layout, pins, source, tcx
from kersey_loader.attach import Attachment, Direction, FilterHooks, Hooks
from kersey_loader.bpf import Map, map_info, pin
from kersey_loader.bpffs import ensure_bpffs, is_bpffs
from kersey_loader.datapath import Datapath, DatapathConfig, PeerEntry, Settings, load
from kersey_loader.errors import AttachError, CompileError, LoaderError, VerifierError
from kersey_loader.layout import MapSpec, MapType, Program
from kersey_loader.probe import probe
from kersey_loader.remove import remove_kept
from kersey_loader.tunnel import TunnelKind, VxlanTunnel
from testbed.waiting import wait_until

CONFIG = DatapathConfig(
    uplink=1,
    node=IPv4Address("198.18.0.1"),
    subnet=OWN,
    mtu=1450,
    pod_mtu=1450,
    tunnel=VxlanTunnel(vni=1, port=8472, mac=p.mac(VTEP)),
)
ENTRY = PeerEntry(PEER, IPv4Address(PEER_NODE), p.mac(PEER_VTEP))


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    found = probe(tmp_path)
    if not found.available:
        pytest.skip(f"missing: {'; '.join(found.missing)}")
    with private_network(), private_bpffs(tmp_path):
        yield Settings(tmp_path, network=NETWORK, subnet_len=24)


def map_ids(loaded: Datapath) -> dict[str, int]:
    return {name: map_info(map_.fd).id for name, map_ in loaded.maps.items()}


def program_ids(loaded: Datapath) -> list[int]:
    return [loaded.program_info(program).id for program in Program]


def test_second_load_adopts_maps_programs_and_their_contents(settings: Settings) -> None:
    with load(settings) as first:
        assert not first.adopted
        first.configure(CONFIG)
        first.put_peer(ENTRY)
        kept = map_ids(first), program_ids(first), first.generation
    with load(settings) as second:
        assert second.adopted
        assert (map_ids(second), program_ids(second), second.generation) == kept
        assert list(second.traffic()) == [PEER]
        second.configure(CONFIG)
        second.replace_peers([ENTRY])
        assert second.generation == kept[2]


def test_other_layout_makes_new_maps_and_programs_beside_the_old(settings: Settings) -> None:
    with load(settings) as old, load(replace(settings, max_flows=1024)) as new:
        assert not new.adopted
        assert not set(map_ids(old).values()) & set(map_ids(new).values())
        assert not set(program_ids(old)) & set(program_ids(new))
        assert len(list(settings.directory.glob("*-*"))) == 4
        assert len(new.retire_old()) == 2
    with load(replace(settings, max_flows=1024)) as again:
        assert again.adopted


def test_another_network_never_gets_the_subnet_numbers_of_the_former(settings: Settings) -> None:
    other = replace(settings, network=IPv4Network("10.99.0.0/16"))
    assert other.subnets == settings.subnets
    with load(settings) as old, load(other) as new:
        assert not new.adopted
        assert not set(map_ids(old).values()) & set(map_ids(new).values())


def test_pinned_map_of_another_shape_is_not_adopted(settings: Settings) -> None:
    with load(settings) as loaded:
        before = map_ids(loaded)
    (home,) = settings.directory.glob("maps-*")
    (home / "flows").unlink()
    wrong = MapSpec("flows", MapType.HASH, 4, 4, 1)
    with Map.create(wrong) as map_:
        pin(map_.fd, home / "flows")
    with load(settings) as loaded:
        assert not loaded.adopted
        after = map_ids(loaded)
        assert {name for name in after if after[name] != before[name]} == {"flows"}
        assert map_info(loaded.maps["flows"].fd).type == MapType.LRU_HASH


def changed_source(scratch: Path, name: str, old: str, new: str) -> Path:
    """Return a copy of the C files with one change."""
    copy = scratch / "source"
    shutil.copytree(source.bpf_directory(), copy)
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new, 1))
    return copy


def compile_copy(settings: Settings, directory: Path) -> None:
    ensure_bpffs(settings.directory)
    specs = layout.map_specs(subnets=256, peers=256, flows=64, ports=8)
    home, maps, _ = pins.open_maps(
        settings.directory, specs, tunnel=settings.tunnel, network=settings.network
    )
    pins.open_programs(
        settings.directory,
        text=source.program_text(directory, settings.tunnel),
        headers=source.bpf_directory() / "headers",
        map_home=home,
        maps=maps,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("flow.h", "struct flow_key *key", "struct nonsense *key"), "flow.h:"),
        (("types.h", "u64 max_age; ", "u32 max_age; "), "layout.py: "),
        (("types.h", "u32 egress_port;", "u32 other_port;"), "egress_port"),
        (("verdict.h", "VERDICT_VLAN,", "VERDICT_VLAN, VERDICT_NEW,"), "VERDICT_TRUNCATED == 6"),
        (("types.h", "ADMISSION_STRICT = 1", "ADMISSION_STRICT = 4"), "ADMISSION_STRICT == 1"),
    ],
)
def test_compile_error_comes_out_whole_and_leaves_no_pins(
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
    change: tuple[str, str, str],
    said: str,
) -> None:
    copy = changed_source(tmp_path_factory.mktemp("changed"), *change)
    with pytest.raises(CompileError) as caught:
        compile_copy(settings, copy)
    assert said in caught.value.log
    assert "error" in caught.value.log
    assert not list(settings.directory.glob("programs-*"))


def test_verifier_log_comes_out_whole_and_leaves_no_pins(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check = "if ((const void *)(udp + 1) > end)\n\t\treturn VERDICT_TRUNCATED;\n"
    copy = changed_source(tmp_path_factory.mktemp("changed"), "lib/parse.h", check, "")
    with pytest.raises(VerifierError) as caught:
        compile_copy(settings, copy)
    assert "invalid access to packet" in caught.value.log
    assert not list(settings.directory.glob("programs-*"))


@pytest.mark.parametrize("tunnel", TunnelKind)
def test_programs_compile_without_a_remark(
    settings: Settings, caplog: pytest.LogCaptureFixture, tunnel: TunnelKind
) -> None:
    with caplog.at_level("INFO"), load(replace(settings, tunnel=tunnel)):
        pass
    assert [record.message for record in caplog.records] == ["compiled and pinned programs"]


def programs_of(loaded: Datapath) -> dict[str, tuple[int, set[str]]]:
    """Return how long each program is for the verifier, and which maps it works on."""
    infos = {program.function: loaded.program_info(program) for program in Program}
    names = {id_: name for name, id_ in map_ids(loaded).items()}
    return {
        name: (info.verified_instructions, {names[id_] for id_ in info.map_ids})
        for name, info in infos.items()
    }


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.message for record in caplog.records]
    caplog.clear()
    return found


COMPILED, KEPT = "compiled and pinned programs", "pinned programs compiled earlier"


@pytest.fixture
def cached(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Give a test settings with a place for compiled programs that is not there yet."""
    return replace(settings, cache=tmp_path_factory.mktemp("var") / "cache" / "kersey")


def kept_file(cached: Settings) -> Path:
    assert cached.cache is not None
    (found,) = cached.cache.iterdir()
    return found


@pytest.mark.parametrize("tunnel", TunnelKind)
def test_compiled_programs_are_kept_and_are_the_same(
    cached: Settings,
    caplog: pytest.LogCaptureFixture,
    tunnel: TunnelKind,
) -> None:
    first = replace(cached, tunnel=tunnel)
    later = replace(first, directory=cached.directory / "later", network=IPv4Network("10.9.0.0/16"))
    with caplog.at_level("INFO"), load(first) as compiled:
        assert messages(caplog) == [COMPILED]
        with load(later) as kept:
            assert messages(caplog) == [KEPT]
            assert not kept.adopted
            assert programs_of(kept) == programs_of(compiled)
            assert not set(map_ids(kept).values()) & set(map_ids(compiled).values())
    assert cached.cache is not None
    assert [path.name for path in cached.cache.iterdir()] == [f"programs-{tunnel}.json"]


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-100])


def put(path: Path, kept: object) -> None:
    """Have the file say it, with the sum."""
    text = json.dumps(kept)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the file says, the sum included."""
    kept = json.loads(path.read_text().partition("\n")[2])
    change(kept)
    put(path, kept)


def end_without_a_verdict(kept: dict[str, Any]) -> None:
    """Give the first program an end without a verdict, which no verifier lets pass."""
    kept["programs"]["from_pod"] = base64.b64encode(bytes([0x95, *bytes(7)])).decode()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "its sum is wrong", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff"), "UnicodeDecodeError", id="no text"),
        pytest.param(cut, "its sum is wrong", id="cut"),
        pytest.param(lambda path: put(path, []), "TypeError", id="no object"),
        pytest.param(lambda path: put(path, {}), "KeyError('of')", id="empty object"),
        pytest.param(
            lambda path: path.write_text(path.read_text().replace("AAAA", "AAAB", 1)),
            "its sum is wrong",
            id="a flipped bit",
        ),
        pytest.param(
            lambda path: change(path, lambda kept: kept["maps"].pop()), "IndexError", id="map"
        ),
        pytest.param(
            lambda path: change(path, lambda kept: kept["programs"].pop("to_pod")),
            "KeyError('to_pod')",
            id="program",
        ),
        pytest.param(
            lambda path: change(path, lambda kept: kept["programs"].pop("wire")),
            "KeyError('wire')",
            id="XDP program",
        ),
        pytest.param(
            lambda path: change(path, lambda kept: kept["programs"].update(wire="GBEA")),
            "error(",
            id="half an instruction",
        ),
        pytest.param(
            lambda path: change(path, end_without_a_verdict), "from_pod is refused", id="verifier"
        ),
        pytest.param(lambda path: os.chown(path, 65534, -1), "somebody else", id="owner"),
        pytest.param(lambda path: path.chmod(0o620), "somebody else", id="group may write"),
    ],
)
def test_kept_programs_that_are_of_no_use_are_compiled_and_kept_anew(
    cached: Settings, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object], said: str
) -> None:
    with caplog.at_level("INFO"):
        load(cached).close()
        good = kept_file(cached).read_text()
        spoil(kept_file(cached))
        caplog.clear()
        load(replace(cached, directory=cached.directory / "later")).close()
    (remark,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"{kept_file(cached)} is of no use" in vars(remark)["output"]
    assert said in vars(remark)["output"]
    assert messages(caplog)[-1] == COMPILED
    assert kept_file(cached).read_text() == good
    assert kept_file(cached).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("file", ["flow.h", "headers/include/linux/version.h"])
def test_kept_programs_of_another_text_are_replaced(
    cached: Settings,
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    copy = changed_source(tmp_path_factory.mktemp("changed"), file, "/*", "/* Changed.")
    with caplog.at_level("INFO"):
        load(cached).close()
        former = kept_file(cached).read_text()
        monkeypatch.setattr(source, "bpf_directory", lambda: copy)
        load(replace(cached, directory=cached.directory / "later")).close()
        assert messages(caplog) == [COMPILED, COMPILED]
        assert kept_file(cached).read_text() != former
        load(replace(cached, directory=cached.directory / "again")).close()
        assert messages(caplog) == [KEPT]


def no_folder(cache: Path) -> None:
    cache.write_text("a file")


def full_disk(cache: Path) -> None:
    cache.mkdir()
    options = ["-t", "tmpfs", "-o", "size=8k"]
    subprocess.run(["mount", *options, "tmpfs", str(cache)], check=True)


@pytest.mark.parametrize("spoil", [no_folder, full_disk])
def test_programs_that_cannot_be_kept_are_loaded_all_the_same(
    cached: Settings, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    assert cached.cache is not None
    cached.cache.parent.mkdir()
    spoil(cached.cache)
    try:
        with caplog.at_level("INFO"):
            load(cached).close()
        assert cached.cache.is_file() or list(cached.cache.iterdir()) == []
    finally:
        subprocess.run(["umount", cached.cache], check=False, capture_output=True)
    (remark,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "the compiled programs are not kept" in vars(remark)["output"]
    assert messages(caplog)[-1] == COMPILED


def test_programs_of_another_compiler_are_compiled_anew(
    cached: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def another(kept: dict[str, Any]) -> None:
        name, size, changed_at = kept["of"][-1]
        assert "libclang" in json.dumps(kept["of"])
        kept["of"][-1] = [name, size, changed_at - 1]

    with caplog.at_level("INFO"):
        load(cached).close()
        change(kept_file(cached), another)
        load(replace(cached, directory=cached.directory / "later")).close()
    assert messages(caplog) == [COMPILED, COMPILED]


def test_only_files_of_compiled_programs_are_removed(cached: Settings) -> None:
    assert cached.cache is not None
    assert remove_kept(cached.cache) == 0
    load(cached).close()
    for name in ("programs-udp.json.4711", "others"):
        (cached.cache / name).touch()
    assert remove_kept(cached.cache) == 2
    assert kept_file(cached).name == "others"


def link(line: str) -> None:
    subprocess.run(["ip", "link", *line.split()], check=True, capture_output=True)


def ifindex(name: str) -> int:
    shown = subprocess.run(
        ["ip", "-o", "link", "show", name], check=True, capture_output=True, text=True
    )
    return int(shown.stdout.split(":", 1)[0])


def test_pod_port_is_attached_both_ways_and_again_without_harm(settings: Settings) -> None:
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    with load(settings) as loaded:
        loaded.put_pod_port(port)
        loaded.put_pod_port(port)
        assert loaded.pod_ports() == {port}
        found = {(a.direction.name, a.program) for a in loaded.attachments()}
        assert found == {("INGRESS", "from_pod"), ("EGRESS", "to_pod")}
        assert len(loaded.attachments()) == 2
        loaded.remove_pod_port(port)
        assert loaded.attachments() == ()
        assert loaded.pod_ports() == frozenset()


def test_deleted_device_is_no_pod_port_any_more_without_our_doing(settings: Settings) -> None:
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    with load(settings) as loaded:
        loaded.put_pod_port(port)
        link("del v0")
        assert loaded.pod_ports() == frozenset()
        loaded.remove_pod_port(port)
        with pytest.raises(AttachError, match=str(port)):
            loaded.put_pod_port(port)


@pytest.fixture(params=["tcx", "filter"])
def hooks(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Hooks]:
    """Give a test each way to have programs on devices."""
    filters = FilterHooks(1)
    made: Hooks = filters
    if request.param == "tcx":
        if not tcx.is_supported():
            pytest.skip("the kernel has no TCX (6.6)")
        settings.directory.mkdir(exist_ok=True)
        made = tcx.TcxHooks(settings.directory / "links", filters)
    yield made
    made.close()


def test_program_is_replaced_in_its_place_and_attached_once(
    settings: Settings, hooks: Hooks
) -> None:
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    with load(settings) as loaded:
        for program in (Program.FROM_UPLINK, Program.FROM_POD, Program.FROM_POD):
            fd = loaded.program_fd(program)
            hooks.attach(port, Direction.INGRESS, program=program.function, fd=fd)
        assert hooks.attached(port) == (Attachment(port, Direction.INGRESS, "from_pod"),)
        hooks.detach(port, Direction.INGRESS)
        hooks.detach(port, Direction.INGRESS)
        assert hooks.all_attached() == ()


def test_device_that_went_is_forgotten_and_cannot_be_attached_to(
    settings: Settings, hooks: Hooks
) -> None:
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    with load(settings) as loaded:
        fd = loaded.program_fd(Program.FROM_POD)
        hooks.attach(port, Direction.INGRESS, program="from_pod", fd=fd)
        link("del v0")
        assert hooks.all_attached() == ()
        with pytest.raises(AttachError, match=f"device {port}"):
            hooks.attach(port, Direction.INGRESS, program="from_pod", fd=fd)


def test_links_take_the_place_of_an_older_versions_filters(settings: Settings) -> None:
    if not tcx.is_supported():
        pytest.skip("the kernel has no TCX (6.6)")
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    with load(settings) as loaded, FilterHooks(settings.handle) as filters:
        fd = loaded.program_fd(Program.FROM_UPLINK)
        filters.attach(port, Direction.INGRESS, program="from_uplink", fd=fd)
        loaded.attach_uplink(port, direct=False)
        assert filters.attached(port) == ()
        assert len(loaded.attachments()) == 1


def test_filter_of_another_and_of_another_network_stay(settings: Settings) -> None:
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    match = "filter add dev v0 ingress prio 1 protocol ip u32 match u32 0 0 flowid 1:1"
    with load(settings) as loaded, FilterHooks(1) as mine, FilterHooks(7) as other:
        fd = loaded.program_fd(Program.FROM_UPLINK)
        for each in (mine, other):
            each.attach(port, Direction.INGRESS, program="from_uplink", fd=fd)
        subprocess.run(["tc", *match.split()], check=True)
        assert len(mine.all_attached()) == len(other.all_attached()) == 1
        mine.detach(port, Direction.INGRESS)
        assert mine.all_attached() == ()
        assert len(other.all_attached()) == 1
        listed = subprocess.run(
            ["tc", "filter", "show", "dev", "v0", "ingress"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert "u32" in listed.stdout


def test_links_of_another_network_stay(settings: Settings) -> None:
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    theirs = replace(settings, directory=settings.directory / "theirs", handle=7)
    with load(settings) as mine, load(theirs) as other:
        mine.attach_uplink(port, direct=False)
        other.attach_uplink(port, direct=False)
        assert len(mine.attachments()) == len(other.attachments()) == 1
        mine.remove_pod_port(port)
        assert mine.attachments() == ()
        assert len(other.attachments()) == 1


def test_programs_are_attached_again_after_somebody_removed_their_pins(settings: Settings) -> None:
    link("add v0 type veth peer name v1")
    port = ifindex("v0")
    with load(settings) as loaded:
        loaded.attach_uplink(port, direct=False)
        shutil.rmtree(settings.directory / "links")
        assert loaded.attachments() == ()

        def is_attached_again() -> bool:
            try:
                loaded.attach_uplink(port, direct=False)
            except AttachError as error:  # the kernel frees a link some time after its last pin
                if "File exists" not in str(error):
                    raise
                return False
            return True

        wait_until(is_attached_again, timeout=10, what="the former link is gone")
        assert len(loaded.attachments()) == 1


def test_subnet_of_another_size_or_network_is_refused(settings: Settings) -> None:
    with load(settings) as loaded:
        loaded.configure(CONFIG)
        for subnet in ("10.244.2.0/25", "10.245.2.0/24"):
            with pytest.raises(LoaderError, match=subnet):
                loaded.put_peer(replace(ENTRY, subnet=IPv4Network(subnet)))


def test_probe_names_each_thing_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe(tmp_path).missing == ()
    monkeypatch.setattr("kersey_loader.probe.INTERPRETER", str(tmp_path / "python"))
    monkeypatch.setattr("platform.release", lambda: "5.10.0-8-amd64")
    found = probe(tmp_path)
    assert not found.available
    assert [reason.split()[0] for reason in found.missing] == ["kernel", str(tmp_path / "python")]


def test_bpffs_is_mounted_where_there_is_none(tmp_path: Path) -> None:
    inner = tmp_path / "kersey"
    with private_bpffs(inner):
        assert not is_bpffs(inner)
        ensure_bpffs(inner)
        ensure_bpffs(inner)
        assert is_bpffs(inner)
        mounts = Path("/proc/self/mounts").read_text()
        assert mounts.count(os.fspath(inner)) == 1


def test_structs_are_as_large_as_the_maps_say() -> None:
    assert {name: ctypes.sizeof(struct) for name, struct in layout.STRUCTS.items()} == {
        "config": 88,
        "peer": 128,
        "flow_key": 16,
        "flow": 48,
        "sighting": 16,
        "endpoint": 24,
        "traffic": 64,
        "watch": 48,
        "budget": 16,
        "event": 40,
    }


@pytest.mark.parametrize("tunnel", TunnelKind)
def test_programs_stay_far_below_the_limit_of_any_kernel_that_can_run_them(
    settings: Settings, tunnel: TunnelKind
) -> None:
    # A million verified instructions since 5.2; 131,072 before. Other compilers need some room.
    with load(replace(settings, tunnel=tunnel)) as loaded:
        for program in Program:
            assert 0 < loaded.program_info(program).verified_instructions < 131_072 // 4
