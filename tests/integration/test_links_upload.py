"""Links by which somebody without a token sends files: they are his who made the link, and within its limits."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.callers import CallerMatch
from distfs.config.settings import AuditConfig
from distfs.http_app import create_app
from distfs.limits.tally import Held
from distfs.model import Policy
from tests.contract.litter import eventually
from tests.forms import FORM, file_part, form
from tests.integration.guarded import User, alice, names, service, soon, tokens_of, user
from tests.integration.test_links import path_of, refused, text_of
from tests.service import Answer, HttpAddress, TestService, listening

__all__ = ["alice", "service"]


@pytest.fixture(autouse=True)
def nobody_has_failed(service: TestService) -> Iterator[None]:
    yield
    service.app.services.door.failures.forgive()


def invitation(who: User, **asked: Any) -> str:
    """What follows the path of an upload."""
    answer = who.ask("POST", "/links", json.dumps(asked).encode())
    assert answer.status == 201, answer.text
    path = path_of(answer.text)
    assert path.startswith("/upload?link=")
    return f"?link={text_of(path)}"


def send(to: HttpAddress, link: str, data: bytes = b"x", name: str = "/a", **headers: str) -> Answer:
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    return to.ask("PUT", f"/upload{name}{link}", data, given)


def test_somebody_without_a_token_sends_one_file(service: TestService, alice: User) -> None:
    link = invitation(alice)
    answer = send(service, link, b"theirs", Accept="application/json")
    assert answer.status == 201, answer.text
    told = json.loads(answer.body)
    assert "owner" not in told
    assert (told["name"], told["visibility"]) == ("a", "private")
    facts = json.loads(alice.ask("GET", f"/files/{told['uuid']}").body)
    assert facts["owner"].startswith("alice")
    assert alice.ask("GET", told["download"]).body == b"theirs"
    assert service.ask("GET", told["download"]).status == 401
    refused(service.ask("GET", f"{told['download']}{link}"), "this link only takes a file")
    refused(send(service, link), "used as often as it may be")


def test_by_a_form_too_one_a_request(service: TestService, alice: User) -> None:
    link = invitation(alice, files=2)
    two = form(file_part("a", b"1"), file_part("b", b"2"))
    refused(service.ask("POST", f"/upload{link}", two, FORM), "takes one file a request")
    for _ in range(2):  # which did not count
        answer = service.ask("POST", f"/upload{link}", form(file_part("a", b"1")), FORM)
        assert answer.status == 201, answer.text
        assert alice.ask("GET", f"/download/{answer.text.strip()}").body == b"1"
    refused(service.ask("POST", f"/upload{link}", form(file_part("a", b"1")), FORM), "used as often")


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Site": "same-origin"}


def test_a_browser_that_opens_it_has_a_form_and_is_told_what_became_of_it(
    service: TestService, alice: User
) -> None:
    link = invitation(alice, max_size="2MB")
    page = service.ask("GET", f"/upload{link}", headers=BROWSER)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "of at most 1.9 MiB" in page.text
    assert "<script" not in page.text
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; form-action 'self';")
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert page.headers["Cache-Control"] == "no-store"
    assert service.ask("GET", f"/upload{link}").status == 200, "to look at it is no use"
    sent = {**BROWSER, **FORM, "Origin": f"http://127.0.0.1:{service.port}"}
    body = form(file_part("<i>a&b.txt", b"theirs"))
    told = service.ask("POST", f"/upload{link}", body, sent)
    assert (told.status, told.headers["Content-Type"]) == (201, "text/html; charset=utf-8"), told.text
    assert "&lt;i&gt;a&amp;b.txt is stored: 6 bytes" in told.text
    assert len(alice.listed()) == 1
    refused(service.ask("POST", f"/upload{link}", body, sent), "used as often as it may be")


def test_who_has_no_link_has_no_form(service: TestService, alice: User) -> None:
    assert service.ask("GET", "/upload").status == 401
    answer = alice.ask("GET", "/upload")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST, PUT")
    to_download = path_of(alice.ask("POST", f"/files/{alice.put()}/links", b"{}").text)
    refused(service.ask("GET", f"/upload?link={text_of(to_download)}"), "this link only downloads one file")
    refused(service.ask("GET", "/upload?link=x"), "this link is not good")


def test_only_who_may_upload_makes_one(service: TestService) -> None:
    reader = user(service, f"reader{next(names)}", ["download", "list", "delete"])
    assert reader.ask("POST", "/links", b"{}").status == 403
    assert service.ask("POST", "/links", b"{}").status == 401


def test_a_file_has_a_size_at_most(service: TestService, alice: User) -> None:
    link = invitation(alice, max_size=1000)
    for way in ("raw", "chunked", "form"):
        data = bytes(1001)
        if way == "form":
            answer = service.ask("POST", f"/upload{link}", form(file_part("a", data)), FORM)
        else:
            answer = service.ask("PUT", f"/upload/a{link}", iter([data]) if way == "chunked" else data)
        assert answer.status == 413, answer.text
    announced = service.config.http.max_form_overhead + 1001
    assert send(service, link, bytes(announced)).status == 413
    assert send(service, link, bytes(1000)).status == 201
    small = user(service, f"small{next(names)}", max_file_size=10)
    assert send(service, invitation(small, max_size=1000), bytes(11)).status == 413


def test_quota_and_end_of_its_maker_hold(service: TestService) -> None:
    one = user(service, f"quota{next(names)}", quota=100)
    link = invitation(one, files=2)
    assert send(service, link, bytes(60)).status == 201
    assert send(service, link, bytes(60)).status == 507
    assert send(service, link, bytes(40)).status == 201
    link = invitation(one, files=0)
    assert send(service, link, b"").status == 201
    tokens_of(service).revoke(one.id, soon())
    eventually(lambda: send(service, link, b"").status in (403, 429), "within a second")


@pytest.fixture
def archiving(service: TestService) -> Iterator[TestService]:
    """A service beside the other, with one more policy."""
    storage = replace(service.config.storage, policies={"default": Policy(1, 1), "archive": Policy(1, 2)})
    config = replace(service.config, storage=storage)
    with closing(create_app(config)) as app, listening(app, config) as (host, port):
        yield TestService(host, port, app, config, service.folders)


def test_its_policy_holds(archiving: TestService) -> None:
    alice = user(archiving, f"alice{next(names)}")
    link = invitation(alice, files=0, policy="archive")
    uuid = send(archiving, link).text.strip()
    assert json.loads(alice.ask("GET", f"/files/{uuid}").body)["policy"] == str(Policy(1, 2))
    assert send(archiving, f"{link}&policy=archive").status == 201
    for answer in (
        send(archiving, f"{link}&policy=default"),
        send(archiving, link, X_Distfs_Policy="default"),
        send(archiving, f"{invitation(alice)}&policy=archive"),
    ):
        refused(answer, "name no policy")
    refused(send(archiving, f"{link}&visibility=public"), "private to who made it")
    refused(send(archiving, link, X_Distfs_Visibility="public"), "private to who made it")
    assert alice.ask("POST", "/links", b'{"policy": "none"}').status == 400
    bound = user(archiving, f"bound{next(names)}", policies=["archive"])
    assert bound.ask("POST", "/links", b"{}").status == 403
    assert send(archiving, invitation(bound, policy="archive")).status == 201


def test_uploads_at_once_are_those_of_the_token(service: TestService) -> None:
    one = user(service, f"busy{next(names)}", max_uploads=1)
    link = invitation(one, files=0)
    tally = service.app.services.admission.callers.tally
    held = Held("uploads by rule", str(CallerMatch.of_token(str(one.id))))
    go_on, begun = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield bytes(200_000)  # more than is received before a request is served
        begun.set()
        go_on.wait(60)
        yield b"y"

    with ThreadPoolExecutor(1) as other:
        first = other.submit(service.ask, "PUT", f"/upload/a{link}", slowly())
        begun.wait(60)
        try:
            eventually(lambda: tally.total(held) == 1, "the first one is served")
            assert send(service, link).status == 429
        finally:
            go_on.set()
        assert first.result().status == 201
    assert send(service, link).status == 201


def test_an_upload_of_which_nothing_was_stored_is_given_back(service: TestService, alice: User) -> None:
    link = invitation(alice)
    connection = service.connect()
    connection.putrequest("PUT", f"/upload/a{link}")
    connection.putheader("Content-Length", "2000000")
    connection.endheaders()
    connection.send(bytes(1_500_000))
    connection.close()
    assert send(
        service, link, Repr_Digest="sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"
    ).status in (400, 403)
    eventually(lambda: send(service, link).status == 201, "the first one is given up")
    refused(send(service, link), "used as often")


def test_two_services_take_as_many_files_as_the_link_says(service: TestService, alice: User) -> None:
    link = invitation(alice, files=5)
    with closing(create_app(service.config)) as app, listening(app, service.config) as address:
        both = (service, HttpAddress(*address))
        with ThreadPoolExecutor(20) as together:
            answers = list(together.map(lambda n: send(both[n % 2], link), range(20)))
    assert sorted(answer.status for answer in answers) == [201] * 5 + [403] * 15
    assert alice.listed() == {answer.text.strip() for answer in answers if answer.status == 201}


def test_made_and_used_are_in_the_audit_log(service: TestService, alice: User, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    config = replace(service.config, audit=AuditConfig(file=str(file)))
    with closing(create_app(config)) as app, listening(app, config) as address:
        http = HttpAddress(*address)
        headers = {"Authorization": f"Bearer {alice.token}"}
        link = f"?link={text_of(path_of(http.ask('POST', '/links', b'{}', headers).text))}"
        uuid = send(http, link).text.strip()
        send(http, link)
    lines = [json.loads(line) for line in file.read_text().splitlines()][1:]
    assert [(each["action"], each["outcome"]) for each in lines] == [
        ("link.upload", "allow"),
        ("upload", "allow"),
        ("upload", "deny"),
    ]
    assert lines[1]["object"] == uuid
    assert lines[1]["who"].startswith(f"a link of token {alice.id}")
    assert "used as often" in lines[2]["why"]
