"""Networks for the whole-system tests."""

import pytest
from overlay_view import ready
from testbed import Cluster


@pytest.fixture
def network(cluster: Cluster) -> Cluster:
    """Give a test two nodes with one pod each, ready, masquerading as most users have it."""
    return ready(cluster, "--ip-masq", nodes=2)


@pytest.fixture(scope="module")
def shared_network(module_cluster: Cluster) -> Cluster:
    """Give a module's tests that leave no trace one such network."""
    return ready(module_cluster, "--ip-masq", nodes=2)
