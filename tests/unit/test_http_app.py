"""The app, called as a WSGI host calls it, as far as it needs no MetaDB."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from distfs.config.settings import Config
from distfs.http_app import HttpApp, create_app


@pytest.fixture
def app() -> Iterator[HttpApp]:
    with closing(create_app(Config())) as app:
        yield app


def call(app: HttpApp, **environ: Any) -> None:
    given = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/healthz",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
    }
    wsgi = {"wsgi.url_scheme": "http", "wsgi.input": io.BytesIO()}
    answer = app(given | wsgi | environ, lambda status, headers, exc_info=None: lambda data: None)
    with closing(answer):  # type: ignore[type-var]
        assert b"".join(answer)


def test_a_request_leaves_nothing_for_the_garbage_collector(app: HttpApp) -> None:
    call(app)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            call(app)
        assert gc.collect() < 20
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/healthz", "//healthz", "healthz"])
def test_a_path_begins_with_one_slash(app: HttpApp, path: str) -> None:
    call(app, PATH_INFO=path)
