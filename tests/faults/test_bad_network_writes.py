"""Uploads while the network of one node is bad in every way, at every phase: redundant at the end, on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import distfs.transfer.discard
from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import ClientGone, Unavailable
from distfs.model import Policy
from tests.contract.litter import eventually
from tests.contract.samples import random_bytes, soon
from tests.faults.proxied import IMPATIENT, PATIENT, Proxied, known, proxied
from tests.faults.proxy import Proxy
from tests.integration.byte_ways import BLOCK, CODED, COPIES, SLICE, Source

DATA = random_bytes(3 * SLICE + 1234)
SMALL = DATA[:1000]
#: Bytes to a node after which its network breaks: in the request, between it and the first cell, in and
#: between cells, in the end.
PHASES = [0, 5, 150, 700, 3000, BLOCK + 1000, 3 * BLOCK, SLICE + 100]

BREAKS: dict[str, Callable[[Proxy], object]] = {
    "blackhole": Proxy.blackhole,
    "reset": Proxy.reset,
    "half-close": lambda proxy: proxy.up.end(),
    "refusal": Proxy.refuse,
}


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Proxied]:
    # One more than an upload needs when one is lost: a busy machine may make another one late.
    with proxied(metadb_url, tmp_path, count=4, **IMPATIENT) as ways:
        yield ways
        ways.heal()
        ways.assert_clean()


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("data", [DATA, SMALL], ids=["slices", "one block"])
def test_a_node_lost_at_any_phase_is_replaced(ways: Proxied, broken: str, data: bytes) -> None:
    for phase in [p for p in PHASES if p < len(data)]:
        ways.services.directory.close()
        with ways.struck("up", phase, BREAKS[broken]):
            file = ways.upload(data)
        ways.assert_redundant(file, data)


@pytest.mark.parametrize("broken", ["blackhole", "reset"])
def test_an_acknowledgement_that_is_lost_is_an_upload_to_another_node(ways: Proxied, broken: str) -> None:
    for data in (DATA, SMALL):
        ways.services.directory.close()
        with ways.struck("down", 0, BREAKS[broken]):
            file = ways.upload(data)
        ways.assert_redundant(file, data)


def test_a_node_that_stalls_in_mid_upload_is_replaced(ways: Proxied) -> None:
    stalled: list[int] = []
    for number, proxy in ways.proxies.items():
        if not stalled:
            stalled.append(number)
            proxy.up.at(2 * BLOCK, proxy.up.hold)
    for _ in range(6):  # until it had been chosen
        file = ways.upload(DATA)
        ways.proxies[stalled[0]].up.release()
        ways.assert_redundant(file, DATA)
        ways.proxies[stalled[0]].up.hold()
    ways.heal()


PLACES = [0, 4, 6, 9, 15, 19, 25, 60, 100, 200, 350, 500, 640, 700, 1500, BLOCK + 900]


@pytest.mark.parametrize("flow", ["up", "down"])
@pytest.mark.parametrize(
    ("data", "at"),
    [(DATA, at) for at in PLACES] + [(SMALL, at) for at in PLACES if at < len(SMALL)],
    ids=[f"slices-{at}" for at in PLACES] + [f"one block-{at}" for at in PLACES if at < len(SMALL)],
)
def test_a_bit_flipped_on_the_way_is_never_stored(ways: Proxied, flow: str, data: bytes, at: int) -> None:
    """Not in a cell, which has a checksum, and not in what says where it belongs."""
    for _ in ways.proxies:
        ways.services.directory.close()
        place = at if flow == "up" else at % 28
        with ways.struck(flow, place, lambda proxy: getattr(proxy, flow).flip()):
            file = ways.upload(data)
        ways.assert_redundant(file, data)


# --- stale connections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, DATA], ids=["one block", "slices"])
def test_connections_that_went_stale_cost_a_small_upload_nothing(ways: Proxied, data: bytes) -> None:
    """A firewall forgot them: the first packet is answered with a reset, where reading had shown nothing."""
    nodes = {}
    for _ in range(4):
        file = ways.upload(data)
        for piece in file.slices:
            nodes.update(dict.fromkeys(piece.nodes))
    for proxy in ways.proxies.values():
        proxy.up.at(0, proxy.reset)
    file = ways.upload(SMALL)
    assert all(file.slices[0].nodes)
    states = [ways.client(node).link.pool.snapshot() for node in nodes]
    assert sum(state.stale for state in states) >= 2, "both nodes were asked again on a fresh one"
    assert sum(state.broken for state in states) == 0
    ways.assert_redundant(file, SMALL)


# --- leaving a node alone -------------------------------------------------------------------------------------


def test_a_node_that_keeps_failing_is_not_written_to_until_it_is_well(
    metadb_url: str, tmp_path: Path
) -> None:
    settings = IMPATIENT | {"breaker_failures": 2, "breaker_pause": Seconds(0.3)}
    with proxied(metadb_url, tmp_path, **settings) as ways:
        bad = next(iter(ways.proxies))
        ways.proxies[bad].blackhole()
        eventually(
            lambda: ways.upload(SMALL).size and not ways.client(bad).trusted, "it is left alone", seconds=30
        )
        moved = ways.proxies[bad].connections
        for _ in range(10):
            file = ways.upload(SMALL)
            assert bad not in file.slices[0].nodes
        assert ways.proxies[bad].connections <= moved + 10
        ways.heal()
        eventually(lambda: known(ways) and ways.client(bad).trusted, "a probe finds it well", seconds=30)
        eventually(lambda: bad in ways.upload(SMALL).slices[0].nodes, "it is written to again", seconds=30)


def test_a_node_left_alone_is_used_when_there_are_no_others(metadb_url: str, tmp_path: Path) -> None:
    settings = IMPATIENT | {"breaker_failures": 1, "breaker_pause": Seconds(3600)}
    with proxied(metadb_url, tmp_path, count=2, **settings) as ways:
        file = ways.upload(SMALL)
        for node in ways.nodes:
            ways.client(node).link.breaker.failed()
            assert not ways.client(node).trusted
        assert ways.download(file) == SMALL, "it is asked last, and then it is asked"
        for node in ways.nodes:
            ways.client(node).link.breaker.failed()
        ways.assert_redundant(ways.upload(SMALL), SMALL)


# --- giving up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [COPIES, Policy(1, 2)], ids=str)
def test_a_client_that_hangs_up_ends_the_wait_for_a_node_that_stalls(
    metadb_url: str, tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        distfs.transfer.discard, "DISCARD_LIMIT_S", 0.2
    )  # those that stall delete nothing either
    with proxied(metadb_url, tmp_path, **PATIENT) as ways:
        ways.upload(DATA, policy)
        ways.let_go()
        before = ways.held()
        for proxy in ways.proxies.values():
            proxy.up.at(BLOCK, proxy.up.hold)

        def gone() -> None:
            eventually(lambda: any(proxy.up.held for proxy in ways.proxies.values()), "a node stalls")
            raise ClientGone("the client has hung up")

        with pytest.raises(ClientGone):
            ways.upload(Source(DATA, {SLICE + BLOCK: gone}), policy)
        assert ways.blocks_out() == 0
        links = [ways.client(node).link.pool for node in ways.nodes]
        eventually(lambda: not any(pool.snapshot().lent for pool in links), "no connection is in use")
        ways.heal()
        ways.let_go()
        ways.assert_clean()
        eventually(lambda: ways.held() <= before, f"{ways.held()} descriptors and threads, {before} before")


@pytest.mark.parametrize("read_on", [False, True], ids=["at the window's end", "at the file's end"])
def test_a_slice_that_fails_wakes_who_waits_for_its_siblings(
    metadb_url: str, tmp_path: Path, read_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes are lost, the third stalls for ever: with k = 2 that is the end, and it comes at once."""
    monkeypatch.setattr(
        distfs.transfer.discard, "DISCARD_LIMIT_S", 0.2
    )  # the one that stalls deletes nothing either
    with proxied(metadb_url, tmp_path, **PATIENT) as ways:
        stalls, *lost = ways.proxies.values()
        stalls.up.hold()
        for proxy in lost:
            proxy.up.at(BLOCK, proxy.refuse)
        data = DATA if read_on else DATA[: 3 * BLOCK]
        with (
            pytest.raises(Unavailable, match="node"),
            ways.services.uploader.begin(Deadline(3600)) as session,
        ):
            session.add(Source(data), name="x", content_type="x", policy=CODED)
        ways.heal()
        eventually(lambda: ways.blocks_out() == 0, "every block came back")
        assert ways.services.meta.list_files(None, 10, soon()) == []
