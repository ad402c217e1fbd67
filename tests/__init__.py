"""Tests as sentences: unit, contract, integration, and real processes in cluster and faults."""
