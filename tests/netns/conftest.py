"""Fixtures for tests of the slow path on one node, in a namespace per test."""

from collections.abc import Iterator

import pytest
from vxlan_lab import Lab, open_lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Give a test a namespace with an uplink, and a slow path that has done nothing yet."""
    with open_lab() as opened:
        yield opened


@pytest.fixture
def ready_lab(lab: Lab) -> Lab:
    """Give a test a slow path whose overlay device is up and has its address."""
    lab.ready()
    return lab
