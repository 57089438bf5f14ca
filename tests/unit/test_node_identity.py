"""The node id: chosen, derived or kept."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kersey_control.errors import InvalidInputError
from kersey_control.node_identity import node_id, read_machine_id

MACHINE = "0123456789abcdef0123456789abcdef"
HEX = re.compile("[0-9a-f]{32}")


def test_the_operators_choice_wins(tmp_path: Path) -> None:
    assert node_id("rack-7", machine_id=MACHINE, state_dir=tmp_path) == "rack-7"


def test_the_machines_id_gives_a_stable_id_that_does_not_show_it(tmp_path: Path) -> None:
    first = node_id("", machine_id=MACHINE, state_dir=tmp_path / "a")
    assert first == node_id("", machine_id=MACHINE, state_dir=tmp_path / "b")
    assert HEX.fullmatch(first)
    assert first != MACHINE
    assert first != node_id("", machine_id=MACHINE[::-1], state_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_without_a_machine_id_one_is_made_once_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = node_id("", machine_id=None, state_dir=state)
    assert HEX.fullmatch(first)
    assert node_id("", machine_id=None, state_dir=state) == first
    assert [entry.name for entry in state.iterdir()] == ["node-id"]
    assert node_id("", machine_id=None, state_dir=tmp_path / "other") != first


def test_simultaneous_starters_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: node_id("", machine_id=None, state_dir=tmp_path), range(8)))
    assert len(ids) == 1


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 32])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node-id"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="node-id"):
        node_id("", machine_id=None, state_dir=tmp_path)
    assert path.read_bytes() == content


def test_the_machines_own_id_is_well_formed_or_absent() -> None:
    found = read_machine_id()
    assert found is None or HEX.fullmatch(found)
