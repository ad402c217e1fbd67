"""Nodes that are all gone at once and come back: a download waits for them and goes on where it was."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import Cancelled, TooSlow, Unavailable
from distfs.http_app import HttpApp
from distfs.model import Policy
from tests.contract.litter import eventually, temp_files
from tests.contract.nodes import KillableServer
from tests.contract.samples import random_bytes, soon
from tests.integration.byte_ways import CODED, COPIES, SLICE, Source, Ways, byte_ways, register
from tests.service import HttpAddress, listening

DATA = random_bytes(4 * SLICE + 77)


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Ways]:
    # With memory to spare: else what a client leaves unsaid is put aside, and no node has a part of it.
    with byte_ways(metadb_url, tmp_path, memory_budget=64 * SLICE) as ways:
        directory = ways.services.directory
        directory._config = replace(directory._config, patience=Seconds(300))
        yield ways
        ways.assert_clean()


class Waits:
    """Whether a download was seen to wait."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(self) -> bool:
        return "a download waits for storage nodes" in self._caplog.text

    @property
    def searched(self) -> int:
        """How often all nodes were asked what they have of a slice."""
        return self._caplog.text.count("are left, wherever they are")


@pytest.fixture
def waits(caplog: pytest.LogCaptureFixture) -> Waits:
    caplog.set_level(logging.WARNING, "distfs.download")
    return Waits(caplog)


@contextmanager
def back_elsewhere(ways: Ways) -> Iterator[None]:
    """Every node that was killed listens again, at another port, and has said so."""
    with ExitStack() as stack:
        for number, server in list(ways.nodes.items()):
            ways.services.meta.node_leave(server.store.node, server.address, soon())
            again = ways.nodes[number] = KillableServer("127.0.0.1", 0, server.store, server.config)
            thread = threading.Thread(target=again.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(ways.kill, number)
            assert register(ways.services, again) == number
        yield


@pytest.mark.parametrize("policy", [COPIES, CODED], ids=str)
@pytest.mark.parametrize("begun", [0, 1, 5])
def test_all_nodes_killed_and_back_at_other_ports_are_seen_by_no_download(
    ways: Ways, waits: Waits, policy: Policy, begun: int
) -> None:
    file = ways.upload(DATA, policy)
    reading = ways.services.downloader.read(file, 0, file.size, Deadline(600))
    came = b"".join(bytes(next(reading)) for _ in range(begun))
    for number in ways.nodes:
        ways.kill(number)
    with ThreadPoolExecutor(1) as client:
        rest = client.submit(lambda: b"".join(bytes(view) for view in reading))
        eventually(waits, "it waits")
        with back_elsewhere(ways):
            assert came + rest.result(120) == DATA
    assert not waits.searched, "nothing proved bad or missing"


def test_when_the_wait_is_over_what_is_left_elsewhere_is_looked_for_once(ways: Ways, waits: Waits) -> None:
    directory = ways.services.directory
    directory._config = replace(directory._config, patience=Seconds(3))
    file = ways.upload(DATA[:SLICE])
    for number in file.slices[0].nodes:
        ways.kill(number)
    with pytest.raises(Unavailable, match="cannot be read"):
        next(ways.services.downloader.read(file, 0, file.size, soon()))
    assert waits()
    assert waits.searched == 1


def test_who_hangs_up_does_not_wait_for_nodes(ways: Ways, waits: Waits) -> None:
    file = ways.upload(DATA)
    for number in ways.nodes:
        ways.kill(number)
    with ThreadPoolExecutor(1) as client, Deadline(600).scope() as scope:
        reading = client.submit(next, ways.services.downloader.read(file, 0, file.size, scope))
        eventually(waits, "it waits")
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled):
            reading.result(60)


def test_a_wait_for_nodes_ends_with_its_request(ways: Ways, waits: Waits) -> None:
    file = ways.upload(DATA)
    for number in ways.nodes:
        ways.kill(number)
    with pytest.raises((TooSlow, Unavailable)):
        next(ways.services.downloader.read(file, 0, file.size, Deadline(2)))
    assert waits()


def test_nodes_that_are_long_silent_are_not_waited_for(ways: Ways, waits: Waits) -> None:
    file = ways.upload(DATA)
    for number in ways.nodes:
        ways.kill(number)
    directory = ways.services.directory
    directory._config = replace(directory._config, patience=Seconds(0))
    ways.services.meta.down_after = 0
    with pytest.raises(Unavailable, match="cannot be read"):
        next(ways.services.downloader.read(file, 0, file.size, soon()))
    assert not waits()


def test_an_upload_waits_for_nodes_that_are_restarted_before_it_places_a_slice(
    ways: Ways, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "distfs.upload")
    back: list[threading.Thread] = []

    def return_when_waited_for() -> None:
        eventually(lambda: "an upload waits for storage nodes" in caplog.text, "it waits")
        for server in ways.nodes.values():
            register(ways.services, server)

    def stop_all() -> None:
        for server in ways.nodes.values():
            ways.services.meta.node_leave(server.store.node, server.address, soon())
        ways.services.directory._list._read_at = float("-inf")
        back.append(threading.Thread(target=return_when_waited_for))
        back[0].start()

    with ways.services.uploader.begin(Deadline(600)) as session:
        source = Source(DATA, {2 * SLICE: stop_all})
        session.add(source, name="a", content_type="text/x", policy=COPIES)
        [file] = session.commit()
    back[0].join()
    assert ways.download(file) == DATA


