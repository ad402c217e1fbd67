"""Downloads while the network of one node is bad in every way, at every phase: the same bytes, and in time.

Where a node may be silent for ever (``PATIENT``), nothing but reading from another in time ends a download
before the test's own deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import cast

import pytest

from distfs.config.settings import BytesPerSecond, Fraction, Seconds
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.model import File, Policy
from distfs.peers.directory import Standing
from tests.contract.litter import eventually
from tests.contract.samples import random_bytes
from tests.faults.patch import unplanned
from tests.faults.proxied import IMPATIENT, PATIENT, Proxied, known, proxied
from tests.faults.proxy import Proxy
from tests.integration.byte_ways import BLOCK, CODED, COPIES, SLICE

#: More than every node's two slices: some node sends more than any phase here.
DATA = random_bytes(6 * SLICE + 1234)
#: Bytes from a node after which its network breaks: before an answer, in its header, in the table, in and
#: between cells, and in the answer about the next slice.
PHASES = [0, 7, 100, 300, 3000, BLOCK + 400, 3 * BLOCK, SLICE + 700]
POLICIES = [COPIES, CODED]

Break = Callable[[Proxy], object]
BREAKS: dict[str, Break] = {
    "blackhole": Proxy.blackhole,
    "silent answers": lambda proxy: proxy.down.hold(),
    "reset": Proxy.reset,
    "half-close": lambda proxy: proxy.down.end(),
}


@pytest.fixture(params=POLICIES, ids=str)
def policy(request: pytest.FixtureRequest) -> Policy:
    assert isinstance(request.param, Policy)
    return request.param


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Proxied]:
    """Only a hedge ends the silence of a node."""
    with proxied(metadb_url, tmp_path, hedge_budget=Fraction(0.99), **PATIENT) as ways:
        yield ways
        ways.heal()
        ways.assert_clean()


@pytest.mark.parametrize("broken", BREAKS)
def test_one_bad_node_at_any_phase_changes_nothing(ways: Proxied, policy: Policy, broken: str) -> None:
    for _ in ways.proxies:
        file = ways.upload(DATA, policy)  # whose nodes are others, or in another order
        for phase in PHASES:
            ways.services.directory.close()  # as if the service had just begun: nothing is known of nodes
            with ways.struck("down", phase, BREAKS[broken]):
                assert ways.download(file) == DATA, f"{broken} after {phase} bytes"
            for proxy in ways.proxies.values():
                proxy.reset()
            eventually(lambda: not any(p.connections for p in ways.proxies.values()), "begin anew")


def read_first(file: File) -> int:
    """The node whose copy of the first slice is preferred."""
    [piece, *_] = file.slices
    return piece.nodes[piece.id.int % len(piece.nodes)]


def test_a_silent_node_is_outrun_and_then_asked_last(ways: Proxied) -> None:
    one_slice = DATA[
        :SLICE
    ]  # so that nobody but the silent one can be outrun: the other has only it beside it
    file = ways.upload(one_slice)
    silent = read_first(file)
    ways.proxies[silent].blackhole()
    hedging = ways.services.directory.hedging
    for _ in range(100):
        if ways.services.directory.standing(ways.nodes)[silent] is not Standing.GOOD:
            break
        assert ways.download(file) == one_slice
    assert hedging.won > 0

    def nobody_is_outrun() -> bool:
        won = hedging.won
        for _ in range(15):
            assert ways.download(file) == one_slice
        return hedging.won == won

    # On a busy machine the other is slow as well for a while, and then the preferred one is asked first again.
    eventually(nobody_is_outrun, "nobody has to outrun a node that is asked last")


def test_a_late_node_that_is_first_all_the_same_is_read_on_and_blamed_for_nothing(
    ways: Proxied, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cell is whole when the race ends: what comes next is the next cell."""
    file = ways.upload(DATA[:SLICE], policy)
    noted: list[object] = []
    note = lambda fragment, node, error: noted.append((fragment, node, str(error)))  # noqa: E731
    monkeypatch.setattr(ways.services.downloader, "_note_damage", unplanned(note))
    directory = ways.services.directory
    eventually(  # on a busy machine a node may have been late by itself
        lambda: (
            ways.download(file) == DATA[:SLICE]
            and set(directory.standing(ways.nodes).values()) == {Standing.GOOD}
        ),
        "how quick they are is known, and connections are there",
    )
    hedged, won = directory.hedging.hedged, directory.hedging.won
    [piece] = file.slices
    wanted = {read_first(file)} if policy.k == 1 else set(piece.nodes[: policy.k])
    for node, proxy in ways.proxies.items():
        proxy.down.delay = 0.2 if node in wanted else 2
    assert ways.download(file) == DATA[:SLICE]
    assert (directory.hedging.hedged > hedged, directory.hedging.won) == (True, won)
    assert noted == []


