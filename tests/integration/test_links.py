"""Signed links, asked for and used: who has one gets what it is for, and nothing else."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest

from distfs.access.link import NOT_GOOD, Link, seal, unseal
from distfs.commands.audit import verify
from distfs.config.callers import parse_network
from distfs.config.settings import AuditConfig, CallersConfig
from distfs.headers import safety
from distfs.http_app import create_app
from tests.contract.litter import eventually
from tests.integration.guarded import (
    User,
    admin,
    alice,
    bob,
    names,
    service,
    soon,
    statements_for_requests,
    tokens_of,
    user,
)
from tests.service import Answer, HttpAddress, TestService, listening, running_service, small_config

__all__ = ["admin", "alice", "bob", "service"]

DATA = bytes(range(256)) * 4


@pytest.fixture(autouse=True)
def nobody_has_failed(service: TestService) -> Iterator[None]:
    """Who shows what is no link too often waits, and all of these come from one address."""
    yield
    service.app.services.door.failures.forgive()


def link(who: User, uuid: str, **asked: Any) -> str:
    """A link to a file, as a path of this service."""
    answer = who.ask("POST", f"/files/{uuid}/links", json.dumps(asked).encode())
    assert answer.status == 201, answer.text
    return path_of(answer.text)


def path_of(url: str) -> str:
    parts = urlsplit(url.strip())
    return f"{parts.path}?{parts.query}"


def text_of(path: str) -> str:
    return path.partition("?link=")[2]


def signed_anew(service: TestService, path: str, **changed: Any) -> str:
    """The path of a link that says something else, by who has the key."""
    sealed = unseal(text_of(path))
    assert sealed is not None
    token = service.app.services.door.tokens.find(sealed.token, soon())
    assert token is not None
    keys = [key for key, _ in token.link_keys]
    opened = sealed.open(keys)
    assert opened is not None
    return f"{path.partition('?')[0]}?link={seal(opened._replace(**changed), keys[0])}"


def refused(answer: Answer, words: str) -> None:
    assert answer.status == 403, answer.text
    assert words in answer.text
    assert "\n" not in answer.text.strip()


# --- a download -----------------------------------------------------------------------------------


def test_who_has_a_link_downloads_the_file_without_a_token(service: TestService, alice: User) -> None:
    uuid = alice.put(DATA)
    path = link(alice, uuid)
    assert path.startswith(f"/download/{uuid}?link=")
    answer = service.ask("GET", path)
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert safety.STORED.items() <= dict(answer.headers).items()
    assert service.ask("GET", f"/download?uuid={uuid}&link={text_of(path)}").body == DATA
    head = service.ask("HEAD", path)
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(DATA)))
    part = service.ask("GET", path, headers={"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, DATA[10:20])
    assert service.ask("GET", path, headers={"If-None-Match": answer.headers["ETag"]}).status == 304
    assert service.ask("GET", f"/download/{uuid}").status == 401


def test_the_answer_is_the_url_alone_or_json(service: TestService, alice: User) -> None:
    uuid = alice.put(DATA)
    answer = alice.ask("POST", f"/files/{uuid}/links")
    assert answer.text == f"http://{service.host}:{service.port}{path_of(answer.text)}\n"
    assert answer.headers["Cache-Control"] == "no-store"
    named = alice.ask(
        "POST", f"/files/{uuid}/links", b'{"downloads": 3, "expires": "2099-01-01T00:00:00Z"}',
        Host="files", Accept="application/json",
    )  # fmt: skip
    told = json.loads(named.body)
    assert told["url"].startswith(f"http://files/download/{uuid}?link=")
    assert (told["expires_at"], told["uses"]) == ("2099-01-01T00:00:00+00:00", 3)
    assert alice.ask("POST", f"/files/{uuid}/links", Host="evil.example.net").status == 421


def test_the_scheme_is_what_a_trusted_proxy_says(service: TestService, alice: User) -> None:
    uuid = alice.put(DATA)
    callers = CallersConfig(trusted_proxies=(parse_network("127.0.0.1"),))
    config = replace(service.config, callers=callers)
    with closing(create_app(config)) as app, listening(app, config) as address:
        headers = {
            "Authorization": f"Bearer {alice.token}",
            "Host": "a.example",
            "X-Forwarded-Proto": "https",
        }
        answer = HttpAddress(*address).ask("POST", f"/files/{uuid}/links", b"", headers)
        assert answer.text.startswith(f"https://a.example/download/{uuid}?link=")


def test_it_may_save_the_file_under_another_name(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA), name="Jänner.pdf")
    said = service.ask("GET", path).headers["Content-Disposition"]
    assert "filename*=UTF-8''J%C3%A4nner.pdf" in said
    assert said.startswith("attachment")


def test_its_owner_and_administrators_make_one(
    service: TestService, alice: User, bob: User, admin: User
) -> None:
    uuid = alice.put(DATA)
    assert service.ask("GET", link(admin, uuid)).body == DATA
    for who, status in ((bob, 404), (service, 401)):
        assert who.ask("POST", f"/files/{uuid}/links", b"{}").status == status
    assert alice.ask("PATCH", f"/files/{uuid}", b'{"visibility": "link"}').status == 200
    assert bob.ask("POST", f"/files/{uuid}/links", b"{}").status == 403
    writer = user(service, f"writer{next(names)}", ["upload"])
    assert writer.ask("POST", f"/files/{writer.put()}/links", b"{}").status == 403
    for asked in (b'{"downloads": 1001}', b'{"range": "2000-"}', b'{"until": 1}', b"[]"):
        assert alice.ask("POST", f"/files/{uuid}/links", asked).status == 400


def test_who_needs_no_token_makes_none_and_needs_none(
    service: TestService, alice: User, tmp_path: Path
) -> None:
    path = link(alice, alice.put(DATA))
    with running_service(small_config(service.config.metadb.url), tmp_path) as anybodys:
        uuid = anybodys.ask("PUT", "/upload/n", b"x").text.strip()
        for place in (f"/files/{uuid}/links", "/links"):
            refused(anybodys.ask("POST", place, b"{}"), "here nobody needs one")
        assert anybodys.ask("GET", path).body == DATA


# --- refusals -------------------------------------------------------------------------------------


def test_what_is_no_link_is_one_answer_that_tells_nothing(service: TestService, alice: User) -> None:
    uuid = alice.put(DATA)
    text = text_of(link(alice, uuid))
    strangers = seal(Link(uuid4(), 9_999_999_999, UUID(uuid)), bytes(32))
    ours = seal(Link(alice.id, 9_999_999_999, UUID(uuid)), bytes(32))
    told = set()
    for shown in (text[:-1] + ("A" if text[-1] != "A" else "E"), text[:50], strangers, ours, "", "x" * 3000):
        for of in (uuid, str(uuid4())):
            answer = service.ask("GET", f"/download/{of}?link={shown}")
            assert answer.status in (403, 429), answer.text
            if answer.status == 403:
                told.add(answer.text)
    assert told == {f"{NOT_GOOD}\n"}
    answer = service.ask(
        "GET", f"/download/{uuid}?link=x", headers={"Authorization": f"Bearer {alice.token}"}
    )
    assert answer.status in (403, 429), "a link counts, whatever else is sent"
    assert service.ask("GET", f"/download/{uuid}?link={text}").body == DATA, (
        "a good one is never told to wait"
    )


def test_one_that_has_expired(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA), expires_in="1s")
    eventually(lambda: service.ask("GET", path).status == 403, "its end comes")
    refused(service.ask("GET", path), "this link has expired, at ")
    soon_over = datetime.now(UTC) + timedelta(hours=1)
    path = link(alice, alice.put(DATA), expires=soon_over.isoformat())
    assert service.ask("GET", path).status == 200
    refused(service.ask("GET", signed_anew(service, path, expires=int(time.time()) - 1)), "has expired")


def test_another_method_another_route_and_another_file(service: TestService, alice: User) -> None:
    uuid, other = alice.put(DATA), alice.put(b"other")
    given = f"?link={text_of(link(alice, uuid))}"
    for method, path in (
        ("DELETE", f"/files/{uuid}"),
        ("PATCH", f"/files/{uuid}"),
        ("GET", f"/files/{uuid}"),
        ("POST", f"/files/{uuid}/links"),
        ("GET", "/files"),
        ("GET", "/tokens"),
        ("PUT", "/upload/n"),
        ("POST", "/links"),
    ):
        refused(service.ask(method, path + given, b"{}"), "this link only downloads one file")
    for of in (other, str(uuid4())):
        refused(service.ask("GET", f"/download/{of}{given}"), "this link is for another file")
    assert alice.ask("GET", f"/download/{uuid}").body == DATA


def test_other_bytes(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA), range="10-19")
    for asked in ("bytes=10-19", "bytes=12-13", "bytes=12-13,15-19"):
        assert service.ask("GET", path, headers={"Range": asked}).status == 206
    for asked in ("bytes=9-19", "bytes=0-", "bytes=-5", "bytes=12-13,30-40", "nonsense"):
        refused(service.ask("GET", path, headers={"Range": asked}), "for bytes 10-19 of the file")
    refused(service.ask("GET", path), "(curl -r 10-19)")
    changed = {"Range": "bytes=10-19", "If-Range": '"another"'}
    refused(service.ask("GET", path, headers=changed), "for bytes 10-19 of the file")


def test_a_link_for_a_part_does_not_tell_the_digest_of_the_whole(service: TestService, alice: User) -> None:
    """By it the rest could be guessed: of a PIN behind a known text, in a moment."""
    data = b"the PIN is 4711"
    uuid = alice.put(data)
    path = link(alice, uuid, range="0-9")
    whole = sha256(data)
    guess = f'"{whole.hexdigest()}"'
    first = service.ask("GET", path, headers={"Range": "bytes=0-9"})
    assert (first.status, first.body) == (206, data[:10])
    tag = first.headers["ETag"]
    answers = [
        first,
        service.ask("HEAD", path),
        service.ask("GET", path, headers={"Range": "bytes=0-9", "If-None-Match": guess}),
        service.ask("GET", path, headers={"If-None-Match": tag}),
        service.ask("GET", path, headers={"Range": "bytes=0-9", "If-Range": tag}),
        service.ask("GET", path, headers={"Range": "bytes=0-9", "If-Range": guess}),
    ]
    assert [each.status for each in answers] == [206, 200, 206, 304, 206, 403]
    for each in answers:
        for shown in (whole.hexdigest(), b64encode(whole.digest()).decode()):
            assert shown not in str(each.headers), each.headers
    assert alice.ask("HEAD", f"/download/{uuid}").headers["ETag"] == guess


def test_another_client(service: TestService, alice: User) -> None:
    uuid = alice.put(DATA)
    here, elsewhere = link(alice, uuid, network="127.0.0.0/8"), link(alice, uuid, network="192.0.2.0/24")
    assert service.ask("GET", here).status == 200
    refused(service.ask("GET", elsewhere), "not for clients at 127.0.0.1")
    said = {"X-Forwarded-For": "192.0.2.7"}
    refused(service.ask("GET", elsewhere, headers=said), "not for clients at 127.0.0.1")
    callers = CallersConfig(trusted_proxies=(parse_network("127.0.0.1"),))
    config = replace(service.config, callers=callers)
    with closing(create_app(config)) as app, listening(app, config) as address:
        behind = HttpAddress(*address)
        assert behind.ask("GET", elsewhere, headers=said).body == DATA
        refused(behind.ask("GET", here, headers=said), "not for clients at 192.0.2.7")


def test_a_file_that_was_deleted_is_not_found(service: TestService, alice: User) -> None:
    uuid = alice.put(DATA)
    path, counted = link(alice, uuid), link(alice, uuid, downloads=1)
    assert alice.ask("DELETE", f"/files/{uuid}").status == 204
    for each in (path, counted):
        answer = service.ask("GET", each)
        assert (answer.status, answer.text) == (404, f"no file {uuid}\n")


def test_links_end_with_the_token_that_made_them(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA))
    assert service.ask("GET", path).status == 200
    tokens_of(service).revoke(alice.id, soon())
    eventually(lambda: service.ask("GET", path).status == 403, "within a second")
    refused(service.ask("GET", path), NOT_GOOD)
    one = user(service, f"one{next(names)}", expires="2s")
    path = link(one, one.put(DATA))
    eventually(lambda: service.ask("GET", path).status == 403, "the token expires")


def test_links_of_a_rotated_token_hold_as_long_as_its_former_text(service: TestService, alice: User) -> None:
    uuid = alice.put(DATA)
    first = link(alice, uuid)
    second_text = tokens_of(service).rotate(alice.id, 3600.0, soon())
    again = User(service, alice.id, second_text)
    second = link(again, uuid)
    assert text_of(first)[:24] == text_of(second)[:24], "by the same token"
    assert [service.ask("GET", each).status for each in (first, second)] == [200, 200]
    third = link(User(service, alice.id, tokens_of(service).rotate(alice.id, 0.0, soon())), uuid)
    assert service.ask("GET", third).status == 200
    assert [service.ask("GET", each).status for each in (first, second)] == [403, 403]


# --- counted downloads ----------------------------------------------------------------------------


def used(service: TestService, path: str, **headers: str) -> bool:
    """Whether a download by it came."""
    answer = service.ask(
        "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    if answer.status == 403:
        refused(answer, "used as often as it may be")
    return answer.status in (200, 206)


def test_one_that_was_used_as_often_as_it_may_be(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA), downloads=3)
    assert [used(service, path) for _ in range(5)] == [True] * 3 + [False] * 2
    assert service.ask("HEAD", path).status == 403


def test_every_answer_with_bytes_counts_and_no_other(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA), downloads=2)
    head = service.ask("HEAD", path)
    assert (head.status, head.headers["Accept-Ranges"], head.headers["Cache-Control"]) == (
        200,
        "none",
        "no-store",
    )
    for headers, status in (
        ({"If-None-Match": head.headers["ETag"]}, 304),
        ({"If-Match": '"another"'}, 412),
        ({"Range": "bytes=5000-"}, 416),
        ({"Want-Max-Size": "10"}, 412),
    ):
        assert service.ask("GET", path, headers=headers).status == status
    assert used(service, path, Range="bytes=0-9")
    assert used(service, path, Range="bytes=10-")
    assert not used(service, path, Range="bytes=10-")


def test_empty_files_count_too(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(b""), downloads=1)
    assert [used(service, path), used(service, path)] == [True, False]


def test_a_use_that_came_to_nothing_is_given_back(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA), downloads=1)
    aside = [each.rename(each.with_name(f"{each.name}.aside")) for each in service.fragments()]
    try:
        assert service.ask("GET", path).status in (502, 503)
    finally:
        for each in aside:
            each.rename(each.with_name(each.name.removesuffix(".aside")))
    assert [used(service, path), used(service, path)] == [True, False]


def test_two_services_and_twenty_clients_use_five_downloads_exactly(
    service: TestService, alice: User
) -> None:
    path = link(alice, alice.put(DATA), downloads=5)
    with closing(create_app(service.config)) as app, listening(app, service.config) as address:
        both = (service, HttpAddress(*address))
        with ThreadPoolExecutor(20) as together:
            answers = list(together.map(lambda n: both[n % 2].ask("GET", path), range(20)))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [403] * 15
    assert all(answer.body == DATA for answer in answers if answer.status == 200)


def test_one_that_is_not_counted_needs_no_statement_of_its_own(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(DATA))
    with statements_for_requests(service) as asked:
        for _ in range(5):
            assert service.ask("GET", path).status == 200
    assert asked == ["file_seen"] * 5


# --- the audit log --------------------------------------------------------------------------------


def test_made_used_and_refused_are_in_the_audit_log(
    service: TestService, alice: User, tmp_path: Path
) -> None:
    file = tmp_path / "audit.log"
    config = replace(service.config, audit=AuditConfig(file=str(file)))
    uuid = alice.put(DATA)
    with closing(create_app(config)) as app, listening(app, config) as address:
        http = HttpAddress(*address)
        headers = {"Authorization": f"Bearer {alice.token}"}
        path = path_of(http.ask("POST", f"/files/{uuid}/links", b'{"downloads": 1}', headers).text)
        for _ in range(2):
            http.ask("GET", path)
        http.ask("GET", f"/download/{uuid}?link=forged")
        http.ask("GET", f"/download/{uuid}", headers=headers)
    lines = [json.loads(line) for line in file.read_text().splitlines()][1:]
    who = f"token {alice.id} of alice"
    assert [(each["action"], each["object"], each["outcome"]) for each in lines] == [
        ("link.download", uuid, "allow"),
        ("download", uuid, "allow"),
        ("download", uuid, "deny"),
        ("download", "", "deny"),
    ]
    assert lines[0]["who"].startswith(who)
    assert lines[1]["who"].startswith(f"a link of {who}")
    assert "used as often" in lines[2]["why"]
    assert (lines[3]["who"], lines[3]["why"]) == ("127.0.0.1", NOT_GOOD)
    assert text_of(path) not in file.read_text()
    assert [report.wrong for report in verify([file])] == [[]]
