"""Tests with real processes, and the harness that starts them: ``from tests.cluster import Cluster``."""

from tests.cluster.harness import Answer, Cluster, MakeCluster, Process, wait_until

__all__ = ["Answer", "Cluster", "MakeCluster", "Process", "wait_until"]