def test_a_node_that_was_only_late_is_read_when_too_few_others_are_left(ways: Proxied) -> None:
    """Two of three are needed. One is lost, one is late, and the third, which was quicker, is not enough."""
    file = ways.upload(DATA, CODED)
    for piece in file.slices:
        ways.services.directory.close()  # nothing is known of any node
        ways.paths(file, piece.ordinal)[0].unlink()
        ways.proxies[piece.nodes[1]].down.delay = 0.2
        at = piece.ordinal * SLICE
        assert ways.download(file, at, at + piece.size) == DATA[at : at + piece.size]
        ways.heal()
    assert ways.services.directory.hedging.won > 0


def test_a_node_that_is_quick_again_is_read_again(ways: Proxied) -> None:
    file = ways.upload(DATA)
    slow = read_first(file)
    directory = ways.services.directory
    ways.proxies[slow].down.delay = 0.2
    eventually(
        lambda: ways.download(file) == DATA and directory.standing(ways.nodes)[slow] is not Standing.GOOD,
        "it is known to be slow",
        20,
    )
    ways.heal()
    eventually(
        lambda: known(ways) and directory.standing(ways.nodes)[slow] is Standing.GOOD,
        "probes have shown that it is quick again",
        30,
    )


def test_extra_reads_stay_within_their_budget(metadb_url: str, tmp_path: Path) -> None:
    with proxied(metadb_url, tmp_path, hedge_budget=Fraction(0.05)) as ways:
        file = ways.upload(DATA)
        for proxy in ways.proxies.values():
            proxy.down.delay = 0.06  # every node is late by a little: nothing is to be won
        hedging = ways.services.directory.hedging
        for _ in range(15):
            assert ways.download(file) == DATA
        assert hedging.hedged <= 0.05 * hedging.reads + 32


def test_without_a_budget_a_late_node_is_waited_for(metadb_url: str, tmp_path: Path) -> None:
    with proxied(metadb_url, tmp_path, hedge_budget=Fraction(0), **PATIENT) as ways:
        file = ways.upload(DATA)
        for proxy in ways.proxies.values():
            proxy.down.delay = 0.12
        assert ways.download(file) == DATA
        assert ways.services.directory.hedging.hedged == 0


def test_without_memory_for_a_second_copy_a_late_node_is_waited_for(metadb_url: str, tmp_path: Path) -> None:
    with proxied(metadb_url, tmp_path, hedge_budget=Fraction(0.99), **PATIENT) as ways:
        file = ways.upload(DATA)
        pool, hedging = ways.services.pool, ways.services.directory.hedging
        borrowed = 0
        while pool.borrow(BLOCK):
            borrowed += BLOCK
        ways.proxies[read_first(file)].down.delay = 0.2
        assert ways.download(file) == DATA
        assert hedging.hedged == 0
        pool.repay(borrowed)
        ways.services.directory.close()  # what is known of the late node is forgotten
        assert ways.download(file) == DATA
        assert hedging.hedged > 0
        assert pool.usage().spooled == 0


