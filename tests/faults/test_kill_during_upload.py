"""kill -9 of one process at every step of an upload: nothing half done is readable, nothing acknowledged is lost."""

from __future__ import annotations

import http.client
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from distfs.deadline import Deadline
from distfs.metadb.embedded_postgres import EmbeddedPostgres, processes_in
from distfs.metadb.url import MetaURL
from distfs.model import File
from tests.cluster.harness import Answer, Cluster, MakeCluster, Settings
from tests.contract.litter import eventually
from tests.faults.dying import MODULE, STEPS, die_at
from tests.integration.meta_proxy import Cut, Proxy

SMALL_SLICES = {"storage": {"block_size": "64KiB", "slice_size": "256KiB", "window": "1MiB"}}
#: For a MetaDB that goes away: it is given up soon.
GIVES_UP: Settings = {**SMALL_SLICES, "metadb": {"statement_timeout": "1s", "patience": "1s"}}
DATA = random.Random(7).randbytes(1_000_003)  # four slices

NODE_STEPS = [step for step in STEPS if step.startswith("node")]
SERVICE_STEPS = [step for step in STEPS if step.startswith("service")]


@pytest.fixture(scope="module")
def shared(share_cluster: MakeCluster) -> Cluster:
    """Its processes can be told to die, and run again at the end of each test."""
    return share_cluster(3, {**SMALL_SLICES, "peers": {"breaker_failures": 1_000_000}}, MODULE)


@pytest.fixture
def mortal(shared: Cluster) -> Iterator[Cluster]:
    """``shared``; what it logged is shown when the test failed."""
    yield shared
    print(shared.logs(), file=sys.stderr)


def is_gone(server: EmbeddedPostgres) -> bool:
    return not server.running()


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


def files(cluster: Cluster) -> list[File]:
    return cluster.meta.list_files(None, 100, Deadline(30))


def put(cluster: Cluster, data: bytes) -> Answer | None:
    """The answer; None when the service died under the request."""
    try:
        return cluster.request("PUT", "/upload/x", data)
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.parametrize("size", [len(DATA), 3000], ids=["slices", "one-block"])
@pytest.mark.parametrize("step", NODE_STEPS)
def test_a_node_killed_during_an_upload_loses_nothing(mortal: Cluster, step: str, size: int) -> None:
    if step == "node-mid-slice" and size < 10_000:
        size = 70_000  # a smaller one comes in one frame, and has no middle
    before = {file.id for file in files(mortal)}
    acknowledged: dict[str, bytes] = {}

    def dies() -> bool:
        number = len(acknowledged)
        data = DATA[number : number + size]
        acknowledged[mortal.upload(data)] = data
        return not mortal.nodes[0].alive

    with die_at(step, mortal.folder, mortal.nodes[0].name):
        eventually(dies, "the service knows of the node, and it has come to the step")
    for uuid, data in acknowledged.items():
        assert mortal.download(uuid) == data
    assert {file.id for file in files(mortal)} - before == set(map(UUID, acknowledged))
    for uuid in acknowledged:
        whole = mortal.meta.file(UUID(uuid), Deadline(30))
        assert all(all(piece.nodes) for piece in whole.slices), (
            "redundancy is full: the third node has the rest"
        )
    mortal.start_node(0)


@pytest.mark.parametrize("step", SERVICE_STEPS)
def test_a_service_killed_during_an_upload_leaves_all_of_the_file_or_none(mortal: Cluster, step: str) -> None:
    before = {file.id for file in files(mortal)}
    kept = mortal.upload(b"from before")
    with die_at(step, mortal.folder, mortal.service.name):
        assert put(mortal, DATA) is None
        assert mortal.service.wait() == -9
    mortal.start_service()
    others = [file for file in files(mortal) if file.id not in before and file.id != UUID(kept)]
    assert len(others) == (1 if step == "service-after-commit" else 0)
    for file in others:
        assert mortal.download(str(file.id)) == DATA
    assert mortal.download(kept) == b"from before"
    for node in range(3):
        eventually(partial(is_empty, mortal.node_folder(node) / "tmp"), "no temp file is left")


