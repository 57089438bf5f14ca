"""The Debian package: what is in it, its service, and what it does to a system and takes back."""

import gzip
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from debian_package import Package, build
from guides import dead_links
from kersey_control import __version__
from kersey_control.cni import CniConfig
from kersey_control.flags import flags_of
from kersey_control.options import CniMode, Options, parse_options
from manifests import DEPLOY, granted_capabilities
from overlay_view import ready
from testbed import Cluster, ping

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="missing: root"),
    pytest.mark.timeout(400),  # the first builds the package
]

REPOSITORY = DEPLOY.parent
PARTS = DEPLOY / "package"
CONF_FILE = Path("etc/default/kersey")


def control(package: Package, field: str) -> str:
    shown = subprocess.run(
        ["dpkg-deb", "--field", package.path, field], capture_output=True, text=True, check=True
    )
    return shown.stdout.strip()


def parts(package: Path, which: str) -> bytes:
    return subprocess.run(["dpkg-deb", which, package], capture_output=True, check=True).stdout


def as_installed(package: Package, *command: str) -> list[str]:
    """Return a command that sees the package's files in their places, over those of the machine."""
    mount = f"mount -t overlay -o lowerdir={package.tree}/usr:/usr overlay /usr"
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]


def test_version_architecture_and_python_are_those_of_the_build(package: Package) -> None:
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert package.path.name == f"kersey_{__version__}_{architecture}.deb"
    assert control(package, "Version") == __version__
    assert control(package, "Architecture") == architecture
    # Compiled modules in it are for one Python alone.
    python = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info[1])"],
        capture_output=True,
        text=True,
        check=True,
    )
    minor = int(python.stdout)
    depends = control(package, "Depends")
    assert f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})" in depends
    modules = list(package.tree.rglob("*.cpython-*.so"))
    assert modules
    assert all(f"cpython-3{minor}-" in module.name for module in modules)


def test_another_build_differs_by_its_revision_alone(package: Package, tmp_path: Path) -> None:
    other = build(tmp_path, "--revision", "2", cwd=tmp_path)
    assert other.name == package.path.name.replace(__version__, f"{__version__}-2")
    assert parts(other, "--fsys-tarfile") == parts(package.path, "--fsys-tarfile")
    fields = parts(other, "--field").replace(f"{__version__}-2".encode(), __version__.encode())
    assert fields == parts(package.path, "--field")


def test_every_file_is_accounted_for_and_belongs_to_root(package: Package, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--control", package.path, tmp_path], check=True)
    lines = (tmp_path / "md5sums").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    files = [path for path in package.tree.rglob("*") if path.is_file()]
    found = {str(path.relative_to(package.tree)): path for path in files}
    assert found.keys() == {*sums, str(CONF_FILE)}
    for name, digest in sums.items():
        assert hashlib.md5(found[name].read_bytes(), usedforsecurity=False).hexdigest() == digest
    assert (tmp_path / "conffiles").read_text() == f"/{CONF_FILE}\n"
    for path in files:
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7022) == (0, 0, 0), path


def test_nothing_in_it_names_the_place_where_it_was_built(package: Package) -> None:
    places = [str(package.path.parent).encode(), str(DEPLOY.parent).encode(), b"/tmp/tmp."]
    for path in package.tree.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(place in content for place in places), path


def test_bytecode_of_every_module_is_there_and_never_compared_with_its_source(
    package: Package,
) -> None:
    library = package.tree / "usr" / "lib" / "kersey"
    for source in library.rglob("*.py"):
        (compiled,) = source.parent.glob(f"__pycache__/{source.stem}.cpython-*.pyc")
        assert compiled.read_bytes()[4:8] == b"\1\0\0\0", compiled  # PEP 552: unchecked hash


