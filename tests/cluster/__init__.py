"""Tests with real processes, and the harness that starts them: ``from tests.cluster import Cluster``."""

from tests.cluster.harness import Answer, Cluster, MakeCluster, Process
from tests.contract.litter import eventually

__all__ = ["Answer", "Cluster", "MakeCluster", "Process", "eventually"]
