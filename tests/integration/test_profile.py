"""GET /debug/profile: a real py-spy looks at this process."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs.errors import DistfsError
from distfs.routes import profile
from tests.contract.litter import eventually
from tests.integration.guarded import guarded_config, user
from tests.service import TestService, running_service, small_config


@pytest.fixture
def service(metadb_url: str, tmp_path: Path) -> Iterator[TestService]:
    with running_service(small_config(metadb_url), tmp_path) as running:
        yield running


def test_it_tells_where_the_threads_were(service: TestService) -> None:
    done = threading.Event()

    def spins_for_the_profile() -> None:
        while not done.is_set():
            pass

    busy = threading.Thread(target=spins_for_the_profile)
    busy.start()
    try:
        answer = service.ask("GET", "/debug/profile?seconds=1&format=speedscope")
    finally:
        done.set()
        busy.join()
    assert answer.status == 200, answer.text
    frames = {frame["name"] for frame in json.loads(answer.body)["shared"]["frames"]}
    assert any("spins_for_the_profile" in name for name in frames)
    assert "attachment" in answer.headers["Content-Disposition"]


def test_one_is_made_at_a_time_and_what_is_asked_wrong_is_refused(service: TestService) -> None:
    for query in ("seconds=0", "seconds=61", "seconds=x", "seconds=-1", "seconds=1e1", "format=exe"):
        assert service.ask("GET", f"/debug/profile?{query}").status == 400, query
    with profile._one:
        assert service.ask("GET", "/debug/profile?seconds=1").status == 503
    with socket.create_connection((service.host, service.port)) as sock:
        sock.sendall(b"GET /debug/profile?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(profile._one.locked, "it is being made")
    eventually(lambda: not profile._one.locked(), "who hung up waits for nothing", seconds=20)


def test_administrators_alone_may_ask(metadb_url: str, tmp_path: Path) -> None:
    with running_service(guarded_config(metadb_url), tmp_path) as service:
        assert service.ask("GET", "/debug/profile").status == 401
        assert user(service, "somebody").ask("GET", "/debug/profile").status == 403


def test_without_it_one_line_says_what_to_install(
    service: TestService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    answer = service.ask("GET", "/debug/profile")
    assert (answer.status, len(answer.text.splitlines())) == (501, 1)
    assert "pip install 'distfs[profile]'" in answer.text


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Error: Permission Denied: Try running again with elevated permissions", "SYS_PTRACE"),
        ("Error: Operation not permitted (os error 1)", "SYS_PTRACE"),
        ("Error: no such process", "the log tells why"),
        ("", "the log tells why"),
    ],
)
def test_why_there_is_none_is_told_with_what_to_do(said: str, told: str) -> None:
    error: DistfsError = profile._in_vain(said, "no file")
    assert told in error.for_client
    assert len(error.for_client.splitlines()) == 1
