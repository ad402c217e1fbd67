"""One link is revoked: it opens nothing from then on, and every other one goes on."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

from distfs.access.link import NOT_GOOD, NOT_YOURS, Link, seal, unseal
from distfs.config.settings import AuditConfig
from distfs.http_app import create_app
from tests.contract.litter import eventually
from tests.integration.guarded import User, admin, alice, bob, service, soon, tokens_of, user
from tests.integration.test_links import link, nobody_has_failed, path_of, refused, text_of
from tests.postgres import run_sql
from tests.service import Answer, HttpAddress, TestService, listening

__all__ = ["admin", "alice", "bob", "nobody_has_failed", "service"]

REVOKED = "this link was revoked"


def revoke(who: User, link: str) -> Answer:
    return who.ask("POST", "/links/revoke", json.dumps({"link": link}).encode())


def test_who_made_it_revokes_it_and_others_go_on(service: TestService, alice: User) -> None:
    uuid = alice.put(b"bytes")
    first, second = link(alice, uuid), link(alice, uuid, downloads=3)
    assert service.ask("GET", first).status == 200
    assert revoke(alice, f"http://files.example{first}").status == 204
    eventually(lambda: service.ask("GET", first).status == 403, "it opens nothing")
    refused(service.ask("GET", first), REVOKED)
    assert service.ask("GET", second).body == b"bytes"
    assert revoke(alice, text_of(second)).status == 204, "what is signed is enough"
    assert revoke(alice, second).status == 204, "again changes nothing"
    named = f"http://files.example/download?uuid={uuid}&link={text_of(link(alice, uuid))}&inline=1"
    assert revoke(alice, named).status == 204, "wherever it is in the URL"
    eventually(lambda: service.ask("GET", second).status == 403, "nor does that one")
    assert alice.ask("GET", f"/download/{uuid}").body == b"bytes"
    assert service.ask("GET", link(alice, uuid)).status == 200


def test_the_same_is_asked_for_again_and_is_another_link(service: TestService, alice: User) -> None:
    uuid = alice.put()
    first, second = (link(alice, uuid, expires="2100-01-01T00:00:00Z") for _ in range(2))
    assert first != second
    assert revoke(alice, first).status == 204
    eventually(lambda: service.ask("GET", first).status == 403, "it opens nothing")
    assert service.ask("GET", second).status == 200
    assert service.ask("GET", link(alice, uuid, expires="2100-01-01T00:00:00Z")).status == 200


def test_a_link_for_uploads_takes_no_more(service: TestService, alice: User) -> None:
    answer = alice.ask("POST", "/links", b'{"files": 0}')
    path = path_of(answer.text)
    upload = path.replace("/upload?", "/upload/a?")
    assert service.ask("PUT", upload, b"x").status == 201
    assert revoke(alice, path).status == 204
    eventually(lambda: service.ask("PUT", upload, b"x").status == 403, "it takes nothing")


def test_only_its_owner_and_administrators_do(
    service: TestService, alice: User, bob: User, admin: User
) -> None:
    uuid = alice.put()
    path = link(alice, uuid)
    refused(revoke(bob, path), NOT_YOURS)
    nobody = Link(UUID(int=7), int(time.time()) + 60, UUID(int=8))
    refused(revoke(bob, "?link=" + seal(nobody, bytes(32))), NOT_YOURS)
    assert service.ask("POST", "/links/revoke", json.dumps({"link": path}).encode()).status == 401
    assert service.ask("GET", path).status == 200
    owner = json.loads(alice.ask("GET", f"/files/{uuid}").body)["owner"]
    other = user(service, owner, ["list"])
    assert revoke(other, path).status == 204, "another token of the same owner"
    path = link(alice, alice.put())
    assert revoke(admin, path).status == 204
    eventually(lambda: service.ask("GET", path).status == 403, "it opens nothing")


def test_what_is_no_link_is_refused_and_changes_nothing(
    service: TestService, alice: User, admin: User
) -> None:
    for given in ("", "http://example/", "A" * 40, "?link=" + "A" * 2000):
        assert revoke(alice, given).status == 400
    forged = "?link=" + seal(Link(alice.id, int(time.time()) + 60, UUID(int=8)), bytes(32))
    for who in (alice, admin):
        answer = revoke(who, forged)
        assert (answer.status, "no link of this cluster" in answer.text) == (400, True)
    for body in (b"[]", b"{}", b'{"link": 1}', b'{"link": "x", "also": 1}'):
        assert alice.ask("POST", "/links/revoke", body).status == 400


def test_another_service_knows_it_too(service: TestService, alice: User) -> None:
    """Within a second, as of a token (test_tokens): it is the same look."""
    path = link(alice, alice.put(b"bytes"))
    with closing(create_app(service.config)) as app, listening(app, service.config) as address:
        other = HttpAddress(*address)
        assert other.ask("GET", path).body == b"bytes"
        assert revoke(alice, path).status == 204
        eventually(lambda: other.ask("GET", path).status == 403, "it is told there, too")
        refused(other.ask("GET", path), REVOKED)


def test_what_would_have_ended_by_itself_is_forgotten_and_so_many_are_kept(
    service: TestService, alice: User
) -> None:
    paths = [link(alice, alice.put()) for _ in range(3)]
    url = service.config.metadb.url
    assert revoke(alice, paths[0]).status == 204
    run_sql(
        url,
        "UPDATE token SET revoked_links_until = ARRAY[now() - interval '2 days'] WHERE id = :id",
        id=alice.id,
    )
    assert revoke(alice, paths[1]).status == 204
    [[kept]] = run_sql(url, "SELECT array_to_json(revoked_links) FROM token WHERE id = :id", id=alice.id)
    sealed = unseal(text_of(paths[1]))
    assert sealed is not None
    assert kept == [str(UUID(bytes=sealed.id))]
    run_sql(
        url,
        "UPDATE token SET revoked_links = array_fill(:id::uuid, ARRAY[1000]),"
        " revoked_links_until = array_fill(now(), ARRAY[1000]) WHERE id = :id",
        id=alice.id,
    )
    answer = revoke(alice, paths[2])
    assert (answer.status, "`distfs token rotate`" in answer.text) == (400, True)
    assert service.ask("GET", paths[2]).status == 200
    tokens_of(service).rotate(alice.id, 0, soon())
    eventually(lambda: NOT_GOOD in service.ask("GET", paths[2]).text, "as it says")


def test_several_at_once_are_all_revoked(service: TestService, alice: User) -> None:
    paths = [link(alice, alice.put()) for _ in range(4)]
    with ThreadPoolExecutor(4) as together:
        assert [answer.status for answer in together.map(partial(revoke, alice), paths)] == [204] * 4
    eventually(lambda: [service.ask("GET", path).status for path in paths] == [403] * 4, "each opens nothing")


def test_the_audit_log_has_who_made_and_who_revoked_which(
    service: TestService, alice: User, tmp_path: Path
) -> None:
    config = replace(service.config, audit=AuditConfig(str(tmp_path / "audit.log")))
    path = link(alice, alice.put())
    with closing(create_app(config)) as app, listening(app, config) as address:
        app.services.audit.open()
        bearer = {"Authorization": f"Bearer {alice.token}"}
        uuid = alice.put()
        made = HttpAddress(*address).ask("POST", f"/files/{uuid}/links", None, bearer).text
        body = json.dumps({"link": path}).encode()
        assert HttpAddress(*address).ask("POST", "/links/revoke", body, bearer).status == 204
    lines = (tmp_path / "audit.log").read_text()
    [entry] = [each for each in map(json.loads, lines.splitlines()) if each["action"] == "link.revoke"]
    sealed = unseal(text_of(path))
    assert sealed is not None
    assert (entry["object"], entry["outcome"]) == (str(UUID(bytes=sealed.id)), "allow")
    assert str(alice.id) in entry["who"]
    [entry] = [each for each in map(json.loads, lines.splitlines()) if each["action"] == "link.download"]
    sealed = unseal(text_of(path_of(made)))
    assert sealed is not None
    assert (entry["object"], entry["change"]) == (uuid, f"link {UUID(bytes=sealed.id)}"), (
        "as revoking names it"
    )
    assert text_of(path) not in lines
