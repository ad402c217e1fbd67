"""Fixtures of tests of an operator's commands."""

from __future__ import annotations

import pytest

from tests.cluster import Cluster, MakeCluster
from tests.cluster.operating import BY_HAND, url_of
from tests.cluster.test_up import data, up
from tests.postgres import run_sql

__all__ = ["by_hand", "data", "up"]


@pytest.fixture(scope="module")
def _by_hand(share_cluster: MakeCluster) -> Cluster:
    return share_cluster(config=BY_HAND)


@pytest.fixture
def by_hand(_by_hand: Cluster) -> Cluster:
    """Three nodes that run, without a file, and nobody who repairs. A test may do to it what it likes but forget."""
    for i, node in enumerate(_by_hand.nodes):
        if not node.alive:
            _by_hand.start_node(i)
        for name in ("data", "quarantine"):
            for path in (_by_hand.node_folder(i) / name).rglob("*.*"):
                path.unlink()
    run_sql(url_of(_by_hand), "TRUNCATE file, slice, trash, trash_slice, damage CASCADE")
    run_sql(url_of(_by_hand), "UPDATE node SET state = 'active'")
    return _by_hand
