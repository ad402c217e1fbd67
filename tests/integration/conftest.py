"""Fixtures of the integration tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs.metadb.embedded_postgres import EmbeddedPostgres
from tests.integration.meta_proxy import certificate, make_proxy, proxy, tls_proxy, tls_url
from tests.integration.raw_wire import raw, server
from tests.postgres import database_url, run_sql
from tests.service import TestService, running_service, small_config

__all__ = ["certificate", "make_proxy", "proxy", "raw", "server", "service", "tls_proxy", "tls_url"]


@pytest.fixture(scope="session")
def service(postgres: EmbeddedPostgres) -> Iterator[TestService]:
    """A service with three nodes that many tests share: each leaves its nodes as it found them."""
    run_sql(postgres.url, "CREATE DATABASE shared_service TEMPLATE migrated")
    with tempfile.TemporaryDirectory(prefix="distfs-test-") as folder:
        config = small_config(database_url(postgres, "shared_service"))
        with running_service(config, Path(folder)) as running:
            yield running
