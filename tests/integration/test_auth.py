"""Auth is on: who has no token, or not the one for it, gets nothing; the one who has gets what is theirs."""

from __future__ import annotations

import base64
import json
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from distfs.access.authorize import Action, Verdict, needs_nothing, of_file
from distfs.access.door import Decision
from distfs.access.token import new_token
from distfs.commands.running_service import ask_service
from distfs.config.settings import AuditConfig
from distfs.headers import safety
from distfs.http_app import _ROUTES, create_app
from tests.integration.guarded import (
    User,
    admin,
    alice,
    bob,
    service,
    soon,
    statements_for_requests,
    tokens_of,
    user,
)
from tests.service import Answer, HttpAddress, TestService, listening, running_service, small_config

__all__ = ["admin", "alice", "bob", "service"]


def without_id(answer: Answer) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that an answer says but when, and to which request."""
    said = [(k, v) for k, v in answer.headers.items() if k not in ("X-Request-Id", "Date")]
    return answer.status, answer.body, said


# --- every route ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "action"), [(m, p, a) for m, p, a, _ in _ROUTES])
def test_a_stranger_is_asked_for_a_token_on_every_route_but_health_and_usage(
    service: TestService, method: str, path: str, action: Action
) -> None:
    path = path.replace("<uuid>", str(uuid4())).replace("<any_name:name>", "n")
    answer = service.ask(method, path if path != "/download" else f"{path}?uuid={uuid4()}", b"")
    if needs_nothing(action):
        assert answer.status == 200
        return
    assert answer.status == 401, answer.text
    assert 'Basic realm="distfs"' in answer.headers["WWW-Authenticate"]
    assert "Bearer" in answer.headers["WWW-Authenticate"]
    assert "invalid_token" not in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("method", "path"),
    [(m, p) for m, p, a, _ in _ROUTES if of_file(a)],
)
def test_a_file_that_is_not_seen_and_none_are_one_answer_by_the_same_statements(
    service: TestService, alice: User, bob: User, method: str, path: str
) -> None:
    told: list[Decision] = []
    theirs, nobodys = alice.put(), str(uuid4())

    def ask(who: User | TestService, uuid: str) -> Answer:
        place = path.replace("<uuid>", uuid) if "<" in path else f"{path}?uuid={uuid}"
        return who.ask(method, place, b'{"visibility": "public"}')

    bob.ask("GET", "/files")  # so that his token is known, and nothing else is asked
    service.app.services.door.told = told.append
    try:
        with statements_for_requests(service) as asked:
            for who, status in ((bob, 404), (service, 401)):
                asked.clear()
                hidden = without_id(ask(who, theirs))
                by_hidden = list(asked)
                asked.clear()
                none = without_id(ask(who, nobodys))
                assert asked == by_hidden == ["file_seen"]
                assert hidden[0] == none[0] == status
                assert hidden[1].replace(theirs.encode(), b"") == none[1].replace(nobodys.encode(), b"")
                assert len(hidden[2]) == len(none[2])
    finally:
        service.app.services.door.told = None
    assert [each.allowed for each in told] == [False] * 4
    assert {each.verdict for each in told} == {Verdict.HIDDEN, Verdict.LOGIN}
    assert alice.ask("GET", f"/download/{theirs}").body == b"x"


def test_every_route_is_judged_by_its_action(service: TestService, admin: User) -> None:
    """What is decided is told once for each request, with the action that the route names."""
    told: list[Decision] = []
    service.app.services.door.told = told.append
    try:
        for method, path, action, _ in _ROUTES:
            told.clear()
            uuid = admin.put() if of_file(action) else ""
            told.clear()
            place = path.replace("<uuid>", uuid or str(uuid4())).replace("<any_name:name>", "n")
            place += {"/download": f"?uuid={uuid}", "/debug/profile": "?seconds=1"}.get(path, "")
            admin.ask(method, place, b'{"visibility": "link"}' if action is Action.CHANGE else b"x")
            assert [(each.action, each.allowed) for each in told] == [(action, True)], (method, path)
            assert str(told[0].file or "") == uuid
    finally:
        service.app.services.door.told = None


def test_who_is_forbidden_something_is_told_what_would_help(
    service: TestService, alice: User, bob: User
) -> None:
    """Of another's file no scope does, whatever a token has."""
    public = alice.put(query="?visibility=public")
    for method, path in (("DELETE", ""), ("PATCH", ""), ("POST", "/links")):
        answer = bob.ask(method, f"/files/{public}{path}", b"{}")
        assert (answer.status, "another owner's" in answer.text) == (403, True), answer.text
        assert "scope" not in answer.text
    reader = user(service, owner_of(bob), ["download"])
    theirs = bob.put()
    for method, path, scope in (
        ("DELETE", f"/files/{theirs}", "delete"),
        ("PATCH", f"/files/{theirs}", "upload"),
        ("PUT", "/upload/x", "upload"),
        ("GET", "/files", "list"),
        ("GET", "/tokens", "admin"),
        ("GET", "/status", "admin"),
        ("GET", "/status/history", "admin"),
    ):
        answer = reader.ask(method, path, b"{}")
        assert (answer.status, f"the scope {scope}:" in answer.text) == (403, True), answer.text


