"""A node whose listing is wrong, or has no end, is left out with an error of its own; all others are served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from distfs.commands.fsck import fsck
from distfs.commands.operator import Operator
from distfs.deadline import Deadline
from distfs.errors import Busy, ProtocolError
from distfs.fragment_store import Listed, Page
from distfs.model import FragmentId
from distfs.process.output import NOT_TOLD
from distfs.upkeep.rebalance import as_if_swept
from distfs.upkeep.step import Worker
from tests.contract.nodes import NODE, PEERS, KillableServer, client_of, serving
from tests.contract.samples import header, put
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import HOUR, UpkeepCluster, bytes_of, drive

OLD = 26 * HOUR
A, B, C = (Listed(FragmentId(UUID(int=number), 0), 100, 0.0) for number in (1, 2, 3))

#: What a node may answer, asked for what comes after A.
PAGES: dict[str, Page] = {
    "the cursor stands still": Page((B, C), str(A.id)),
    "the cursor goes back behind what was listed": Page((B, C), str(B.id)),
    "nothing, and yet there is more": Page((), str(C.id)),
    "an empty cursor": Page((B,), ""),
    "a cursor that names no fragment": Page((B,), "zzz"),
    "a cursor in other letters": Page((B,), str(UUID(int=255)).upper() + ".0"),
    "the last one once more": Page((A, B), None),
    "one fragment twice": Page((B, B), None),
    "out of order": Page((C, B), None),
    "more than was asked for": Page(
        tuple(replace(A, id=FragmentId(UUID(int=n), 0)) for n in range(2, 8)), None
    ),
    "an index that cannot be": Page((replace(B, id=FragmentId(B.id.slice, 200)),), None),
    "an age that is no number": Page((replace(B, age=float("nan")),), None),
}
GOOD: dict[str, Page] = {
    "the end": Page((), None),
    "some, and the end": Page((B, C), None),
    "some, and there is more": Page((B, C), str(C.id)),
    "some, and it goes on behind one that is gone": Page((B,), str(C.id)),
    "indexes in the order of their names": Page(
        tuple(replace(B, id=FragmentId(B.id.slice, index)) for index in (1, 10, 11, 2)), None
    ),
}

Listing = Callable[[str, int, Deadline], Page]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KillableServer]:
    with serving(tmp_path / "node", NODE) as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3) as running:
        yield running


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_a_page_that_cannot_be_is_a_protocol_error(
    server: KillableServer, page: Page, aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.store, "list_quarantine" if aside else "list", lambda *_: page)
    with client_of(server, PEERS) as client:
        with pytest.raises(ProtocolError, match="a listing that cannot be"):
            (client.list_quarantine if aside else client.list)(str(A.id), 5, soon())


@pytest.mark.parametrize("page", GOOD.values(), ids=list(GOOD))
def test_a_page_that_can_be_is_taken(
    server: KillableServer, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.store, "list", lambda *_: page)
    with client_of(server, PEERS) as client:
        assert client.list(str(A.id), 5, soon()) == page


# --- what pages over a node's answer ----------------------------------------------------------------------


def stands_still(cursor: str, limit: int, deadline: Deadline) -> Page:
    return Page((A,), str(A.id))


def endless(cursor: str, limit: int, deadline: Deadline) -> Page:
    """Always one more, which nobody knows."""
    at = UUID(cursor.partition(".")[0]).int if cursor else 0
    more = FragmentId(UUID(int=at + 1), 0)
    return Page((Listed(more, 100, 0.0),), str(more))


WRONG = pytest.mark.parametrize("listing", [stands_still, endless])


def step_until(worker: Worker, done: Callable[[], object]) -> None:
    """A wrong listing may keep a worker busy for ever; it must not keep it from anything."""
    for _ in range(500):
        worker.step(Deadline(60))
        if done():
            return
    raise AssertionError("the others were left waiting")


@WRONG
@pytest.mark.parametrize("aside", [False, True])
def test_the_sweep_goes_on_with_the_other_nodes(
    cluster: UpkeepCluster, listing: Listing, aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, *others = sorted(map(cluster.id, cluster.nodes))
    for node in others:
        store = cluster.store(node)
        cluster.age(put(store, replace(header(uuid4()), cluster=store.cluster), b"nobody's"), node, OLD)
    monkeypatch.setattr(cluster.store(wrong), "list_quarantine" if aside else "list", listing)
    sweep = cluster.orphans()
    step_until(sweep, lambda: all(len(cluster.quarantined(node)) == 1 for node in others))
    if listing is stands_still:
        assert f"node {wrong}: node 127.0.0.1" in str(drive(sweep).detail["stuck"])


@WRONG
def test_the_scrub_goes_on_with_the_other_nodes(
    cluster: UpkeepCluster, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.upkeep.scrub.PARALLEL", 1)
    cluster.upload(bytes_of(6))
    wrong, *others = sorted(map(cluster.id, cluster.nodes))
    monkeypatch.setattr(cluster.store(wrong), "list", listing)

    def read() -> bool:
        return all(cluster.db.scrub_state(node, soon()).last_round_age is not None for node in others)

    step_until(cluster.scrub(), read)


@WRONG
def test_a_plan_to_rebalance_leaves_the_node_out(
    cluster: UpkeepCluster, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.upkeep.rebalance._ASIDE_LIMIT_S", 0.5)
    wrong, *others = sorted(map(cluster.id, cluster.nodes))
    monkeypatch.setattr(cluster.store(wrong), "list_quarantine", listing)
    told = as_if_swept(cluster.directory, cluster._nodes(), cluster.executor, Deadline(60))
    assert [node.id for node in told] == others


def test_fsck_says_of_the_node_that_it_cannot_be_told(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    cluster.upload(bytes_of(6))
    wrong = min(map(cluster.id, cluster.nodes))
    monkeypatch.setattr(cluster.store(wrong), "list", stands_still)
    assert fsck(operator, deep=False, note=False, as_json=False) == NOT_TOLD
    assert f"on node {wrong} (" in capsys.readouterr().out


def test_fsck_says_of_a_node_that_it_was_not_asked_when_it_had_no_connection_for_it(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    cluster.upload(bytes_of(6))

    def busy(*_: object) -> None:
        raise Busy("no socket")

    node = min(map(cluster.id, cluster.nodes))
    monkeypatch.setattr(cluster.directory.store(node, soon()), "list", busy)
    assert fsck(operator, deep=False, note=False, as_json=False) == NOT_TOLD
    assert "no socket" in capsys.readouterr().out