def test_every_package_in_it_has_its_licence(package: Package) -> None:
    text = (package.tree / "usr/share/doc/kersey/copyright").read_text()
    library = package.tree / "usr" / "lib" / "kersey"
    bundled = [path for path in library.glob("*.dist-info") if not path.name.startswith("kersey-")]
    assert len(bundled) >= 7
    for metadata in bundled:
        name = re.search("^Name: (.*)$", (metadata / "METADATA").read_text(), re.MULTILINE)
        assert name is not None
        assert f"({name[1]} " in text
    texts = re.findall("^  (/.*)$", text, re.MULTILINE)
    assert len(texts) >= len(bundled)
    assert all((package.tree / each.lstrip("/")).is_file() for each in texts)


def test_the_guides_links_lead_to_files_of_the_package(package: Package) -> None:
    folder = package.tree / "usr/share/doc/kersey"
    guides = list(folder.glob("*.md"))
    assert [link for guide in guides for link in dead_links(guide)] == []
    wanted = {path.name for path in (REPOSITORY / "docs").glob("*.md")}
    assert wanted < {guide.name for guide in guides}
    changelog = gzip.decompress((folder / "changelog.gz").read_bytes()).decode()
    assert "](docs/" not in changelog


def test_what_the_guides_say_of_rules_and_dashboard_is_beside_them(package: Package) -> None:
    folder = package.tree / "usr/share/doc/kersey"
    page = (folder / "OPERATIONS.md").read_text()
    for name in ("kersey.rules.yml", "kersey.json"):
        assert f"`examples/{name}`" in page
        assert (folder / "examples" / name).is_file()
    rules = (folder / "examples" / "kersey.rules.yml").read_text()
    places = set(re.findall(r"(\S+)#kersey", rules))
    assert places == {"/usr/share/doc/kersey/OPERATIONS.md"}


def test_the_licence_it_names_is_the_one_of_the_repository(package: Package) -> None:
    text = (package.tree / "usr/share/doc/kersey/copyright").read_text()
    (name,) = re.findall(r"^License: (.*)$", text.split("\n\n")[1], re.MULTILINE)
    assert f'\nlicense = "{name}"\n' in (REPOSITORY / "pyproject.toml").read_text()
    licence = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in licence
    (brought,) = package.tree.glob("usr/lib/kersey/kersey-*.dist-info/licenses/LICENSE")
    assert brought.read_text() == licence


