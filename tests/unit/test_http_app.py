"""The app, called as a WSGI host calls it, as far as it needs no MetaDB."""

from __future__ import annotations

import gc
import io
import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from werkzeug.exceptions import HTTPException

from distfs.config.settings import Config
from distfs.http_app import HttpApp, create_app


@pytest.fixture
def app() -> Iterator[HttpApp]:
    with closing(create_app(Config())) as app:
        yield app


def call(app: HttpApp, **environ: Any) -> bytes:
    given = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/healthz",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
    }
    wsgi = {"wsgi.url_scheme": "http", "wsgi.input": io.BytesIO()}
    answer = app(given | wsgi | environ, lambda status, headers, exc_info=None: lambda data: None)
    with closing(answer):  # type: ignore[type-var]
        body = b"".join(answer)
        assert body
        return body


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


def test_the_short_way_to_a_view_leads_where_the_map_does(app: HttpApp) -> None:
    words = ["upload", "download", "files", "tokens", "rotate", "healthz", "status", "", "x", "a\nb", ".."]
    methods = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]
    paths = {f"/{'/'.join(some)}" for count in range(4) for some in itertools.product(words, repeat=count)}
    map_ = app._map.bind("")
    found = 0
    for path, method in itertools.product(sorted(paths), methods):
        try:
            (view, action), arguments = map_.match(path, method)
        except HTTPException as e:
            with pytest.raises(type(e)):
                app._route(method, path)
        else:
            assert app._route(method, path) == (view, action, arguments), (method, path)
            found += 1
    assert found > len(methods)