@pytest.mark.parametrize("before", [0, 2], ids=["of one block", "of many slices"])
def test_an_upload_waits_for_nodes_that_were_killed_just_before_a_slice_began(
    ways: Ways, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """They have said nothing, so they still look alive."""
    caplog.set_level(logging.INFO, "distfs.upload")
    uploader = ways.services.uploader
    executor, place, placed = uploader.resources.executor, uploader.placement.place, []

    def place_and_kill(*args: Any) -> list[int]:
        placed.append(place(*args))
        if len(placed) == before + 1:
            if before:  # what is sent is acknowledged: only the file's digest has work
                eventually(lambda: executor._threads - executor._idle == 1, "the slices before are stored")
            for number in ways.nodes:
                ways.kill(number)
        return placed[-1]

    monkeypatch.setattr(uploader.placement, "place", place_and_kill)
    data = DATA if before else DATA[:100]
    with ThreadPoolExecutor(1) as client:
        upload = client.submit(ways.upload, data)
        eventually(lambda: "an upload waits for storage nodes" in caplog.text or upload.done(), "it waits")
        with back_elsewhere(ways):
            assert ways.download(upload.result(120)) == data
    assert len(placed) > before + 1


def test_of_a_small_file_that_was_placed_anew_nothing_of_before_stays(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three nodes took its fragment of the first try, and two are needed."""
    placement = ways.services.uploader.placement
    place, tried = placement.place, []

    def place_and_kill(*args: Any) -> list[int]:
        nodes = place(*args)
        tried.append(nodes)
        if len(tried) == 1:
            for number in nodes[:2]:
                ways.kill(number)
        return nodes

    monkeypatch.setattr(placement, "place", place_and_kill)
    with ThreadPoolExecutor(1) as client:
        upload = client.submit(ways.upload, DATA[:100], CODED)
        eventually(lambda: len(ways.fragments()) == 1 or upload.done(), "one took its fragment")
        first = ways.fragments()
        with back_elsewhere(ways):
            file = upload.result(120)
            eventually(lambda: set(ways.fragments()) == set(ways.paths(file).values()), "the first is gone")
            assert first[0] not in ways.fragments()
            assert ways.download(file) == DATA[:100]


@pytest.mark.parametrize("begun", [1, 2], ids=["of one block", "of many slices"])
def test_an_upload_waits_for_nodes_while_one_has_a_slice_that_two_are_to_have(
    ways: Ways, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """Of three nodes two were killed: the one that is left took its copy."""
    caplog.set_level(logging.INFO, "distfs.upload")
    placement, executor = ways.services.uploader.placement, ways.services.uploader.resources.executor
    place, placed = placement.place, []

    def place_and_kill(*args: Any) -> list[int]:
        placed.append(place(*args))
        if len(placed) == begun:
            if begun > 1:  # what is sent is acknowledged: only the file's digest has work
                eventually(lambda: executor._threads - executor._idle == 1, "the slice before is stored")
            for number in set(ways.nodes) - {placed[-1][0]}:
                ways.kill(number)
        return placed[-1]

    monkeypatch.setattr(placement, "place", place_and_kill)
    data = DATA[:100] if begun == 1 else DATA
    with ThreadPoolExecutor(1) as client:
        upload = client.submit(ways.upload, data, COPIES)
        eventually(lambda: "of 2 have slice" in caplog.text or upload.done(), "it waits")
        with back_elsewhere(ways):
            file = upload.result(120)
            assert all(all(piece.nodes) for piece in file.slices)
            assert ways.download(file) == data


def test_an_upload_whose_slice_all_nodes_lose_in_its_middle_is_to_come_again(ways: Ways) -> None:
    def kill_all() -> None:
        for number in ways.nodes:
            ways.kill(number)

    with pytest.raises(Unavailable) as refused:
        ways.upload(Source(DATA, {SLICE // 2: kill_all}))
    assert (refused.value.status, refused.value.retry_after) == (503, Unavailable.retry_after)
    assert refused.value.retry_after


def test_over_http_it_is_503_with_retry_after(ways: Ways) -> None:
    def body() -> Iterator[bytes]:
        yield DATA[: SLICE + SLICE // 2]
        eventually(lambda: _being_written(ways) == 2, "two nodes have a part of the second slice")
        for number in ways.nodes:
            ways.kill(number)
        yield DATA[SLICE + SLICE // 2 :]

    services = ways.services
    with listening(HttpApp(services), services.config) as (host, port):
        answer = HttpAddress(host, port).ask("PUT", "/upload/x", body())
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert services.meta.list_files(None, 10, soon()) == []


def _being_written(ways: Ways) -> int:
    """Fragments with a temp file, when the first slice is stored."""
    if len(ways.fragments()) < COPIES.width:
        return 0
    return sum(len(temp_files(server.store.folder)) for server in ways.nodes.values())
