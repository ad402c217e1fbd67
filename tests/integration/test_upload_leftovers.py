"""What an upload stored and did not need in the end, and what it holds while it makes fragments anew."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.deadline import Deadline
from distfs.errors import NotFound, Unavailable
from distfs.formats.wire import Type
from distfs.meta import MetaDB
from distfs.model import File, FragmentId, NewFile
from distfs.peers.client import NodeClient
from distfs.services import build
from tests.contract.litter import eventually
from tests.contract.samples import random_bytes, soon
from tests.integration.byte_ways import COPIES, SLICE, Source, Ways, byte_ways
from tests.postgres import run_sql


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Ways]:
    with byte_ways(metadb_url, tmp_path) as ways:
        yield ways
        ways.assert_clean()


def drain(ways: Ways, node: int) -> None:
    url = ways.services.config.metadb.url
    run_sql(url, "UPDATE node SET state = 'draining' WHERE id = :id", id=node)


def upload_beside_a_drain(ways: Ways, data: bytes) -> tuple[File, int, list[FragmentId]]:
    """A node is drained before the commit; -> the file, that node, and what it kept before."""
    with ways.services.uploader.begin(soon()) as session:
        landed = session.add(Source(data), name="x", content_type="text/x", policy=COPIES)
        left = landed.slices[0].nodes[0]
        drain(ways, left)
        [file] = session.commit()
    before = [
        FragmentId(piece.id, index)
        for piece in landed.slices
        for index, node in enumerate(piece.nodes)
        if node == left
    ]
    return file, left, before


def test_what_was_made_anew_elsewhere_is_put_aside_and_not_deleted(ways: Ways) -> None:
    """MetaDB may name it here again before it is taken away: then it comes back."""
    data = random_bytes(3 * SLICE + 5)
    file, left, before = upload_beside_a_drain(ways, data)
    assert all(left not in piece.nodes for piece in file.slices)
    store = ways.nodes[left].store

    def aside() -> list[FragmentId]:
        return [f.id for f in store.list_quarantine("", 100, soon()).fragments]

    eventually(lambda: aside() == sorted(before, key=str), "it is put aside")
    for id in before:
        with pytest.raises(NotFound):
            store.stat(id, soon())
        assert store.release(id, soon())


def test_what_came_to_the_node_after_the_commit_stays(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, done = MetaDB.commit_files, NodeClient._done
    answers: list[bool] = []
    later = time.time() + 3600

    def then_named_again(self: MetaDB, new: list[NewFile], deadline: Deadline, *whose: Any) -> list[File]:
        files = commit(self, new, deadline, *whose)
        for node in ways.nodes.values():
            for path in (node.store.folder / "data").rglob("*.*"):
                os.utime(path, (later, later))
        return files

    def noted(self: NodeClient, *args: Any, **more: Any) -> bool:
        answers.append(done(self, *args, **more))
        return answers[-1]

    monkeypatch.setattr(MetaDB, "commit_files", then_named_again)
    monkeypatch.setattr(NodeClient, "_done", noted)
    _, left, before = upload_beside_a_drain(ways, random_bytes(100))
    eventually(lambda: len(answers) == len(before), "it was to be taken away")
    assert not any(answers)
    for id in before:
        assert ways.nodes[left].store.verify(id, soon()) == ()


def test_nodes_that_hang_after_a_commit_keep_no_upload_waiting(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be taken away waits for them in threads of its own."""
    config = ways.services.config
    few = build(replace(config, http=replace(config.http, threads=1)))
    hang, call = threading.Event(), NodeClient._call
    hung: list[NodeClient] = []
    gave_up: list[NodeClient] = []

    def hanging(self: NodeClient, type_: Type, *args: Any, **more: Any) -> object:
        if type_ in (Type.DELETE, Type.QUARANTINE):
            hung.append(self)
            if not hang.wait(60):
                gave_up.append(self)
        return call(self, type_, *args, **more)

    with closing(few):
        one = Ways(few, ways.nodes)
        threads = few.uploader.resources.executor._most
        with monkeypatch.context() as patch:
            patch.setattr(NodeClient, "_call", hanging)
            _, _, before = upload_beside_a_drain(one, random_bytes(4 * threads * SLICE))
            assert len(before) >= threads
            eventually(lambda: bool(hung), "a node hangs")
            data = random_bytes(3 * SLICE)
            file = one.upload(data)
            assert not gave_up
            hang.set()
        assert one.download(file) == data
        eventually(lambda: not few.uploader.after_commits._waiting, "nothing is left to take away")


def test_a_fragment_that_cannot_be_made_anew_leaves_no_bytes_in_flight(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends it between the choice of a node and the first byte for it. The fixture looks."""
    uploader = ways.services.uploader
    nodes, place = uploader.directory.nodes, uploader.placement.place
    placed: list[int] = []

    def noted(*args: Any) -> list[int]:
        placed.extend(place(*args))
        return placed

    def away(*args: Any, **more: Any) -> object:
        if placed:
            raise Unavailable("MetaDB is away")
        return nodes(*args, **more)

    with uploader.begin(soon()) as session:
        source = Source(random_bytes(100))
        landed = session.add(source, name="x", content_type="text/x", policy=COPIES)
        drain(ways, landed.slices[0].nodes[0])
        monkeypatch.setattr(uploader.placement, "place", noted)
        monkeypatch.setattr(uploader.directory, "nodes", away)
        with pytest.raises(Unavailable, match="MetaDB is away"):
            session.commit()