def owner_of(one: User) -> str:
    """Whose the token is."""
    [owner] = [each.terms.owner for each in tokens_of(one.service).listed(soon()) if each.id == one.id]
    return owner


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_is_shown_by_bearer_or_as_a_password(service: TestService, alice: User) -> None:
    uuid = alice.put(b"hers")
    for login in (f":{alice.token}", f"anybody:{alice.token}"):
        basic = "Basic " + base64.b64encode(login.encode()).decode()
        answer = service.ask("GET", f"/download/{uuid}", headers={"Authorization": basic})
        assert (answer.status, answer.body) == (200, b"hers")


@pytest.mark.parametrize(
    "shown",
    ["Bearer nonsense", "Bearer ", "Basic x", f"Bearer {new_token()}"],
    ids=["nonsense", "nothing", "a broken login", "a token that nobody made"],
)
def test_what_is_no_token_is_refused_everywhere(service: TestService, alice: User, shown: str) -> None:
    uuid = alice.put(query="?visibility=public")
    headers = {"Authorization": shown}
    for method, path in (("GET", f"/download/{uuid}"), ("PUT", "/upload/n"), ("GET", "/files")):
        answer = service.ask(method, path, b"", headers)
        assert answer.status in (401, 429), answer.text
        if answer.status == 401:
            assert answer.headers["WWW-Authenticate"].endswith('Bearer realm="distfs", error="invalid_token"')
    assert service.ask("GET", "/healthz", headers=headers).status == 200
    assert service.ask("GET", f"/download/{uuid}").status == 200


def test_a_token_that_is_shown_twice_is_told_so(service: TestService, alice: User) -> None:
    with socket.create_connection((service.host, service.port)) as sock:
        bearer = f"Authorization: Bearer {alice.token}\r\n"
        sock.sendall(
            f"GET /files HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{bearer}{bearer}\r\n".encode()
        )
        said = b"".join(iter(lambda: sock.recv(4096), b"")).decode()
    assert said.startswith("HTTP/1.1 400 ")
    assert "Authorization was sent more than once" in said
    assert alice.token not in said


def test_a_token_is_good_at_once_and_no_more_once_it_was_revoked(service: TestService, alice: User) -> None:
    assert alice.ask("GET", "/files").status == 200
    began = service.app.services.door.tokens._seen.as_of
    tokens_of(service).revoke(alice.id, soon())
    while alice.ask("GET", "/files").status == 200:
        pass  # as long as what is known was asked for before it
    assert service.app.services.door.tokens._seen.as_of > began
    assert alice.ask("GET", "/files").status in (401, 429)


def test_a_token_expires(service: TestService) -> None:
    one = user(service, "soon", expires="1s")
    while one.ask("GET", "/files").status == 200:
        pass
    assert one.ask("GET", "/files").status in (401, 429)


def test_a_token_that_is_rotated_has_another_text(service: TestService, alice: User) -> None:
    uuid = alice.put(b"hers")
    text = tokens_of(service).rotate(alice.id, 3600.0, soon())
    new = User(service, alice.id, text)
    assert new.ask("GET", f"/download/{uuid}").body == b"hers"
    assert alice.ask("GET", f"/download/{uuid}").status == 200, "that of before holds for an hour"
    newer = User(service, alice.id, tokens_of(service).rotate(alice.id, 0.0, soon()))
    assert newer.ask("GET", f"/download/{uuid}").status == 200  # by now, all that is known is of after that
    assert new.ask("GET", f"/download/{uuid}").status in (401, 429)
    assert alice.ask("GET", f"/download/{uuid}").status in (401, 429)


