"""Fixtures of the contract tests: each runs once for every kind of store."""

from tests.contract.subjects import store, subject

__all__ = ["store", "subject"]