@pytest.mark.parametrize("command", ["kersey version", "kerseyd --version"])
def test_the_programs_run_with_what_the_package_brings_alone(
    package: Package, tmp_path: Path, command: str
) -> None:
    # A module of the same name in the working directory, or told by PYTHONPATH, is not taken.
    (tmp_path / "kersey_control.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        as_installed(package, *command.split()),
        cwd=tmp_path,
        env={"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"kersey {__version__}\n"), done.stderr


def test_manual_pages_and_completions_cover_every_command_and_flag(package: Package) -> None:
    share = package.tree / "usr" / "share"
    for page, words in (
        ("man1/kersey.1.gz", ["flush flows", "trace SRC DST", "\\-\\-cni\\-conf\\-dir PATH"]),
        ("man8/kerseyd.8.gz", ["\\-\\-iface\\-can\\-reach IP", "/etc/default/kersey"]),
    ):
        text = subprocess.run(
            ["zcat", share / "man" / page], capture_output=True, text=True, check=True
        ).stdout
        assert all(word in text for word in words), page
    for name, mark in (
        ("bash-completion/completions/kersey", "complete -o filenames -F _kersey kersey"),
        ("zsh/vendor-completions/_kersey", "#compdef kersey"),
        ("fish/vendor_completions.d/kersey.fish", "complete -c kersey"),
    ):
        assert mark in (share / name).read_text(), name


def test_systemd_finds_nothing_wrong_with_the_units(
    package: Package, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("systemd-analyze")
    (tmp_path / "pod").touch(mode=0o755)
    units = [tmp_path / "kersey.service", tmp_path / "kersey-pod@.service"]
    shutil.copy(package.tree / "lib/systemd/system/kersey.service", units[0])
    shutil.copy(DEPLOY / "vagrant" / "kersey-pod@.service", units[1])
    mount = f"mount --bind {tmp_path} /usr/local/sbin"
    verify = f"systemd-analyze verify --man=no {shlex.join(map(str, units))}"
    done = subprocess.run(
        as_installed(package, "sh", "-c", f"{mount} && {verify}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_has_no_more_rights_than_the_container_without_privileges(
    package: Package,
) -> None:
    unit = (package.tree / "lib/systemd/system/kersey.service").read_text()
    held = re.findall("^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert sorted(" ".join(held).split()) == sorted(
        f"CAP_{name}" for name in granted_capabilities()
    )


def test_the_options_file_holds_variables_that_the_daemon_reads(package: Package) -> None:
    lines = (package.tree / CONF_FILE).read_text().splitlines()
    given = dict(
        line.removeprefix("#").split("=", 1) for line in lines if re.match("#?[A-Z_]+=", line)
    )
    assert len(given) > 5
    known = {name for flag in flags_of(Options) for name in flag.variables}
    assert given.keys() <= known
    parse_options([], given)


def test_the_service_holds_up_no_kubelet_whose_pods_it_may_wait_for() -> None:
    assert "Before=" not in (PARTS / "kersey.service").read_text()


OPTIONS = """\
# A password that no shell can read
FLANNELD_ETCD_PASSWORD=it's $(touch
KERSEY_CNI_CONF_DIR="/mnt/other one"
KERSEY_CACHE_DIR=/mnt/cache
"""


@contextmanager
def stubs(folder: Path, *names: str, refused: str) -> Iterator[Path]:
    """Make programs that write down how they were called, and refuse one word; yield where."""
    calls = folder / "calls"
    calls.touch()
    for name in names:
        refusal = f'case " $* " in *" {refused} "*) exit 1 ;; esac'
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\n{refusal}\n')
        (folder / name).chmod(0o755)
    yield calls


def maintain(
    folder: Path,
    script: str,
    *arguments: str,
    there: str = "/run/kersey",
    refused: str = "-",
    conflist: str = "",
    cache: Sequence[str] = ("programs-vxlan.json",),
) -> list[str]:
    """Run a maintainer script where systemd seems to run; return what it called."""
    names = ("systemctl", "deb-systemd-helper", "kersey", "policy-rc.d")
    policy = "/usr/sbin/policy-rc.d"
    with stubs(folder, *names, refused=refused) as calls:
        setting = f"""
            set -e
            mount -t tmpfs tmpfs /run
            mkdir -p /run/systemd/system {there}
            mount -t tmpfs tmpfs /etc/default
            printf %s {shlex.quote(OPTIONS)} >/etc/default/kersey
            mount -t tmpfs tmpfs /mnt
            mkdir "/mnt/other one"
            mkdir /mnt/cache
            cd /mnt/cache
            touch {shlex.join(cache)}
            printf %s {shlex.quote(conflist)} >"/mnt/other one/10-kersey.conflist"
            [ ! -e {policy} ] || mount --bind {folder}/policy-rc.d {policy}
            cd /
            {shlex.join([str(PARTS / script), *arguments])}
            ls -d /mnt/cache /mnt/cache/* >{folder}/left || true
        """
        environ = {"PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"}
        command = ["unshare", "--mount", "--net", "sh", "-c", setting]
        subprocess.run(command, check=True, env=environ)
        return [line for line in calls.read_text().splitlines() if "policy" not in line]


def test_an_upgrade_stops_nothing_and_restarts_without_waiting(tmp_path: Path) -> None:
    assert maintain(tmp_path, "prerm", "upgrade", "0.2.0") == []
    called = maintain(tmp_path, "postinst", "configure", "0.1.0")
    acts = [call for call in called if call.startswith("systemctl") and "is-" not in call]
    assert acts == [
        "systemctl --system daemon-reload",
        "systemctl --no-block restart kersey.service",
    ]


def test_a_removal_stops_the_daemon_then_cleans_up_what_it_was_told_to_write(
    tmp_path: Path,
) -> None:
    assert maintain(tmp_path, "prerm", "remove") == [
        "systemctl stop kersey.service",
        "kersey cleanup --cni-conf-dir=/mnt/other one",
    ]


def test_a_removal_leaves_flannel_alone_where_no_daemon_has_run(tmp_path: Path) -> None:
    called = maintain(tmp_path, "prerm", "remove", there="/run/flannel")
    assert called == ["systemctl stop kersey.service"]
    assert (tmp_path / "left").read_text() == ""


def test_a_removal_leaves_files_of_others_beside_compiled_programs(tmp_path: Path) -> None:
    files = ("programs-udp.json", "programs-udp.json.4711", "others")
    maintain(tmp_path, "prerm", "remove", there="/run/flannel", cache=files)
    assert (tmp_path / "left").read_text().split() == ["/mnt/cache", "/mnt/cache/others"]


def test_a_removal_takes_back_what_a_daemon_before_the_last_boot_left(tmp_path: Path) -> None:
    ours = CniConfig(
        name="cbr0",
        network=IPv4Network("10.244.0.0/16"),
        subnet=IPv4Network("10.244.7.0/24"),
        mtu=1450,
        mode=CniMode.BRIDGE,
    )
    called = maintain(tmp_path, "prerm", "remove", there="/run/flannel", conflist=ours.format())
    assert called[-1] == "kersey cleanup --cni-conf-dir=/mnt/other one"


@pytest.mark.parametrize("refused", ["is-enabled", "restart", "try-restart"])
def test_an_installation_ends_well_whatever_systemd_refuses(tmp_path: Path, refused: str) -> None:
    assert maintain(tmp_path, "postinst", "configure", refused=refused)


def test_a_masked_service_stays_off(tmp_path: Path) -> None:
    called = maintain(tmp_path, "postinst", "configure", refused="kersey.service")
    assert called[-1] == "systemctl --no-block try-restart kersey.service"


def test_installed_removed_and_purged_it_leaves_nothing(package: Package, tmp_path: Path) -> None:
    root = tmp_path / "root"
    state = root / "var/lib/dpkg"
    for folder in ("updates", "info", "triggers"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()

    def dpkg(*arguments: str | Path) -> None:
        options = (
            f"--root={root}",
            "--force-script-chrootless",
            "--force-depends",
            "--log=/dev/null",
        )
        done = subprocess.run(
            ["dpkg", *options, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def left() -> set[str]:
        found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
        return {name for name in found if not name.startswith("var/lib/dpkg/")}

    dpkg("--install", package.path)
    wants = "etc/systemd/system/multi-user.target.wants/kersey.service"
    assert (root / wants).is_symlink()
    assert "usr/sbin/kerseyd" in left()
    dpkg("--remove", "kersey")
    assert {name for name in left() if not name.startswith(("etc/systemd", "var/lib/systemd"))} == {
        str(CONF_FILE)
    }
    dpkg("--purge", "kersey")
    assert left() == set()


def test_the_installed_daemon_carries_pods_packets_by_its_own_programs(
    package: Package, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.kerseyd = tmp_path / "kerseyd"
    command = shlex.join(as_installed(package, "/usr/sbin/kerseyd"))
    cluster.kerseyd.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    cluster.kerseyd.chmod(0o755)
    ready(cluster, "--datapath=bpf", "--cache-dir=", nodes=2)
    one, two = cluster.nodes
    assert "mode=bpf" in one.daemon.log.read_text()
    assert ping(one.pods[0].namespace, two.pods[0].address, timeout=5) is not None