def test_a_scope_is_what_one_may(service: TestService) -> None:
    reader, writer = user(service, "both", ["download"]), user(service, "both", ["upload"])
    uuid = writer.put(b"x")
    assert reader.ask("GET", f"/download/{uuid}").status == 200
    for who, method, path in (
        (reader, "PUT", "/upload/n"),
        (reader, "GET", "/files"),
        (reader, "DELETE", f"/files/{uuid}"),
        (reader, "GET", "/status"),
        (writer, "GET", f"/download/{uuid}"),
    ):
        answer = who.ask(method, path, b"x")
        assert answer.status == 403, answer.text
        assert "scope" in answer.text


# --- files ----------------------------------------------------------------------------------------


def test_a_file_is_its_owners_until_that_one_says_otherwise(
    service: TestService, alice: User, bob: User, admin: User
) -> None:
    uuid = alice.put(b"hers")
    download, file = f"/download/{uuid}", f"/files/{uuid}"
    entry = json.loads(alice.ask("GET", file).body)
    assert (entry["owner"], entry["visibility"]) == (f"alice{entry['owner'][5:]}", "private")
    assert [bob.ask("GET", download).status, service.ask("GET", download).status] == [404, 401]
    assert admin.ask("GET", download).body == b"hers"
    for visibility, in_lists in (("link", False), ("public", True), ("private", False)):
        answer = alice.ask("PATCH", file, json.dumps({"visibility": visibility}).encode())
        assert json.loads(answer.body)["visibility"] == visibility
        seen = visibility != "private"
        assert (bob.ask("GET", download).status == 200) is seen
        assert (service.ask("GET", download).status == 200) is seen
        assert (service.ask("GET", file).status == 200) is seen
        assert (uuid in bob.listed()) is in_lists
        assert uuid in alice.listed()
        assert uuid in admin.listed()
        if seen:
            told = json.loads(bob.ask("GET", file).body)
            assert not {"owner", "health"} & told.keys(), "whose it is, and where, is her matter"
        assert bob.ask("DELETE", file).status == (403 if seen else 404)
        assert bob.ask("PATCH", file, b'{"visibility": "public"}').status == (403 if seen else 404)
    assert bob.ask("GET", download).status == 404
    assert alice.ask("DELETE", file).status == 204
    assert alice.ask("GET", download).status == 404


@pytest.mark.parametrize("visibility", ["private", "link", "public"])
def test_pages_of_others_embed_only_what_is_public(alice: User, visibility: str) -> None:
    uuid = alice.put(query=f"?visibility={visibility}")
    answer = alice.ask("GET", f"/download/{uuid}")
    row = safety.PUBLIC if visibility == "public" else safety.STORED
    assert row.items() <= dict(answer.headers).items()


@pytest.mark.parametrize("visibility", ["private", "link", "public"])
def test_no_cache_gives_a_file_without_asking_whether_it_still_may(alice: User, visibility: str) -> None:
    path = f"/download/{alice.put(query=f'?visibility={visibility}')}"
    whole = alice.ask("GET", path)
    again = alice.ask("GET", path, If_None_Match=whole.headers["ETag"])
    assert (whole.status, again.status) == (200, 304)
    wanted = "private, no-cache" if visibility == "private" else "no-cache"
    assert {answer.headers["Cache-Control"] for answer in (whole, again)} == {wanted}


def test_a_file_gets_another_name(alice: User) -> None:
    uuid = alice.put()
    answer = alice.ask("PATCH", f"/files/{uuid}", json.dumps({"name": "n\u00e4me.txt"}).encode())
    assert (json.loads(answer.body)["name"], json.loads(answer.body)["visibility"]) == (
        "n\u00e4me.txt",
        "private",
    )
    assert "n%C3%A4me.txt" in alice.ask("HEAD", f"/download/{uuid}").headers["Content-Disposition"]
    both = b'{"name": "b", "visibility": "link"}'
    told = json.loads(alice.ask("PATCH", f"/files/{uuid}", both).body)
    assert (told["name"], told["visibility"]) == ("b", "link")
    assert alice.ask("PATCH", f"/files/{uuid}", b"{}").status == 200
    assert alice.ask("PATCH", f"/files/{uuid}", both, If_Match='"x"').status == 412


@pytest.mark.parametrize(("name", "kept"), [("a\r\n\x1b[31mb", "a___[31mb"), ("", "file"), ("\ud800", "?")])
def test_another_name_is_cleaned_as_that_of_an_upload(alice: User, name: str, kept: str) -> None:
    uuid = alice.put()
    answer = alice.ask("PATCH", f"/files/{uuid}", json.dumps({"name": name}).encode())
    assert json.loads(answer.body)["name"] == kept


