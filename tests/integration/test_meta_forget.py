"""A `forget` that is refused leaves the node as it was, whatever happened; what the release before calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distfs.deadline import Deadline
from distfs.errors import Refused, Unavailable
from distfs.meta import MetaDB
from distfs.metadb.answers import Rows
from distfs.model import Policy
from distfs.upkeep.db import UpkeepDB
from tests.integration.meta_examples import placed, register, silence_node, soon
from tests.postgres import run_sql


@pytest.fixture
def upkeep(meta: MetaDB, metadb_url: str) -> UpkeepDB:
    """Over a node 1 that is down and keeps the only fragment of a slice, and a node 2."""
    register(meta, 2)
    meta.commit_files([placed((1,), policy=Policy(1, 0))], soon())
    silence_node(metadb_url, 1, 20)
    return UpkeepDB(meta)


class Steps:
    """What happens before a step of `forget`, once, and whether it did."""

    def __init__(self, meta: MetaDB, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: dict[str, Callable[[], object]] = {}
        self._read, self._write = meta.read, meta.write
        monkeypatch.setattr(meta, "read", self.read)
        monkeypatch.setattr(meta, "write", self.write)

    def read(self, query: str, deadline: Deadline, **params: Any) -> Rows:
        self.before.pop(query, lambda: None)()
        return self._read(query, deadline, **params)

    def write(self, query: str, deadline: Deadline, *, again: str | None = None, **params: Any) -> Rows:
        self.before.pop(query, lambda: None)()
        return self._write(query, deadline, again=again, **params)


@pytest.fixture
def steps(meta: MetaDB, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(meta, monkeypatch)


def refused(upkeep: UpkeepDB) -> str:
    with pytest.raises(Refused) as caught:
        upkeep.forget_node(1, soon())
    return str(caught.value)


def state(meta: MetaDB) -> str:
    return meta.nodes(soon())[0].state


@pytest.mark.parametrize("before", ["active", "draining"])
@pytest.mark.parametrize("step", ["begin_forget", "short_without", "end_forget"])
def test_who_is_refused_twice_at_once_leaves_the_node_as_it_was(
    upkeep: UpkeepDB, meta: MetaDB, steps: Steps, step: str, before: str
) -> None:
    """Before the first has begun, while it looks, and before it ends."""
    if before == "draining":
        upkeep.set_node_state(1, before, soon())
    steps.before[step] = lambda: refused(UpkeepDB(meta))
    assert "not enough left to read 1 slices" in refused(upkeep)
    assert (steps.before, state(meta)) == ({}, before)


def test_of_two_that_are_refused_the_one_that_ends_last_leaves_the_node_as_it_was(
    upkeep: UpkeepDB, meta: MetaDB, steps: Steps
) -> None:
    steps.before["begin_forget"] = lambda: meta.write("begin_forget", soon(), node=1, down_after=10.0)
    steps.before["short_without"] = lambda: meta.write("end_forget", soon(), node=1)
    assert "not enough left" in refused(upkeep)
    assert (steps.before, state(meta)) == ({}, "active")


def test_a_step_whose_answer_was_lost_is_run_again(upkeep: UpkeepDB, meta: MetaDB, steps: Steps) -> None:
    steps.before["begin_forget"] = lambda: meta.write("begin_forget", soon(), node=1, down_after=10.0)
    assert "not enough left" in refused(upkeep)
    assert (steps.before, state(meta)) == ({}, "active")


def test_what_was_killed_while_it_forgot_is_taken_back_by_the_next_that_is_refused(
    upkeep: UpkeepDB, meta: MetaDB
) -> None:
    meta.write("begin_forget", soon(), node=1, down_after=10.0)
    assert state(meta) == "draining"
    assert "not enough left" in refused(upkeep)
    assert state(meta) == "active"


@pytest.mark.parametrize("how", ["undrained", "undrained and drained", "by the release before", "refused"])
def test_a_node_that_could_be_named_while_its_slices_were_gone_through_is_not_forgotten(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str, steps: Steps, how: str
) -> None:
    """What was written meanwhile may be behind the page that was read."""
    run_sql(metadb_url, "UPDATE slice SET nodes = '{2}'")

    def meanwhile() -> None:
        if how == "refused":
            meta.write("end_forget", soon(), node=1)
        elif how == "by the release before":
            run_sql(metadb_url, "UPDATE node SET state = 'active' WHERE id = 1")
        else:
            upkeep.set_node_state(1, "active", soon())
        if how == "undrained and drained":
            upkeep.set_node_state(1, "draining", soon())
        run_sql(metadb_url, "UPDATE slice SET nodes = '{1}'")

    steps.before["forget_node"] = meanwhile
    assert "run `distfs forget 1` again" in refused(upkeep)
    assert steps.before == {}
    told = "draining" if how == "undrained and drained" else "active"
    assert state(meta) == told, "an operator's last word"
    assert "not enough left to read 1 slices" in refused(upkeep)
    assert state(meta) == told
    run_sql(metadb_url, "UPDATE slice SET nodes = '{2}'")
    upkeep.forget_node(1, soon())
    assert [node.id for node in meta.nodes(soon())] == [2]


def test_where_it_cannot_be_taken_back_the_refusal_says_so(
    upkeep: UpkeepDB, meta: MetaDB, steps: Steps
) -> None:
    def away() -> None:
        raise Unavailable("MetaDB is away")

    steps.before["end_forget"] = away
    told = refused(upkeep)
    assert "not enough left" in told
    assert told.endswith("; node 1 may be left draining: `distfs undrain 1` ends that")
    assert (steps.before, state(meta)) == ({}, "draining")


def test_how_many_slices_were_gone_through_is_told(upkeep: UpkeepDB, metadb_url: str) -> None:
    run_sql(metadb_url, "UPDATE slice SET nodes = '{1,2}'")
    seen: list[int] = []
    upkeep.forget_node(1, soon(), seen.append)
    assert seen == [1]


def test_services_of_the_release_before_find_what_they_call(upkeep: UpkeepDB, metadb_url: str) -> None:
    left = "SELECT fragments, safe FROM leaving_node(1)"
    assert run_sql(metadb_url, left) == [[1, False]]
    hurt = (
        "SELECT id, lost, redundancy_left, trashed FROM hurt_among(ARRAY(SELECT id FROM slice), :delay) "
        "WHERE file_id IS NOT NULL AND created_at <= now()"
    )
    [[id]] = run_sql(metadb_url, "SELECT id FROM slice")
    assert run_sql(metadb_url, hurt, delay=10.0) == [[id, [0], -1, False]]
    assert run_sql(metadb_url, hurt, delay=1000.0) == []
    run_sql(metadb_url, "UPDATE slice SET nodes = '{2}'; UPDATE node SET state = 'draining' WHERE id = 1")
    assert run_sql(metadb_url, left) == [[0, True]]
    run_sql(metadb_url, "SELECT forget_node(1, 10.0)")
    assert run_sql(metadb_url, "SELECT id FROM node") == [[2]]
