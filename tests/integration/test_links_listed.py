"""Links are listed until they end, with what became of them, and revoked by what the list shows."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

from distfs.access.link import NOT_YOURS, Sealed, unseal
from tests.contract.litter import eventually
from tests.integration.guarded import User, admin, alice, bob, service, soon, tokens_of, user
from tests.integration.test_links import link, nobody_has_failed, refused, text_of
from tests.integration.test_links_revoked import REVOKED, revoke
from tests.postgres import run_sql
from tests.service import TestService

__all__ = ["admin", "alice", "bob", "nobody_has_failed", "service"]


def sealed_of(path: str) -> Sealed:
    found = unseal(text_of(path))
    assert found is not None
    return found


def id_of(path: str) -> str:
    return str(UUID(bytes=sealed_of(path).id))


def listed(who: User, query: str = "?limit=1000") -> list[dict[str, Any]]:
    answer = who.ask("GET", f"/links{query}")
    assert answer.status == 200, answer.text
    found: list[dict[str, Any]] = json.loads(answer.body)["links"]
    return found


def states(who: User) -> dict[str, str]:
    return {each["id"]: each["state"] for each in listed(who)}


def test_a_link_is_listed_with_what_it_is_for_and_without_what_opens_it(
    service: TestService, alice: User
) -> None:
    uuid = alice.put(b"0123456789")
    asked = {"downloads": 3, "range": "2-5", "network": "127.0.0.0/8", "name": "n.txt"}
    path = link(alice, uuid, expires="2099-01-01T00:00:00Z", **asked)
    assert service.ask("GET", path, headers={"Range": "bytes=2-5"}).body == b"2345"
    upload = alice.ask("POST", "/links", b'{"max_size": "1MB", "files": 0}', Accept="application/json")
    found = {each["for"]: each for each in listed(alice)}
    assert len(found) == 2
    one = found["download"]
    assert (one["file"], one["state"], one["used"], one["uses"]) == (uuid, "good", 1, 3)
    assert (one["range"], one["network"], one["name"]) == ("2-5", "127.0.0.0/8", "n.txt")
    assert (one["expires_at"], one["token"]) == ("2099-01-01T00:00:00+00:00", str(alice.id))
    assert one["owner"] == json.loads(alice.ask("GET", f"/files/{uuid}").body)["owner"]
    assert (found["upload"]["max_size"], found["upload"]["uses"]) == (1_000_000, None)
    assert found["upload"]["id"] == json.loads(upload.body)["id"]
    [[kept]] = run_sql(service.config.metadb.url, "SELECT string_agg(link::text, ' ') FROM link")
    told = kept + alice.ask("GET", "/links").text
    for made in (sealed_of(path), sealed_of(json.loads(upload.body)["url"])):
        assert made.mac[16:].hex() not in told
        assert made.text not in told


def test_the_list_says_what_became_of_each(service: TestService, alice: User) -> None:
    uuid = alice.put(b"bytes")
    once, gone, good = link(alice, uuid, downloads=1), link(alice, uuid), link(alice, uuid)
    assert service.ask("GET", once).status == 200
    assert revoke(alice, gone).status == 204
    ids = [id_of(path) for path in (once, gone, good)]
    assert [states(alice)[id] for id in ids] == ["used up", "revoked", "good"]
    tokens_of(service).rotate(alice.id, 3600, soon())
    rotated = User(service, alice.id, alice.token)
    assert [states(rotated)[id] for id in ids] == ["used up", "revoked", "good"], "the old text still holds"
    owner = listed(alice)[0]["owner"]
    other = user(service, owner, ["list"])
    tokens_of(service).revoke(alice.id, soon())
    assert [states(other)[id] for id in ids] == ["its token or its key is gone"] * 3


def test_links_of_a_token_that_was_rotated_without_patience_have_ended(
    service: TestService, alice: User
) -> None:
    path = link(alice, alice.put())
    other = user(service, listed(alice)[0]["owner"], ["list"])
    tokens_of(service).rotate(alice.id, 0, soon())
    assert states(other) == {id_of(path): "its token or its key is gone"}


def test_one_that_has_expired_is_listed_no_more(service: TestService, alice: User) -> None:
    path = link(alice, alice.put(), expires_in="1s")
    eventually(lambda: listed(alice) == [], "its end comes")
    assert service.ask("GET", path).status == 403


def test_an_owner_sees_their_own_and_an_administrator_all(
    service: TestService, alice: User, bob: User, admin: User
) -> None:
    hers, his = id_of(link(alice, alice.put())), id_of(link(bob, bob.put()))
    assert (set(states(alice)), set(states(bob))) == ({hers}, {his})
    assert {hers, his} <= set(states(admin))
    assert user(service, listed(alice)[0]["owner"], ["upload"]).ask("GET", "/links").status == 403
    assert service.ask("GET", "/links").status == 401
    assert service.ask("GET", f"/links?link={text_of(link(alice, alice.put()))}").status == 403


def test_the_list_comes_in_pages(alice: User) -> None:
    uuid = alice.put()
    made = sorted(id_of(link(alice, uuid)) for _ in range(5))
    seen: list[str] = []
    after = ""
    while True:
        answer = json.loads(alice.ask("GET", f"/links?limit=2{after}").body)
        seen += [each["id"] for each in answer["links"]]
        if answer["next"] is None:
            break
        after = f"&after={answer['next']}"
    assert seen == made
    for wrong in ("?limit=0", "?limit=1001", "?limit=x", "?after=x"):
        assert alice.ask("GET", f"/links{wrong}").status == 400
    assert "'x' is not a link's id: `GET /links` shows them" in alice.ask("GET", "/links?after=x").text
    assert "a list has no 'afer'; it has: after, limit" in alice.ask("GET", "/links?afer=1").text


def test_one_is_revoked_by_its_id(service: TestService, alice: User, bob: User, admin: User) -> None:
    uuid = alice.put(b"bytes")
    first, second, third = link(alice, uuid), link(alice, uuid, downloads=3), link(alice, uuid)
    refused(revoke(bob, id_of(first)), NOT_YOURS)
    refused(revoke(bob, str(uuid4())), NOT_YOURS)
    assert service.ask("GET", first).status == 200
    assert (revoke(alice, id_of(first)).status, revoke(admin, id_of(second)).status) == (204, 204)
    for path in (first, second):
        eventually(lambda path=path: service.ask("GET", path).status == 403, "it opens nothing")  # type: ignore[misc]
        refused(service.ask("GET", path), REVOKED)
    assert service.ask("GET", third).body == b"bytes"
    answer = revoke(admin, str(uuid4()))
    assert (answer.status, "no link of this cluster" in answer.text) == (400, True)


def test_its_id_and_what_the_row_says_open_nothing(service: TestService, alice: User) -> None:
    """Who reads MetaDB's rows, without the keys, has half of what signs a link."""
    uuid = alice.put()
    made = sealed_of(link(alice, uuid))
    [[body]] = run_sql(
        service.config.metadb.url,
        "SELECT encode(body, 'hex') FROM link WHERE sealed_id = :id",
        id=UUID(bytes=made.id),
    )
    assert bytes.fromhex(body) == made.body
    forged = made._replace(mac=made.id + bytes(16))
    assert service.ask("GET", f"/download/{uuid}?link={forged.text}").status == 403
    assert revoke(alice, f"?link={forged.text}").status == 400
    assert states(alice)[id_of(f"?link={made.text}")] == "good"


def test_a_link_of_before_is_counted_as_ever(service: TestService, alice: User) -> None:
    """The release before kept a row of those that are counted alone, and without what it says."""
    path = link(alice, alice.put(), downloads=2)
    run_sql(
        service.config.metadb.url,
        "UPDATE link SET sealed_id = NULL, owner = NULL, token_id = NULL, body = NULL WHERE sealed_id = :id",
        id=UUID(bytes=sealed_of(path).id),
    )
    assert listed(alice) == []
    assert [service.ask("GET", path).status for _ in range(3)] == [200, 200, 403]
    assert revoke(alice, path).status == 204