@pytest.mark.parametrize("by", ["query", "header"])
def test_an_upload_may_say_who_reads_it(service: TestService, alice: User, by: str) -> None:
    query, headers = ("?visibility=link", {}) if by == "query" else ("", {"X-Distfs-Visibility": "link"})
    answer = alice.ask("PUT", f"/upload/n{query}", b"x", **headers)
    assert service.ask("GET", f"/download/{answer.text.strip()}").status == 200
    answer = alice.ask("PUT", "/upload/n?visibility=all", b"x")
    assert (answer.status, "private, link, public" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not right as JSON"),
        (b"[]", "no JSON object"),
        (b'{"name": 7}', "a file's name is text"),
        (b'{"name": null}', "a file's name is text"),
        (json.dumps({"name": "x" * 2000}).encode(), "the file's name is longer than"),
        (b'{"visibility": 7}', "visibility must be one of"),
        (b'{"owner": "bob"}', "a file's 'owner' cannot be changed"),
        (b"[" * 10000, "not right as JSON"),
        (b" " * 20000, "at most 16.0 KiB"),
    ],
)
def test_a_change_that_cannot_be_is_told(alice: User, body: bytes, words: str) -> None:
    uuid = alice.put()
    answer = alice.ask("PATCH", f"/files/{uuid}", body)
    assert answer.status in (400, 413)
    assert words in answer.text


