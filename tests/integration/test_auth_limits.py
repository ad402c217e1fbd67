"""What one token may have while auth is on, and what wrong tokens cost."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from distfs.access import directory
from distfs.access.db import TokenDB
from distfs.access.terms import read_terms
from distfs.access.token import new_token
from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import Unavailable
from distfs.http_app import create_app
from distfs.meta import MetaDB
from distfs.metadb.link import Link
from distfs.metadb.transactions import _GRACE_S
from tests.contract.litter import eventually
from tests.integration.guarded import USER, User, alice, guarded_config, names, service, soon, user
from tests.integration.meta_proxy import Cut, Proxy, proxied_url
from tests.service import Answer, HttpAddress, TestService, listening

__all__ = ["alice", "service"]


# --- quota ----------------------------------------------------------------------------------------


def test_an_owner_has_no_more_than_the_quota(service: TestService) -> None:
    name = f"small{next(names)}"
    first, second = user(service, name, quota=1000), user(service, name, quota=1000)
    uuid = first.put(b"x" * 600)
    answer = second.ask("PUT", "/upload/n", b"x" * 401)
    assert answer.status == 507, answer.text
    assert "600 bytes of 1000 bytes" in answer.text
    second.put(b"x" * 400)
    assert first.ask("PUT", "/upload/n", b"x").status == 507
    assert first.ask("DELETE", f"/files/{uuid}").status == 204
    first.put(b"x" * 600)
    assert user(service, name, [*USER]).put(b"x" * 5000), "a token without one counts, and is not bound by it"
    assert first.ask("PUT", "/upload/n", b"").status == 507


# --- limits ---------------------------------------------------------------------------------------


def test_a_token_s_own_limits_hold(service: TestService) -> None:
    small = user(service, "small", max_file_size=1000)
    assert small.ask("PUT", "/upload/n", bytes(1000)).status == 201
    too_large = small.ask("PUT", "/upload/n", bytes(service.config.http.max_form_overhead + 1001))
    assert (too_large.status, "max_file_size" in too_large.text) == (413, True)
    bound = user(service, "bound", policies=["archive"])
    answer = bound.ask("PUT", "/upload/n", b"x")
    assert (answer.status, "may have the policies archive" in answer.text) == (403, True)
    assert user(service, "bound", policies=["default", "archive"]).put()


def test_a_large_upload_over_the_quota_is_refused_before_it_is_sent(service: TestService) -> None:
    one = user(service, f"large{next(names)}", quota=100)
    connection = service.connect()
    connection.putrequest("PUT", "/upload/n")
    for name, value in (("Authorization", f"Bearer {one.token}"), ("Content-Length", "2900000")):
        connection.putheader(name, value)
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 507
    assert b"and no room for 2.8 MiB more" in answer.read()
    connection.close()


# --- who shows what is no token, again and again --------------------------------------------------


def test_a_wrong_checksum_costs_no_statement(service: TestService) -> None:
    tokens = service.app.services.door.tokens
    right = new_token()
    wrong = [right[:-1] + digit for digit in "abcdefghij" if digit != right[-1]]
    asked = tokens.asked
    for each in wrong * 10:
        answer = service.ask("GET", "/files", headers={"Authorization": f"Bearer {each}"})
        assert answer.status in (401, 429)
    assert tokens.asked == asked


def test_who_is_wrong_too_often_waits_longer_each_time_and_a_right_token_never(
    service: TestService, alice: User
) -> None:
    failures = service.app.services.door.failures
    waits: list[int] = []
    while len(waits) < 3:
        answer = service.ask("GET", "/files", headers={"Authorization": f"Bearer {new_token()}"})
        if answer.status == 429:
            assert "too many tokens from 127.0.0.1 were not good" in answer.text
            waits.append(int(answer.headers["Retry-After"]))
        assert alice.ask("GET", "/files").status == 200
    assert waits == sorted(waits)
    newcomer = user(service, f"new{next(names)}")
    assert newcomer.ask("GET", "/files").status == 200, "one that nobody has seen before"
    assert failures.total >= 10


def test_a_storm_of_wrong_tokens_stops_no_right_one(service: TestService, alice: User) -> None:
    """Each is a token as far as anybody can tell without asking; MetaDB is asked for many of them at once. On a
    connection each: of one that is kept nothing would be read soon."""
    uuid, tokens = alice.put(b"hers"), service.app.services.door.tokens
    stop = threading.Event()
    told: Counter[int] = Counter()

    def storm() -> None:
        while not stop.is_set():
            answer = service.ask("GET", "/files", headers={"Authorization": f"Bearer {new_token()}"})
            told[answer.status] += 1

    asked = tokens.asked
    with ThreadPoolExecutor(16) as together:
        running = [together.submit(storm) for _ in range(16)]
        try:
            for _ in range(20):
                assert alice.ask("GET", f"/download/{uuid}").body == b"hers"
                assert user(service, "another").ask("GET", "/files").status == 200
            eventually(lambda: told.total() > 200, "there was a storm")
        finally:
            stop.set()
        for each in running:
            each.result()
    assert set(told) <= {401, 429}
    assert tokens.asked - asked < told.total() / 2


# --- MetaDB is away -------------------------------------------------------------------------------


def test_while_metadb_is_away_who_is_known_is_answered_and_who_is_not_is_told_to_come_again(
    proxy: Proxy, metadb_url: str
) -> None:
    config = guarded_config(proxied_url(proxy, metadb_url), grace=3600.0)
    config = replace(config, metadb=replace(config.metadb, patience=Seconds(1)))
    terms = read_terms({"owner": "admin", "scopes": ["admin"]})
    with (
        closing(create_app(config)) as app,
        listening(app, config) as (host, port),
        closing(MetaDB(MetaDBConfig(url=metadb_url))) as beside,
    ):
        http, db, tokens = HttpAddress(host, port), TokenDB(beside), app.services.door.tokens
        _, known = db.create(terms, soon())

        def status(token: str) -> Answer:
            return http.ask("GET", "/status", headers={"Authorization": f"Bearer {token}"})

        assert status(known).status == 200
        proxy.cut("FROM token WHERE hash", Cut.BEFORE, refuse_afterwards=True)
        with pytest.raises(Unavailable):
            app.services.meta.read("has_hash", Deadline(2), hash=b"any")
        _, unknown = db.create(terms, soon())
        tokens._seen = tokens._seen._replace(
            as_of=tokens._seen.as_of - 10
        )  # as if so many seconds had passed
        assert status(known).status == 200, "for as long as token_grace"
        for stranger in (unknown, new_token()):
            answer = status(stranger)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert "whether the token is good" in answer.text
        assert http.ask("GET", "/status").status == 401
        assert http.ask("GET", "/healthz").status == 200
        proxy.refuses = False
        eventually(lambda: status(unknown).status == 200, "it can be told again")
        assert status(known).status == 200


def test_who_waited_for_a_token_in_vain_waits_the_less_for_what_is_asked_then(
    proxy: Proxy, metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MetaDB that hangs is a 503 no later with a token than without."""
    looks_s, limits = 0.3, list[float]()
    monkeypatch.setattr(directory, "_ASK_LIMIT_S", looks_s)
    config = guarded_config(proxied_url(proxy, metadb_url), grace=3600.0)
    config = replace(config, metadb=replace(config.metadb, statement_timeout=Seconds(1)))
    with (
        closing(create_app(config)) as app,
        listening(app, config) as (host, port),
        closing(MetaDB(MetaDBConfig(url=metadb_url))) as beside,
    ):
        http, tokens, pool = HttpAddress(host, port), app.services.door.tokens, app.services.meta._pool
        _, token = TokenDB(beside).create(read_terms({"owner": "admin", "scopes": ["admin"]}), soon())
        bearer = {"Authorization": f"Bearer {token}"}
        assert http.ask("GET", "/files", headers=bearer).status == 200
        take = pool.take

        def noting(deadline: Deadline, *, at_once: bool = False) -> Link:
            limits.append(deadline.seconds)
            return take(deadline, at_once=at_once)

        monkeypatch.setattr(pool, "take", noting)
        tokens._seen = tokens._seen._replace(as_of=tokens._seen.as_of - 10)
        with proxy.hanging():
            assert http.ask("GET", "/files", headers=bearer).status == 503
        budget = config.metadb.statement_timeout + _GRACE_S
        looked, *asked = limits
        assert looked <= looks_s
        assert asked
        assert max(asked) <= budget - looks_s
        limits.clear()
        tokens._seen = tokens._seen._replace(as_of=tokens._seen.as_of - 10)
        eventually(lambda: http.ask("GET", "/files", headers=bearer).status == 200, "it is there again")
        eventually(lambda: http.ask("GET", "/files", headers=bearer).status == 200, "and again")
        assert limits[-1] == budget, "and has all its time again"
