"""What the service writes into its audit log: each change, done or refused, once, before its client knows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from distfs import audit
from distfs.access.token import new_token
from distfs.commands.audit import verify
from distfs.config.callers import parse_network
from distfs.config.settings import AuditConfig, AuthConfig, AuthMode, CallersConfig, Seconds
from distfs.http_app import create_app
from tests.forms import FORM, file_part, form
from tests.service import HttpAddress, TestService, listening


@dataclass
class Audited:
    http: HttpAddress
    file: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()][1:]

    def after(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        """(the answer, the line of it)."""
        before = len(self.lines())
        answer = self.http.ask(method, path, body, {"X-Request-Id": "of-a-test"} | (headers or {}))
        [line] = self.lines()[before:]
        assert line["request"] == answer.headers["X-Request-Id"] == "of-a-test"
        assert line["status"] == answer.status
        return answer, line


@pytest.fixture
def audited(service: TestService, tmp_path: Path) -> Iterator[Audited]:
    file = tmp_path / "audit.log"
    callers = CallersConfig(trusted_proxies=(parse_network("127.0.0.1"),))
    config = replace(service.config, audit=AuditConfig(file=str(file)), callers=callers)
    with closing(create_app(config)) as app, listening(app, config) as (host, port):
        app.services.audit.open()
        yield Audited(HttpAddress(host, port), file)
    assert [report.wrong for report in verify([file])] == [[]]


def test_uploads_and_deletes_are_written_with_who_from_where_and_what(audited: Audited) -> None:
    answer, line = audited.after("PUT", "/upload/x", b"1")
    uuid = answer.text.strip()
    told = {"who": "127.0.0.1", "from": "127.0.0.1", "action": "upload", "object": uuid, "outcome": "allow"}
    assert told.items() <= line.items()
    body = form(file_part("a", b"1"), file_part("b", b"2"))
    answer, line = audited.after("POST", "/upload", body, FORM | {"X-Forwarded-For": "198.51.100.7"})
    assert line["object"] == answer.text.split()
    assert (line["who"], line["from"], line["via"]) == ("198.51.100.7", "198.51.100.7", "127.0.0.1")
    _, line = audited.after("DELETE", f"/files/{uuid}")
    assert (line["action"], line["object"], line["outcome"]) == ("delete", uuid, "allow")


FOREIGN = {"Origin": "https://evil.example.net"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "why"),
    [
        ("DELETE", "/files/00000000-0000-0000-0000-000000000000", {}, 404, "no file"),
        ("DELETE", "/files/none", {}, 400, "not a file's id"),
        ("PUT", "/upload/x", {"Content-Encoding": "br"}, 415, "Content-Encoding"),
        ("PUT", "/upload/x", {"X-Distfs-Policy": "none"}, 400, "no policy"),
        ("PUT", "/upload/x", FOREIGN, 403, "http.cors_origins"),
        ("DELETE", "/files/00000000-0000-0000-0000-000000000000", FOREIGN, 403, "http.cors_origins"),
        ("PUT", "/upload/x", {"Host": "evil.example.net"}, 421, "http.allowed_hosts"),
        ("BREW", "/pot/secret", {}, 404, "nothing at this path"),
        ("POST", "/files", {}, 405, "cannot be used"),
    ],
)
def test_what_was_refused_is_written_with_why(
    audited: Audited, method: str, path: str, headers: dict[str, str], status: int, why: str
) -> None:
    answer, line = audited.after(method, path, b"x" if method == "PUT" else None, headers)
    assert (answer.status, line["outcome"]) == (status, "deny")
    assert why in line["why"]
    assert line["why"] == answer.text.strip()
    assert "secret" not in json.dumps(line)
    if path.startswith("/files/"):
        assert line["object"] == path.removeprefix("/files/")


def test_what_became_of_a_file_is_written(audited: Audited) -> None:
    answer, line = audited.after("PUT", "/upload/x?visibility=link", b"1")
    assert line["change"] == "visibility link"
    uuid = answer.text.strip()
    for body, change in (
        (b'{"visibility": "public", "name": "secret"}', "name, visibility public"),
        (b"{}", None),
    ):
        _, line = audited.after("PATCH", f"/files/{uuid}", body)
        assert (line["action"], line["object"], line.get("change")) == ("change", uuid, change)


def test_a_token_in_the_place_of_an_id_is_in_no_line(audited: Audited) -> None:
    token = new_token()
    for path in (f"/tokens/{token}", f"/files/{token}", f"/{token}"):
        _, line = audited.after("DELETE", path)
        assert line["outcome"] == "deny"
    assert token not in audited.file.read_text()
    assert "distfs_***" in audited.file.read_text()


def test_a_stranger_writes_no_more_lines_while_metadb_is_away_than_else(
    service: TestService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a token is good cannot be told then, so it is no refusal by a rule; and anybody can make a text."""
    monkeypatch.setattr(audit, "DENIALS_A_SECOND", 0)
    nowhere = replace(
        service.config.metadb, url="postgresql://nobody@127.0.0.1:1/none", patience=Seconds(0.1)
    )
    auth, file = AuthConfig(AuthMode("on")), tmp_path / "audit.log"
    config = replace(service.config, metadb=nowhere, auth=auth, audit=AuditConfig(file=str(file)))
    with closing(create_app(config)) as app, listening(app, config) as address:
        http = HttpAddress(*address)
        for _ in range(3):
            shown = {"Authorization": f"Bearer {new_token()}"}
            assert http.ask("DELETE", f"/files/{uuid4()}", None, shown).status == 503
        assert app.services.audit.usage()["left_out"] == 3


def test_reading_is_not_written(audited: Audited) -> None:
    uuid = audited.http.ask("PUT", "/upload/x", b"1").text.strip()
    for method, path in (("GET", f"/download/{uuid}"), ("HEAD", f"/download/{uuid}"), ("GET", "/files")):
        assert audited.http.ask(method, path).status == 200
    audited.http.ask("OPTIONS", "/files")
    assert len(audited.lines()) == 1


def test_the_status_tells_of_it(audited: Audited) -> None:
    audited.after("PUT", "/upload/x", b"1")
    told = json.loads(audited.http.ask("GET", "/status").body)["audit"]
    assert told == {"file": str(audited.file), "waiting": 0, "written": 1, "lost": 0, "left_out": 0}


@pytest.mark.parametrize("required", [True, False])
def test_a_log_that_cannot_be_written_stops_changes_only_where_it_is_required(
    service: TestService, tmp_path: Path, required: bool
) -> None:
    folder = tmp_path / "logs"
    config = replace(service.config, audit=AuditConfig(file=str(folder / "audit.log"), required=required))
    with closing(create_app(config)) as app, listening(app, config) as address:
        http = HttpAddress(*address)
        before = service.fragments()
        answer = http.ask("PUT", "/upload/x", b"1")
        assert answer.status == (503 if required else 201)
        if required:
            assert "audit.required" in answer.text
            assert service.fragments() == before
        assert http.ask("GET", "/files").status == 200
        assert json.loads(http.ask("GET", "/status").body)["audit"]["waiting"] == 1
        folder.mkdir()
        assert http.ask("PUT", "/upload/x", b"1").status == 201
    lines = [json.loads(line) for line in (folder / "audit.log").read_text().splitlines()]
    assert [line["action"] for line in lines] == ["audit.open", "upload", "upload"]
    assert lines[1]["outcome"] == ("fail" if required else "allow")
    assert os.listdir(folder) == ["audit.log"]