def test_a_listing_has_every_file_that_one_sees_once_in_pages(alice: User, bob: User) -> None:
    mine = {alice.put() for _ in range(4)} | {alice.put(query="?visibility=public")}
    public = {bob.put(query="?visibility=public") for _ in range(2)}
    hidden = {bob.put(), bob.put(query="?visibility=link")}
    seen: list[str] = []
    after = ""
    while True:
        page = json.loads(alice.ask("GET", f"/files?limit=2{after}").body)
        seen += [entry["uuid"] for entry in page["files"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen)
    assert mine | public <= set(seen)
    assert not hidden & set(seen)


def test_what_was_stored_without_tokens_is_the_administrators(
    service: TestService, admin: User, alice: User, tmp_path: Path
) -> None:
    """A UUID alone opens nothing while auth is on."""
    with running_service(small_config(service.config.metadb.url), tmp_path) as before:
        uuid = before.ask("PUT", "/upload/n", b"old").text.strip()
        assert before.ask("GET", f"/download/{uuid}").body == b"old"
        assert service.ask("GET", f"/download/{uuid}").status == 401
        assert alice.ask("GET", f"/download/{uuid}").status == 404
        assert admin.ask("GET", f"/download/{uuid}").body == b"old"
        theirs = alice.put(b"hers")
        assert before.ask("GET", f"/download/{theirs}").body == b"hers", "with auth off all is as ever"


# --- the administrators' calls --------------------------------------------------------------------


def test_administrators_make_list_rotate_and_revoke_tokens(service: TestService, admin: User) -> None:
    terms = {
        "owner": "carol",
        "scopes": ["upload", "download"],
        "expires": "1h",
        "quota": "1GB",
        "name": "ci",
    }
    answer = admin.ask("POST", "/tokens", json.dumps(terms).encode())
    assert (answer.status, answer.headers["Cache-Control"]) == (201, "no-store")
    made = json.loads(answer.body)
    carol = User(service, made["id"], made["token"])
    uuid = carol.put(b"carols")
    [listed] = [each for each in tokens_in(admin) if each["id"] == made["id"]]
    assert made["expires_at"] == listed["expires_at"] is not None
    assert (listed["owner"], listed["scopes"], listed["quota"]) == ("carol", ["upload", "download"], 10**9)
    assert (listed["owned"], listed["revoked_at"], listed["name"]) == (6, None, "ci")
    assert made["token"] not in admin.ask("GET", "/tokens?all=1").text
    rotated = json.loads(admin.ask("POST", f"/tokens/{made['id']}/rotate", b'{"overlap": "1h"}').body)
    again = User(service, made["id"], rotated["token"])
    assert again.ask("GET", f"/download/{uuid}").body == b"carols"
    assert admin.ask("DELETE", f"/tokens/{made['id']}").status == 204
    while again.ask("GET", f"/download/{uuid}").status == 200:
        pass
    assert made["id"] not in {each["id"] for each in tokens_in(admin)}
    assert made["id"] in {each["id"] for each in tokens_in(admin, "?all=1")}
    for path in (f"/tokens/{made['id']}", f"/tokens/{uuid4()}"):
        assert admin.ask("DELETE", path).status == 404
    assert admin.ask("POST", f"/tokens/{made['id']}/rotate", b"{}").status == 404


def test_a_token_is_rotated_at_once_by_a_request_without_a_body(admin: User, alice: User) -> None:
    answer = admin.ask("POST", f"/tokens/{alice.id}/rotate")
    assert answer.status == 200, answer.text
    new = User(alice.service, alice.id, json.loads(answer.body)["token"])
    assert new.ask("GET", "/files").status == 200  # by now, all that is known is of after that
    assert alice.ask("GET", "/files").status in (401, 429)  # others here have shown many that are not good


def tokens_in(admin: User, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(admin.ask("GET", f"/tokens{query}").body)["tokens"]
    return found


def test_what_a_token_may_is_in_the_audit_log_and_its_text_is_not(
    service: TestService, admin: User, tmp_path: Path
) -> None:
    file = tmp_path / "audit.log"
    config = replace(service.config, audit=AuditConfig(file=str(file)))
    with closing(create_app(config)) as app, listening(app, config) as address:
        headers = {"Authorization": f"Bearer {admin.token}"}
        ask = HttpAddress(*address).ask
        made = json.loads(ask("POST", "/tokens", b'{"owner": "dora", "scopes": ["list"]}', headers).body)
        turned = json.loads(ask("POST", f"/tokens/{made['id']}/rotate", None, headers).body)
        ask("DELETE", f"/tokens/{made['id']}", None, headers)
    text = file.read_text()
    lines = [json.loads(line) for line in text.splitlines()][1:]
    assert [(each["action"], each["object"], each.get("change")) for each in lines] == [
        ("token", made["id"], "dora: list"),
        ("token.rotate", made["id"], None),
        ("token.revoke", made["id"], None),
    ]
    assert made["token"] not in text
    assert turned["token"] not in text


def test_nobody_else_does(alice: User, admin: User) -> None:
    for method, path in (("POST", "/tokens"), ("GET", "/tokens"), ("DELETE", f"/tokens/{admin.id}")):
        assert alice.ask(method, path, b'{"owner": "alice", "scopes": ["admin"]}').status == 403
    assert admin.ask("GET", "/tokens").status == 200


def test_who_needs_no_token_makes_none(service: TestService, tmp_path: Path) -> None:
    with running_service(small_config(service.config.metadb.url), tmp_path) as anybodys:
        answer = anybodys.ask("POST", "/tokens", b'{"owner": "eve", "scopes": ["admin"]}')
        assert answer.status == 403, answer.text
        assert anybodys.ask("GET", "/tokens").status == 403


def test_terms_that_cannot_be_are_refused(admin: User) -> None:
    for body in (b"{}", b'{"owner": "x", "scopes": ["root"]}'):
        assert admin.ask("POST", "/tokens", body).status == 400
    answer = admin.ask("POST", "/tokens", b'{"owner": "x", "scopes": ["upload"], "policies": ["gold"]}')
    assert (answer.status, "no policy 'gold'; there are: default" in answer.text) == (400, True)
    for body in (b" ", b'{"overlap": "soon"}', b'{"scopes": ["admin"]}'):
        assert admin.ask("POST", f"/tokens/{admin.id}/rotate", body).status == 400
    answer = admin.ask("DELETE", "/tokens/nonsense")
    assert (answer.status, "'nonsense' is not a token's id" in answer.text) == (400, True)
    answer = admin.ask("POST", "/tokens/nonsense/rotate")
    assert (answer.status, "'nonsense' is not a token's id" in answer.text) == (400, True)


# --- operators ------------------------------------------------------------------------------------


def test_the_command_status_shows_a_service_its_token(
    service: TestService, admin: User, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://{service.host}:{service.port}"
    monkeypatch.delenv("DISTFS_TOKEN", raising=False)
    assert "set DISTFS_TOKEN to the token of one" in ask_service(url)["error"]
    monkeypatch.setenv("DISTFS_TOKEN", alice.token)
    assert "set DISTFS_TOKEN to the token of one" in ask_service(url)["error"]
    monkeypatch.setenv("DISTFS_TOKEN", f"{admin.token}\n")
    told = ask_service(url)
    assert told["auth"]["lookups"] > 0
    monkeypatch.setenv("DISTFS_TOKEN", f"{admin.token[:-1]}\nX")
    assert ask_service(url)["error"] == "DISTFS_TOKEN is no token"
