"""Threads that wait for their share of the bandwidth, and who a caller is believed to be."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import pytest

from distfs.config import file as config_file
from distfs.config.callers import Caller, CallerMatch, Network
from distfs.config.settings import MIB, BandwidthConfig, CallersConfig
from distfs.deadline import Deadline
from distfs.errors import Cancelled, TooSlow, Unavailable
from distfs.limits.bandwidth import Bandwidth, Direction, Share

PATIENCE_S = 30.0


def caller(address: str = "192.0.2.1", **headers: str) -> Caller:
    named: Mapping[str, str] = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return Caller(address, lambda name: named.get(name.lower()))


def settings(*rules: object, **values: object) -> tuple[BandwidthConfig, CallersConfig]:
    config = config_file.parse({"bandwidth": values, "callers": {"rules": [*rules]}})
    return config.bandwidth, config.callers


def trusting(*proxies: str) -> tuple[Network, ...]:
    return config_file.parse({"callers": {"trusted_proxies": [*proxies]}}).callers.trusted_proxies


def take_all(share: Share, amount: int, deadline: Deadline) -> None:
    while amount:
        amount -= share.take(amount, deadline)


@pytest.fixture
def bandwidth() -> Iterator[Bandwidth]:
    shared = Bandwidth(BandwidthConfig(), CallersConfig())
    yield shared
    shared.close()


class Bytes:
    """A source of ``size`` bytes that notes how many were asked for at once."""

    def __init__(self, size: int) -> None:
        self.left, self.asked = size, list[int]()

    def readinto(self, view: memoryview) -> int:
        self.asked.append(len(view))
        count = min(len(view), self.left)
        view[:count] = b"x" * count
        self.left -= count
        return count


# --- threads ----------------------------------------------------------------------------------------


def test_without_a_cap_everything_is_granted_at_once(bandwidth: Bandwidth) -> None:
    passed = Deadline(0, clock=lambda: 0.0)
    assert bandwidth.transfer(caller(), "in").take(10**12, passed) == 10**12


def test_only_the_capped_direction_waits(bandwidth: Bandwidth) -> None:
    bandwidth.configure(*settings(cap_out="1"))
    assert bandwidth.transfer(caller(), "in").take(MIB, Deadline(PATIENCE_S)) == MIB
    share = bandwidth.transfer(caller(), "out")
    assert share.take(MIB, Deadline(PATIENCE_S)) < MIB
    with pytest.raises(TooSlow, match="waiting for bandwidth"):
        share.take(MIB, Deadline(0.01))
    assert bandwidth.waiting("out") == 0


def test_threads_share_by_weight_and_use_all_there_is(bandwidth: Bandwidth) -> None:
    """Whoever comes late to ask, as on a busy machine, leaves the others more; so one round of several has to do."""
    rounds: list[int] = []
    while not any(2 * MIB < light < 6 * MIB for light in rounds):  # 4 MiB
        assert len(rounds) < 30, rounds
        rounds.append(got_by_the_light_one(bandwidth))


def got_by_the_light_one(bandwidth: Bandwidth) -> int:
    """Bytes that it was granted when the heavy ones had all of theirs; no clock is read."""
    rules = [{"match": "10.0.0.0/8", "weight": "4"}]
    bandwidth.configure(*settings(*rules, cap_in="40MiB/s"))
    deadline = Deadline(PATIENCE_S)
    light_got, at_ends, heavy_are_done = [0], list[int](), threading.Event()
    light = bandwidth.transfer(caller(), "in")
    heavy = [bandwidth.transfer(caller("10.0.0.1"), "in") for _ in range(2)]

    def run_light() -> None:
        while not heavy_are_done.is_set():
            light_got[0] += light.take(MIB, deadline)

    def run_heavy(share: Share) -> None:
        take_all(share, 16 * MIB, deadline)
        at_ends.append(light_got[0])  # here: from now on the light one has all there is

    threads = [threading.Thread(target=run_heavy, args=(share,)) for share in heavy]
    for thread in threads:
        thread.start()
    wait_for_waiting(bandwidth, "in", 2)
    last = threading.Thread(target=run_light)
    last.start()
    for thread in threads:
        thread.join()
    heavy_are_done.set()
    last.join()
    return at_ends[-1]


def test_who_waits_goes_on_when_the_cap_is_lifted_or_changed(bandwidth: Bandwidth) -> None:
    bandwidth.configure(*settings(cap_out="1"))
    done = threading.Semaphore(0)

    def run() -> None:
        take_all(bandwidth.transfer(caller(), "out"), 3 * MIB, Deadline(PATIENCE_S))
        done.release()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for_waiting(bandwidth, "out", 8)
    bandwidth.configure(*settings(cap_out="2", mode="batch"))
    wait_for_waiting(bandwidth, "out", 8)
    assert not done.acquire(blocking=False)
    bandwidth.configure(*settings(cap_out="100MiB/s"))
    for _ in threads:
        assert done.acquire(timeout=PATIENCE_S)
    for thread in threads:
        thread.join()


def wait_for_waiting(bandwidth: Bandwidth, direction: Direction, count: int) -> None:
    pause, deadline = threading.Event(), Deadline(PATIENCE_S)
    while bandwidth.waiting(direction) != count:
        deadline.remaining("threads to wait")
        pause.wait(0.005)


def test_nobody_waits_on_when_the_service_stops(bandwidth: Bandwidth) -> None:
    bandwidth.configure(*settings(cap_out="1"))
    outcomes: list[type[Exception]] = []

    def run() -> None:
        try:
            take_all(bandwidth.transfer(caller(), "out"), MIB, Deadline(PATIENCE_S))
        except Unavailable as e:
            outcomes.append(type(e))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for_waiting(bandwidth, "out", 3)
    bandwidth.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == [Unavailable] * 3


def test_one_that_runs_out_of_time_leaves_the_others_their_turns(bandwidth: Bandwidth) -> None:
    bandwidth.configure(*settings(cap_out="1MiB/s"))
    with pytest.raises(TooSlow):
        take_all(bandwidth.transfer(caller(), "out"), 100 * MIB, Deadline(0.1))
    take_all(bandwidth.transfer(caller(), "out"), MIB // 8, Deadline(PATIENCE_S))


@pytest.mark.parametrize("cap", ["0", "100MiB/s"])
@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB])
@pytest.mark.parametrize("known", [True, False])
def test_a_paced_source_gives_every_byte_and_fills_its_views(
    bandwidth: Bandwidth, cap: str, size: int, known: bool
) -> None:
    bandwidth.configure(*settings(cap_in=cap))
    source = bandwidth.incoming(Bytes(size), caller(), Deadline(PATIENCE_S), size if known else None)
    view = memoryview(bytearray(MIB))
    counts = []
    while count := source.readinto(view):
        counts.append(count)
    assert sum(counts) == size
    assert all(count == MIB for count in counts[:-1])


def test_a_paced_download_gives_the_same_bytes_in_smaller_pieces(bandwidth: Bandwidth) -> None:
    bandwidth.configure(*settings(cap_out="10MiB/s"))
    blocks = [bytes([n]) * 300_000 for n in range(3)]
    views = bandwidth.outgoing(
        map(memoryview, blocks), bandwidth.transfer(caller(), "out"), Deadline(PATIENCE_S)
    )
    pieces = [bytes(view) for view in views]
    assert b"".join(pieces) == b"".join(blocks)
    assert len(pieces) > len(blocks)


def test_a_download_that_is_given_up_closes_what_it_reads_from(bandwidth: Bandwidth) -> None:
    closed = threading.Event()

    def blocks() -> Iterator[memoryview]:
        try:
            yield memoryview(b"first")
            yield memoryview(b"second")
        finally:
            closed.set()

    inner = blocks()
    views = bandwidth.outgoing(inner, bandwidth.transfer(caller(), "out"), Deadline(PATIENCE_S))
    next(views)
    views.close()  # type: ignore[attr-defined]  # a generator
    assert closed.is_set()


# --- callers ----------------------------------------------------------------------------------------


def address_of(who: Caller, *proxies: str) -> str:
    return str(who.identify(trusting(*proxies)).address)


def test_forwarded_for_is_believed_from_trusted_proxies_only() -> None:
    who = caller("10.0.0.9", X_Forwarded_For="198.51.100.7")
    assert address_of(who) == "10.0.0.9"
    assert address_of(who, "10.0.0.0/24") == "198.51.100.7"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("6.6.6.6, 198.51.100.7, 10.0.0.2", "198.51.100.7"),  # what the client itself wrote is to the left
        ("198.51.100.7:4711", "198.51.100.7"),
        ("[2001:db8::5]:80", "2001:db8::5"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("6.6.6.6, unknown", "10.0.0.9"),
        ("", "10.0.0.9"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
    ],
)
def test_the_last_address_that_is_no_proxy_is_the_clients(forwarded: str, address: str) -> None:
    assert address_of(caller("10.0.0.9", X_Forwarded_For=forwarded), "10.0.0.0/8") == address


def test_a_header_is_believed_from_trusted_proxies_only() -> None:
    match = CallerMatch.parse("X-Team=gold")
    who = caller("10.0.0.9", X_Team="gold")
    assert not who.identify(()).matches(match)
    assert who.identify(trusting("10.0.0.9")).matches(match)


def test_a_unix_socket_has_no_address_and_matches_no_range() -> None:
    everyone = CallerMatch.parse("0.0.0.0/0")
    assert not caller("").identify(()).matches(everyone)
    assert caller().identify(()).matches(everyone)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "example.org", "", "X-Team", "=gold"])
def test_what_is_no_match_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address range such as 10\.0\.0\.0/8"):
        CallerMatch.parse(text)


def test_who_is_cancelled_stops_waiting_and_the_others_go_on(bandwidth: Bandwidth) -> None:
    """The first to wait is the one that wakes the others."""
    bandwidth.configure(*settings(cap_out="1"))
    first, second = bandwidth.transfer(caller(), "out"), bandwidth.transfer(caller(), "out")
    done = []

    def go(share: Share, deadline: Deadline) -> None:
        try:
            take_all(share, 10 * MIB, deadline)
            done.append("done")
        except Cancelled:
            done.append("cancelled")

    with Deadline(PATIENCE_S).scope() as scope:
        threads = [
            threading.Thread(target=go, args=(first, scope)),
            threading.Thread(target=go, args=(second, Deadline(PATIENCE_S))),
        ]
        for count, thread in enumerate(threads, 1):
            thread.start()
            while bandwidth.waiting("out") < count:
                threading.Event().wait(0.005)
        scope.cancel("the client hung up")
        threads[0].join(PATIENCE_S)
        assert done == ["cancelled"]
        bandwidth.configure(*settings(cap_out="100MiB"))
        threads[1].join(PATIENCE_S)
    assert done == ["cancelled", "done"]


@pytest.mark.parametrize(
    ("said", "scheme"),
    [("https", "https"), ("HTTPS", "https"), ("https, http", "http"), ("gopher", "http"), ("", "http")],
)
def test_the_scheme_is_what_the_last_proxy_says_if_it_is_one(said: str, scheme: str) -> None:
    who = caller("10.0.0.9", X_Forwarded_Proto=said)
    assert who.identify(trusting("10.0.0.9")).scheme("http") == scheme
    assert who.identify(()).scheme("http") == "http"