def test_a_file_sent_again_after_the_service_was_killed_is_stored(mortal: Cluster) -> None:
    with die_at("service-mid-slice", mortal.folder, mortal.service.name):
        assert put(mortal, DATA) is None
        mortal.service.wait()
    mortal.start_service()
    assert mortal.download(mortal.upload(DATA)) == DATA


def test_metadb_killed_during_an_upload_leaves_no_partial_file(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "cluster", own_postgres.url, config=GIVES_UP) as cluster:
        kept = cluster.upload(DATA)

        def dying_midway() -> object:
            yield DATA[:500_000]
            postmaster = int(
                (own_postgres.folder / "postgres" / "postmaster.pid").read_text().splitlines()[0]
            )
            os.kill(postmaster, 9)
            eventually(partial(is_gone, own_postgres), "PostgreSQL is gone")
            yield DATA[500_000:]

        answer = cluster.request("PUT", "/upload/x", dying_midway())
        assert answer.status == 503
        assert "MetaDB" in answer.text
        own_postgres.ensure_running()
        cluster.wait_ready()
        assert [str(file.id) for file in files(cluster)] == [kept]
        assert cluster.download(kept) == DATA
        assert cluster.download(cluster.upload(DATA)) == DATA


@pytest.mark.parametrize("returns", [True, False], ids=["returns", "stays-away"])
@pytest.mark.parametrize("where", Cut, ids=["before-commit", "after-commit"])
def test_metadb_killed_around_the_commit_of_an_upload_leaves_all_of_the_file_or_none(
    own_postgres: EmbeddedPostgres, tmp_path: Path, where: Cut, returns: bool
) -> None:
    """kill -9 of all of PostgreSQL when the commit has been sent and not begun, or is done and not answered."""
    config = SMALL_SLICES if returns else GIVES_UP
    with proxied(own_postgres) as (proxy, url), Cluster(tmp_path / "c", url, config=config) as cluster:
        kept = cluster.upload(b"from before")

        def kill() -> None:
            kill_all(own_postgres)
            if returns:
                own_postgres.ensure_running()

        proxy.cut("the-one", where, then=kill)
        answer = cluster.request("PUT", "/upload/the-one", DATA)
        assert proxy.has_cut
        if returns:  # the same statement was run again, and did it, or found it done
            assert answer.status == 201, answer.text
        else:
            assert answer.status == 503
            assert "MetaDB" in answer.text
            own_postgres.ensure_running()
            cluster.wait_ready()
        others = [file for file in files(cluster) if file.id != UUID(kept)]
        assert len(others) == (1 if returns or where is Cut.AFTER else 0)
        for file in others:
            assert cluster.download(str(file.id)) == DATA
        assert cluster.download(kept) == b"from before"
        assert cluster.download(cluster.upload(DATA)) == DATA


def test_metadb_killed_once_an_upload_was_acknowledged_has_the_file(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "cluster", own_postgres.url, config=SMALL_SLICES) as cluster:
        uuid = cluster.upload(DATA)
        kill_all(own_postgres)
        own_postgres.ensure_running()
        cluster.wait_ready()
        assert cluster.download(uuid) == DATA


@contextmanager
def proxied(server: EmbeddedPostgres) -> Iterator[tuple[Proxy, str]]:
    """A proxy before a server, and MetaDB's URL through it."""
    parsed = MetaURL.parse(server.url)
    path = parsed.hosts[0].socket_path
    assert path is not None
    proxy = Proxy(path)
    try:
        yield proxy, f"postgresql://{parsed.user}@127.0.0.1:{proxy.port}/{parsed.database}"
    finally:
        proxy.close()


def kill_all(server: EmbeddedPostgres) -> None:
    for pid in list(processes_in(server.data)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(partial(is_gone, server), "PostgreSQL is gone")