@pytest.mark.parametrize("flow", ["down", "up"])
@pytest.mark.parametrize("at", [0, 3, 9, 17, 30, 60, 100, 140, 200, 300, 1000, BLOCK + 500, 2 * SLICE])
def test_a_bit_flipped_on_the_way_is_never_delivered(
    metadb_url: str, tmp_path: Path, policy: Policy, flow: str, at: int
) -> None:
    with proxied(metadb_url, tmp_path, **IMPATIENT) as ways:
        for _ in ways.proxies:
            file = ways.stored(DATA, policy)
            ways.services.directory.close()
            place = at if flow == "down" else at % 300
            with ways.struck(flow, place, lambda proxy: getattr(proxy, flow).flip()):
                assert ways.download(file) == DATA


def test_a_throttled_node_that_keeps_up_with_the_least_rate_is_left_at_it(
    metadb_url: str, tmp_path: Path
) -> None:
    with proxied(metadb_url, tmp_path, min_rate=BytesPerSecond(10_000)) as ways:
        file = ways.upload(DATA)
        for proxy in ways.proxies.values():
            proxy.down.rate = 400_000
        assert ways.download(file) == DATA


def test_a_node_that_trickles_is_given_up_in_words_that_say_how_slow_it_was(
    metadb_url: str, tmp_path: Path
) -> None:
    with proxied(metadb_url, tmp_path, count=2, **(IMPATIENT | {"stall_timeout": Seconds(5)})) as ways:
        file = ways.upload(DATA)
        for proxy in ways.proxies.values():
            proxy.down.rate = 2000
        _, error = ways.read_until_it_fails(file)
        assert error is not None
        assert "between bytes" in str(error)
        assert "bytes left" in str(error)
        assert f"{IMPATIENT['base_timeout']:.1f} s" in str(error)


@pytest.mark.parametrize("hold", ["up", "down"])
def test_a_stall_names_the_node_the_phase_and_the_limit(metadb_url: str, tmp_path: Path, hold: str) -> None:
    with proxied(metadb_url, tmp_path, count=2, **IMPATIENT) as ways:
        file = ways.upload(DATA)
        ways.let_go()
        for proxy in ways.proxies.values():
            getattr(proxy, hold).hold()
        _, error = ways.read_until_it_fails(file)
        assert isinstance(error, DistfsError)
        for proxy in ways.proxies.values():
            assert f"node {proxy.address}: first byte" in str(error)
        assert f"the limit is {IMPATIENT['stall_timeout']:.1f} s" in str(error)


def test_a_download_whose_client_has_gone_lets_go_of_everything(ways: Proxied) -> None:
    file = ways.upload(DATA)
    assert ways.download(file) == DATA
    ways.let_go()
    before = ways.held()
    for proxy in ways.proxies.values():  # one slice comes, the next never does
        proxy.down.at(SLICE // 2, proxy.down.hold)
    reading = cast("Generator[memoryview]", ways.services.downloader.read(file, 0, file.size, Deadline(3600)))
    next(reading)
    reading.close()  # what the host does when the client hangs up
    assert ways.blocks_out() == 0
    assert all(ways.client(node).link.pool.snapshot().lent == 0 for node in ways.nodes)
    ways.heal()
    ways.let_go()
    eventually(lambda: ways.held() <= before, f"{ways.held()} descriptors and threads, {before} before")


def test_a_service_that_refuses_connections_is_read_around(ways: Proxied) -> None:
    file = ways.upload(DATA)
    for node in {piece.nodes[piece.id.int % len(piece.nodes)] for piece in file.slices}:  # who is read first
        ways.let_go()
        ways.proxies[node].refuses = True
        assert ways.download(file) == DATA
        ways.heal()


def test_no_second_read_for_healthy_nodes(metadb_url: str, tmp_path: Path) -> None:
    """Those that answer within ``hedge_min``: so long that only a node that is ill takes longer."""
    healthy = PATIENT | {"hedge_budget": Fraction(0.99), "hedge_min": Seconds(20)}
    with proxied(metadb_url, tmp_path, **healthy) as ways:
        file = ways.upload(DATA)
        for _ in range(3):
            assert ways.download(file, 0, SLICE) == DATA[:SLICE]
        assert ways.services.directory.hedging.hedged == 0
