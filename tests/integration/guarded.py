"""A service whose auth is on, and tokens for it."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from distfs.access.db import TokenDB
from distfs.access.terms import SCOPES, read_terms
from distfs.config.settings import AuthConfig, AuthMode, Config, Seconds
from distfs.deadline import Deadline
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from tests.postgres import database_url, run_sql
from tests.service import Answer, TestService, running_service, small_config

#: All that is no administrator's.
USER = [scope for scope in SCOPES if scope != "admin"]


def soon() -> Deadline:
    return Deadline(120)


@dataclass(frozen=True)
class User:
    """Who has a token, at a service."""

    service: TestService
    id: UUID
    token: str

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.service.ask(method, path, body, {"Authorization": f"Bearer {self.token}", **given})

    def put(self, data: bytes = b"x", query: str = "") -> str:
        answer = self.ask("PUT", f"/upload/name{query}", data)
        assert answer.status == 201, answer.text
        return answer.text.strip()

    def listed(self) -> set[str]:
        answer = self.ask("GET", "/files?limit=1000")
        assert answer.status == 200, answer.text
        return {entry["uuid"] for entry in json.loads(answer.body)["files"]}


def tokens_of(service: TestService) -> TokenDB:
    return TokenDB(service.app.services.meta)


def user(service: TestService, owner: str, scopes: list[str] | None = None, **terms: Any) -> User:
    """Somebody new, with a token of their own."""
    given = {"owner": owner, "scopes": USER if scopes is None else scopes, **terms}
    return User(service, *tokens_of(service).create(read_terms(given), soon()))


def guarded_config(url: str, grace: float = 60.0) -> Config:
    auth = AuthConfig(AuthMode("on"), token_grace=Seconds(grace))
    return replace(small_config(url), auth=auth)


@contextmanager
def guarded_service(url: str, folder: Path) -> Iterator[TestService]:
    with running_service(guarded_config(url), folder) as running:
        yield running


names = itertools.count()


@pytest.fixture(scope="module")
def service(postgres: EmbeddedPostgres) -> Iterator[TestService]:
    name = f"guarded_{uuid4().hex}"
    run_sql(postgres.url, f"CREATE DATABASE {name} TEMPLATE migrated")
    with (
        tempfile.TemporaryDirectory(prefix="distfs-test-") as folder,
        guarded_service(database_url(postgres, name), Path(folder)) as running,
    ):
        yield running


@pytest.fixture
def alice(service: TestService) -> User:
    return user(service, f"alice{next(names)}")


@pytest.fixture
def bob(service: TestService) -> User:
    return user(service, f"bob{next(names)}")


@pytest.fixture
def admin(service: TestService) -> User:
    return user(service, "admin", ["admin"])


@contextmanager
def statements_for_requests(service: TestService) -> Iterator[list[str]]:
    """What MetaDB is asked for requests; not what the service asks by itself, whenever that is."""
    meta, asked = service.app.services.meta, list[str]()

    def noting(run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(query: str, *rest: Any, **more: Any) -> Any:
            if query not in {"tokens_since", "nodes", "cluster_keys"}:
                asked.append(query)
            return run(query, *rest, **more)

        return noted

    meta.read, meta.write = noting(meta.read), noting(meta.write)  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        del meta.read, meta.write
