"""Tokens in MetaDB, and as a service knows them: exact while MetaDB answers, and for a while when it does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from distfs.access.db import TokenDB
from distfs.access.directory import FRESH_S, Tokens
from distfs.access.terms import of_first, read_terms
from distfs.access.token import hash_of, new_token
from distfs.config.settings import CallerRule, MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import NotFound, OverQuota, Refused, Unavailable
from distfs.meta import MetaDB
from distfs.model import Ownership
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, register, soon
from tests.integration.meta_proxy import Cut, Proxy, proxied_url
from tests.postgres import run_sql

TERMS = read_terms({"owner": "anna", "scopes": ["upload", "download"], "cap_in": "1MiB/s"})


def digest(text: str) -> bytes:
    found = hash_of(text)
    assert found is not None
    return found


def age(tokens: Tokens, seconds: float) -> None:
    """As if so many had passed since MetaDB was asked."""
    tokens._seen = tokens._seen._replace(as_of=tokens._seen.as_of - seconds)


@pytest.fixture
def db(meta: MetaDB) -> TokenDB:
    return TokenDB(meta)


@pytest.fixture
def tokens(db: TokenDB) -> Tokens:
    return Tokens(db, grace=0.0)


# --- MetaDB ---------------------------------------------------------------------------------------


def test_a_token_is_nowhere_in_metadb_but_as_a_hash(db: TokenDB, metadb_url: str) -> None:
    _, text = db.create(TERMS, soon())
    [[row]] = run_sql(metadb_url, "SELECT row_to_json(token)::text FROM token")
    assert text not in row
    assert digest(text).hex() in row


def test_the_first_token_is_made_once_by_however_many(db: TokenDB) -> None:
    def make(_: int) -> bool:
        try:
            db.create(of_first(), soon(), first=True)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(8) as together:
        assert sum(together.map(make, range(8))) == 1
    [token] = db.listed(soon())
    assert (token.terms.owner, token.terms.scopes) == ("admin", ("admin",))
    db.revoke(token.id, soon())
    with pytest.raises(Refused, match="there are tokens already"):
        db.create(of_first(), soon(), first=True)


def test_changes_come_in_the_order_of_their_revisions(db: TokenDB) -> None:
    """However many change tokens at once, who has all changes up to one lacks none that is older."""
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        revision = 0
        while not done.is_set():
            for change in db.since(revision, soon()):
                if change.revision > revision:
                    seen.append(change.revision)
                    revision = change.revision

    with ThreadPoolExecutor(9) as together:
        looking = together.submit(look)
        made = [together.submit(db.create, TERMS, soon()) for _ in range(100)]
        ids = [each.result()[0] for each in made]
        [each.result() for each in [together.submit(db.revoke, id, soon()) for id in ids[::2]]]
        last = max(change.revision for change in db.since(1, soon()))
        eventually(lambda: seen[-1:] == [last], "all of it was seen")
        done.set()
        looking.result()
    assert seen == sorted(seen)
    good = {change.token.id for change in db.since(0, soon())}
    assert good == set(ids[1::2])


def test_a_change_waits_for_the_one_before_it(meta: MetaDB, db: TokenDB, metadb_url: str) -> None:
    """Else the later number could be seen first, and who has seen that would never ask for the other."""
    (first, _), (second, _) = db.create(TERMS, soon()), db.create(TERMS, soon())
    [*_, last] = db.since(0, soon())
    with ThreadPoolExecutor(1) as aside, meta._pool.link(soon()) as link:
        link.raw.run("BEGIN")
        link.raw.run("UPDATE token SET name = 'changed' WHERE id = :id", id=first)
        revoked = aside.submit(db.revoke, second, soon())
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        eventually(lambda: revoked.done() or run_sql(metadb_url, waiting) == [[1]], "the other waits")
        assert not revoked.done()
        link.raw.run("COMMIT")
        revoked.result()
    changes = [change for change in db.since(last.revision, soon()) if change.revision > last.revision]
    assert [change.token.id for change in changes] == [first, second]


def test_what_is_known_is_meant_to_be_a_second_old_at_most() -> None:
    assert FRESH_S <= 1


def test_what_is_not_there_is_not_revoked_and_not_rotated(db: TokenDB) -> None:
    id, _ = db.create(TERMS, soon())
    db.revoke(id, soon())
    for gone in (id, uuid4()):
        with pytest.raises(NotFound):
            db.revoke(gone, soon())
        with pytest.raises(NotFound):
            db.rotate(gone, 0, soon())


# --- a service's knowledge --------------------------------------------------------------------------


def test_a_token_is_good_as_soon_as_it_is_made_and_until_it_is_revoked(db: TokenDB, tokens: Tokens) -> None:
    for _ in range(3):
        id, text = db.create(TERMS, soon())
        found = tokens.find(digest(text), soon())
        assert found is not None
        assert (found.id, found.owner, found.scopes) == (id, "anna", frozenset(("upload", "download")))
        db.revoke(id, soon())
        revoked = tokens._seen.as_of
        while tokens.find(digest(text), soon()) is not None:
            pass
        assert tokens._seen.as_of > revoked
    assert tokens._seen.as_of > revoked


def test_what_is_known_is_a_second_old_at_most(db: TokenDB, tokens: Tokens) -> None:
    """Whoever is told that a token is good is told what MetaDB said less than a second before."""
    id, text = db.create(TERMS, soon())
    assert tokens.find(digest(text), soon())
    db.revoke(id, soon())
    age(tokens, FRESH_S)  # as if that second had passed
    assert tokens.find(digest(text), soon()) is None


def test_a_token_that_is_known_asks_nothing(db: TokenDB, tokens: Tokens) -> None:
    _, text = db.create(TERMS, soon())
    tokens.find(digest(text), soon())
    while True:
        asked, as_of = tokens.asked, tokens._seen.as_of
        for _ in range(1000):
            assert tokens.find(digest(text), soon())
        if tokens._seen.as_of == as_of:  # else it took longer than half a second
            assert tokens.asked == asked
            return


def test_however_many_unknown_ones_are_looked_for_together(db: TokenDB, tokens: Tokens) -> None:
    """And a new one among them is found."""
    unknown = [digest(new_token()) for _ in range(200)]
    with ThreadPoolExecutor(32) as together:
        found = list(together.map(lambda each: tokens.find(each, soon()), unknown))
        assert found == [None] * 200
        assert tokens.asked <= 100, "one look is for all that wait for it"
        _, text = db.create(TERMS, soon())
        rest = [together.submit(tokens.find, each, soon()) for each in unknown]
        assert tokens.find(digest(text), soon()) is not None
        assert [each.result() for each in rest] == [None] * 200


def test_a_good_token_is_found_while_others_change(db: TokenDB, tokens: Tokens) -> None:
    _, text = db.create(TERMS, soon())
    stop = threading.Event()

    def look() -> int:
        count = 0
        while not stop.wait(0.002):
            assert tokens.find(digest(text), soon()) is not None
            count += 1
        return count

    with ThreadPoolExecutor(4) as together:
        looking = [together.submit(look) for _ in range(4)]
        for _ in range(30):
            id, other = db.create(TERMS, soon())
            assert tokens.find(digest(other), soon())
            db.revoke(id, soon())
        stop.set()
        assert all(each.result() for each in looking)


def test_another_metadb_is_read_anew(db: TokenDB, tokens: Tokens, metadb_url: str) -> None:
    """As after a restore, or a standby that lags: its last change is not there."""
    _, before = db.create(TERMS, soon())
    _, gone = db.create(TERMS, soon())
    assert tokens.find(digest(gone), soon())
    run_sql(metadb_url, "DELETE FROM token WHERE hash = :hash", hash=digest(gone))
    age(tokens, FRESH_S)
    assert tokens.find(digest(gone), soon()) is None
    assert tokens.find(digest(before), soon())


def test_those_that_are_kept_to_a_pace_are_told_when_they_change(db: TokenDB) -> None:
    told: list[set[CallerRule]] = []
    tokens = Tokens(db, 0.0, lambda rules: told.append(set(rules)))
    id, text = db.create(TERMS, soon())
    _, free = db.create(read_terms({"owner": "b", "scopes": ["list"]}), soon())
    assert tokens.find(digest(text), soon())
    assert told == [{TERMS.rule(id)}]
    tokens.find(digest(free), soon())
    db.revoke(id, soon())
    while tokens.find(digest(text), soon()):
        pass
    assert told == [{TERMS.rule(id)}, set()]


def test_a_hundred_pages_of_tokens_are_known(
    db: TokenDB, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.access.db._PAGE", 2)
    made = [db.create(TERMS, soon()) for _ in range(101)]
    assert {found.id for _, text in made if (found := tokens.find(digest(text), soon()))} == {
        id for id, _ in made
    }
    assert len(tokens) == 101


# --- MetaDB is away ---------------------------------------------------------------------------------


@pytest.fixture
def through(proxy: Proxy, metadb_url: str) -> Iterator[MetaDB]:
    config = MetaDBConfig(
        url=proxied_url(proxy, metadb_url), statement_timeout=Seconds(1), patience=Seconds(1)
    )
    with closing(MetaDB(config)) as meta:
        yield meta


def cut(proxy: Proxy, through: MetaDB) -> None:
    """From now on there is no MetaDB."""
    proxy.cut("FROM token WHERE hash", Cut.BEFORE, refuse_afterwards=True)
    with pytest.raises(Unavailable):
        through.read("has_hash", Deadline(2), hash=b"any")


def test_while_metadb_is_away_known_tokens_go_on_and_others_cannot_be_told(
    through: MetaDB, db: TokenDB, proxy: Proxy
) -> None:
    tokens = Tokens(TokenDB(through), grace=3600.0)
    _, text = db.create(TERMS, soon())
    id, revoked = db.create(TERMS, soon())
    assert tokens.find(digest(text), soon())
    assert tokens.find(digest(revoked), soon())
    cut(proxy, through)
    age(tokens, FRESH_S)
    assert tokens.find(digest(text), soon())
    for unknown in (new_token(), new_token()):
        with pytest.raises(Unavailable, match="MetaDB cannot say"):
            tokens.find(digest(unknown), soon())
    db.revoke(id, soon())
    assert tokens.find(digest(revoked), soon()), "nobody can know"
    proxy.refuses = False
    eventually(lambda: tokens.find(digest(revoked), soon()) is None, "it is known again")
    assert tokens.find(digest(text), soon())


def test_the_grace_ends(through: MetaDB, db: TokenDB, proxy: Proxy) -> None:
    tokens = Tokens(TokenDB(through), grace=100.0)
    _, text = db.create(TERMS, soon())
    assert tokens.find(digest(text), soon())
    cut(proxy, through)
    age(tokens, 50)
    assert tokens.find(digest(text), soon())
    age(tokens, 50)  # as if so many seconds had passed
    with pytest.raises(Unavailable):
        tokens.find(digest(text), soon())


def test_a_token_that_expires_meanwhile_has_no_grace(through: MetaDB, db: TokenDB, proxy: Proxy) -> None:
    tokens = Tokens(TokenDB(through), grace=3600.0)
    _, text = db.create(replace(TERMS, expires=Seconds(1)), soon())
    assert tokens.find(digest(text), soon())
    cut(proxy, through)
    while tokens.find(digest(text), soon()):
        pass
    age(tokens, FRESH_S)
    assert tokens.find(digest(text), soon()) is None


# --- quota ------------------------------------------------------------------------------------------


def owned(url: str, owner: str) -> tuple[int, int]:
    """(what is counted, what is there)."""
    [[counted]] = run_sql(url, "SELECT bytes FROM owned WHERE owner = :owner", owner=owner)
    [[there]] = run_sql(
        url, "SELECT coalesce(sum(size), 0)::bigint FROM file WHERE owner = :owner", owner=owner
    )
    return counted, there


def test_no_two_commits_together_pass_a_quota(meta: MetaDB, db: TokenDB, metadb_url: str) -> None:
    register(meta, 2)
    db.create(read_terms({"owner": "anna", "scopes": ["upload"], "quota": 10_000}), soon())
    whose = Ownership("anna", "private", 10_000)

    def commit(_: int) -> UUID | None:
        try:
            [file] = meta.commit_files([new_file((1000,))], soon(), whose)
        except OverQuota:
            return None
        return file.id

    with ThreadPoolExecutor(8) as together:
        kept = [id for id in together.map(commit, range(40)) if id]
    assert len(kept) == 10
    assert owned(metadb_url, "anna") == (10_000, 10_000)
    meta.delete_file(kept[0], soon())
    assert owned(metadb_url, "anna") == (9_000, 9_000)
    assert commit(0)
    meta.undelete_file(kept[0], soon())
    assert owned(metadb_url, "anna") == (11_000, 11_000), "an operator may"
    with pytest.raises(OverQuota, match=r"10\.7 KiB of 9\.8 KiB that they may"):
        meta.commit_files([new_file((1000,))], soon(), whose)


def test_counting_begins_beside_commits(meta: MetaDB, db: TokenDB, metadb_url: str) -> None:
    register(meta, 2)
    whose = Ownership("anna")
    stop = threading.Event()

    def commit() -> int:
        count = 0
        while not stop.is_set():
            meta.commit_files([new_file((1000,))], soon(), whose)
            count += 1
        return count

    with ThreadPoolExecutor(4) as together:
        running = [together.submit(commit) for _ in range(4)]
        eventually(lambda: bool(meta.list_files(None, 9, soon())[8:]), "some are there")
        db.create(read_terms({"owner": "anna", "scopes": ["upload"], "quota": "1TB"}), soon())
        stop.set()
        total = sum(each.result() for each in running)
    assert owned(metadb_url, "anna") == (1000 * total, 1000 * total)


def test_a_commit_that_is_over_it_leaves_nothing_and_is_told_again_the_same(
    meta: MetaDB, db: TokenDB, metadb_url: str
) -> None:
    register(meta, 2)
    db.create(read_terms({"owner": "anna", "scopes": ["upload"], "quota": 1500}), soon())
    whose = Ownership("anna", "private", 1500)
    with pytest.raises(OverQuota):
        meta.commit_files([new_file((1000,)), new_file((501,))], soon(), whose)
    assert owned(metadb_url, "anna") == (0, 0)
    file = new_file((1500,))
    for _ in range(2):  # as after an answer that was lost
        meta.commit_files([file], soon(), whose)
    assert owned(metadb_url, "anna") == (1500, 1500)


def test_a_listing_of_one_owner_reads_no_other_s_files(meta: MetaDB, metadb_url: str) -> None:
    """However many there are: by an index for each half."""
    register(meta, 2)
    meta.commit_files([new_file() for _ in range(300)], soon(), Ownership("many"))
    mine = meta.commit_files([new_file() for _ in range(3)], soon(), Ownership("few"))
    public = meta.commit_files([new_file()], soon(), Ownership("many", "public"))
    seen = meta.list_files(None, 100, soon(), "few")
    assert sorted(file.id for file in seen) == sorted(file.id for file in [*mine, *public])
    assert [file.id for file in seen] == sorted(file.id for file in seen)
    plan = "\n".join(
        row[0]
        for row in run_sql(
            metadb_url,
            "SET enable_seqscan = off; EXPLAIN SELECT * FROM file WHERE owner = 'few' ORDER BY id LIMIT 100",
        )
    )
    assert "file_owner" in plan
