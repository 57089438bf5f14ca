"""Fixtures of the program tests: one loaded datapath for all, clean for each test."""

from collections.abc import Iterator

import pytest
from bpf_lab import Lab, open_lab
from kersey_loader.probe import probe
from wires import VXLAN_WIRE


@pytest.fixture(scope="module")
def loaded_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """Load the programs once for a module; only `lab` gives them out.

    A module that wants another tunnel's parametrises this with a Wire. Not for the session: the
    whole process is in the lab's network namespace meanwhile.
    """
    directory = tmp_path_factory.mktemp("bpf")
    found = probe(directory)
    if not found.available:
        pytest.skip(f"missing: {'; '.join(found.missing)}")
    with open_lab(directory, getattr(request, "param", VXLAN_WIRE)) as opened:
        yield opened


@pytest.fixture
def lab(loaded_lab: Lab) -> Lab:
    """Give a test the node with its peers and ports, and no flow known."""
    loaded_lab.reset()
    return loaded_lab
