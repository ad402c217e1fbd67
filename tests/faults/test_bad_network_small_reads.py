"""A small file, which is read at once, while the network of its node is bad: the same bytes, in time, once blamed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

from distfs.config.settings import Fraction
from distfs.deadline import Deadline, Scope
from distfs.errors import Cancelled, Corrupt, DistfsError
from distfs.model import File, FragmentId
from distfs.peers.breaker import State
from distfs.peers.remote_fragment import RemoteReader
from tests.contract.litter import eventually
from tests.contract.samples import random_bytes, soon
from tests.faults.proxied import IMPATIENT, PATIENT, Proxied, proxied
from tests.faults.test_bad_network_reads import BREAKS, read_first
from tests.integration.byte_ways import BLOCK, flip

DATA = random_bytes(BLOCK - 100)
#: Bytes of an answer after which the network breaks: before it, in its prefix, header, table, and cell.
PHASES = [0, 7, 40, 90, 200, BLOCK // 2, BLOCK - 50]


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Proxied]:
    """Only a hedge ends the silence of a node."""
    with proxied(metadb_url, tmp_path, hedge_budget=Fraction(0.99), **PATIENT) as ways:
        yield ways
        ways.heal()
        ways.assert_clean()


def stored(ways: Proxied) -> File:
    """A small file whose nodes are known and well: it is read at once."""
    ways.services.directory.close()
    file = ways.upload(DATA)
    assert ways.services.directory.well(read_first(file), soon()) is not None
    return file


def whole(ways: Proxied, file: File) -> bytes:
    return ways.services.downloader.whole(file, soon())


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_bad_node_at_any_phase_changes_nothing(ways: Proxied, broken: str, phase: int) -> None:
    file = stored(ways)
    with ways.struck("down", phase, BREAKS[broken]):
        assert whole(ways, file) == DATA


@pytest.mark.parametrize("at", [0, 3, 9, 17, 30, 60, 80, 100, 140, 1000])
@pytest.mark.parametrize("flow", ["down", "up"])
def test_a_bit_flipped_on_the_way_is_never_delivered(
    metadb_url: str, tmp_path: Path, flow: str, at: int
) -> None:
    with proxied(metadb_url, tmp_path, **IMPATIENT) as ways:
        file = stored(ways)
        place = at if flow == "down" else at % 90
        with ways.struck(flow, place, lambda proxy: getattr(proxy, flow).flip()):
            assert whole(ways, file) == DATA


def test_a_silent_node_is_outrun_and_a_late_one_that_is_first_is_blamed_for_nothing(ways: Proxied) -> None:
    hedging = ways.services.directory.hedging
    file = stored(ways)
    first = read_first(file)
    ways.proxies[first].down.delay = 0.2
    for node in set(ways.proxies) - {first}:
        ways.proxies[node].down.delay = 2
    assert whole(ways, file) == DATA
    assert (hedging.hedged, hedging.won) == (1, 0)
    ways.heal()
    file = stored(ways)
    won = hedging.won
    ways.proxies[read_first(file)].blackhole()
    assert whole(ways, file) == DATA
    assert hedging.won == won + 1


def test_a_silent_node_is_waited_for_once_before_another_is_asked(
    ways: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stored(ways)
    begin = RemoteReader.begin_or_late
    waited_for: list[RemoteReader] = []

    def noted(self: RemoteReader) -> bool:
        waited_for.append(self)
        return begin(self)

    monkeypatch.setattr(RemoteReader, "begin_or_late", noted)
    ways.proxies[read_first(file)].blackhole()
    assert whole(ways, file) == DATA
    silent, *others = waited_for
    assert others
    assert silent not in others


def test_who_is_cancelled_while_a_node_is_silent_lets_go_of_everything(ways: Proxied) -> None:
    file = stored(ways)
    for proxy in ways.proxies.values():
        proxy.down.hold()
    scope = Scope()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(ways.services.downloader.whole, file, Deadline(3600, scope=scope))
        # One answer is held: it waits for that now.
        next(iter(ways.proxies.values()))._ledger.settle()
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled):
            reading.result(60)
    assert ways.blocks_out() == 0
    eventually(
        lambda: not any(ways.client(n).link.pool.snapshot().lent for n in ways.nodes), "nothing is lent"
    )


@pytest.mark.parametrize("harm", ["cell", "gone", "cut"])
def test_damage_is_read_around_and_noted_once(
    ways: Proxied, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    file = stored(ways)
    noted: list[tuple[FragmentId, int, type[DistfsError]]] = []
    lock = threading.Lock()

    def note(fragment: FragmentId, node: int, error: DistfsError) -> None:
        with lock:
            noted.append((fragment, node, type(error)))

    monkeypatch.setattr(ways.services.downloader, "_note_damage", note)
    [piece] = file.slices
    node = read_first(file)
    index = piece.nodes.index(node)
    path = ways.paths(file)[index]
    harms: dict[str, Callable[[], object]] = {
        "cell": lambda: flip(path, path.stat().st_size - 500),
        "gone": path.unlink,
        "cut": lambda: path.write_bytes(path.read_bytes()[:-7]),
    }
    harms[harm]()
    assert whole(ways, file) == DATA
    assert [(fragment, at) for fragment, at, _ in noted] == [(FragmentId(piece.id, index), node)]
    assert (noted[0][2] is Corrupt) == (harm != "gone")


def test_with_both_copies_bad_it_is_corrupt(ways: Proxied) -> None:
    file = stored(ways)
    for path in ways.paths(file).values():
        flip(path, path.stat().st_size - 500)
    with pytest.raises(Corrupt):
        whole(ways, file)


def test_a_healthy_read_asks_one_node_once(ways: Proxied) -> None:
    file = stored(ways)
    before = {node: proxy.down.passed for node, proxy in ways.proxies.items()}
    assert whole(ways, file) == DATA
    eventually(
        lambda: ways.proxies[read_first(file)].down.passed - before[read_first(file)] > len(DATA), "it came"
    )
    heard = {node for node, proxy in ways.proxies.items() if proxy.down.passed - before[node] > len(DATA)}
    assert heard == {read_first(file)}


def test_a_healthy_read_takes_few_calls(ways: Proxied) -> None:
    """Python's function calls are most of what a small read costs. One whose node is late takes more, so the best
    of several counts."""
    file = stored(ways)
    assert min(calls_of(lambda: whole(ways, file)) for _ in range(20)) <= 30


def calls_of(function: Callable[[], bytes]) -> int:
    """How many functions of Python it calls, in this thread."""
    count = 0

    def note(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        assert function() == DATA
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("phase", [0, 90, BLOCK // 2, BLOCK - 50])
@pytest.mark.parametrize("broken", BREAKS)
def test_a_file_of_one_whole_block_is_read_as_well(ways: Proxied, broken: str, phase: int) -> None:
    """Into a block of the pool, and any part of it."""
    data = random_bytes(BLOCK)
    ways.services.directory.close()
    file = ways.upload(data)
    assert ways.services.directory.well(read_first(file), soon()) is not None

    def read(start: int, stop: int) -> bytes:
        return b"".join(map(bytes, ways.services.downloader.read(file, start, stop, soon())))

    with ways.struck("down", phase, BREAKS[broken]):
        assert read(0, BLOCK) == data
    assert read(5, BLOCK - 7) == data[5:-7]
    assert read(9, 9) == b""
    assert ways.blocks_out() == 0


def test_a_node_that_stops_in_the_middle_of_a_cell_is_outrun_and_not_blamed(ways: Proxied) -> None:
    hedging = ways.services.directory.hedging
    file, won = stored(ways), hedging.won
    first = read_first(file)
    with ways.struck("down", BLOCK // 2, lambda proxy: proxy.blackhole()):
        assert b"".join(map(bytes, ways.services.downloader.read(file, 0, len(DATA), soon()))) == DATA
    assert hedging.won == won + 1
    assert ways.client(first).link.breaker.state is State.CLOSED
