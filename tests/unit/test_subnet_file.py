"""subnet.env: flannel's lines, whole or not at all, and tolerant reading."""

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from kersey_control.subnet_file import SubnetFile, read_subnet_file, write_subnet_file

CONTENT = SubnetFile(
    network=IPv4Network("10.5.0.0/16"),
    subnet=IPv4Network("10.5.12.0/24"),
    mtu=1450,
    ip_masq=True,
)


@pytest.fixture
def tight_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_the_lines_are_flannels(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    assert write_subnet_file(path, CONTENT)
    assert path.read_bytes() == (
        b"FLANNEL_NETWORK=10.5.0.0/16\n"
        b"FLANNEL_SUBNET=10.5.12.1/24\n"
        b"FLANNEL_MTU=1450\n"
        b"FLANNEL_IPMASQ=true\n"
    )


def test_a_dual_stack_node_has_the_v6_lines_between(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    content = replace(
        CONTENT,
        ip_masq=False,
        network_v6=IPv6Network("fd00::/56"),
        subnet_v6=IPv6Network("fd00:0:0:1::/64"),
    )
    write_subnet_file(path, content)
    assert path.read_text().splitlines() == [
        "FLANNEL_NETWORK=10.5.0.0/16",
        "FLANNEL_SUBNET=10.5.12.1/24",
        "FLANNEL_IPV6_NETWORK=fd00::/56",
        "FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64",
        "FLANNEL_MTU=1450",
        "FLANNEL_IPMASQ=false",
    ]


@pytest.mark.usefixtures("tight_umask")
def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "subnet.env"
    write_subnet_file(path, CONTENT)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert path.parent.parent.stat().st_mode & 0o777 == 0o755


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    write_subnet_file(tmp_path / "subnet.env", CONTENT)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_file(path, CONTENT)
    before = path.stat()
    assert not write_subnet_file(path, CONTENT)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", ["content", "mode", "missing"])
def test_a_file_that_differs_is_put_right(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_file(path, CONTENT)
    match damage:
        case "content":
            path.write_text("FLANNEL_MTU=9\n")
        case "mode":
            path.chmod(0o600)
        case "missing":
            path.unlink()
    assert write_subnet_file(path, CONTENT)
    assert path.read_text() == CONTENT.format()
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.mkdir()  # a file cannot be renamed over a directory
    with pytest.raises(OSError, match="subnet"):
        write_subnet_file(path, CONTENT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["subnet.env"]


def test_a_reader_never_sees_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    texts = {replace(CONTENT, mtu=mtu).format() for mtu in (1450, 8950)}
    write_subnet_file(path, CONTENT)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        write_subnet_file(path, replace(CONTENT, mtu=(1450, 8950)[turn % 2]))
    done.set()
    reader.join()
    assert seen
    assert seen <= texts


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_file(path, CONTENT)
    assert read_subnet_file(path) == CONTENT.subnet


@pytest.mark.parametrize(
    "text",
    [
        "FLANNEL_SUBNET=10.5.12.1/24",
        'FLANNEL_SUBNET="10.5.12.1/24"\n',
        "export FLANNEL_SUBNET='10.5.12.1/24' # ours\n",
        "# a comment\n\nnonsense\n  FLANNEL_SUBNET = 10.5.12.0/24 # ours\r\nX=1\n",
    ],
)
def test_shell_like_files_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(text)
    assert read_subnet_file(path) == CONTENT.subnet


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"FLANNEL_SUBNET=\n",
        b"FLANNEL_MTU=1450\n",
        b"FLANNEL_SUBNET=10.5.12.1/33\n",
        b"FLANNEL_SUBNET=10.5.12.1/24,10.5.13.1/24\n",
        b"FLANNEL_SUBNET=fd00::1/64\n",
        b"FLANNEL_SUBNET=\xff\n",
        b"\x00" * 100,
    ],
)
def test_an_unusable_file_is_no_subnet_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(text)
    assert read_subnet_file(path) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_missing_file_is_no_subnet_and_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_subnet_file(tmp_path / "subnet.env") is None
    assert not caplog.records
