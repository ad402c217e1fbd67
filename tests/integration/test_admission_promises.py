"""Promises of room: given once, by whatever service; back at every end. Real PostgreSQL, several services at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

import distfs.limits.ledger
import distfs.limits.promises
from distfs.config.settings import Bytes, CallersConfig, HttpConfig, MetaDBConfig, Seconds, StorageConfig
from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError, Full, TooLarge, Unavailable
from distfs.limits.callers import Callers
from distfs.limits.db import Reservation, ReservationDB
from distfs.limits.gate import Gate
from distfs.limits.promises import Admission, Promise
from distfs.limits.tally import SharedTally, Tally
from distfs.meta import MetaDB
from distfs.model import Address, NodeReport, Policy
from distfs.process.shared_table import SharedTable
from tests.contract.litter import eventually
from tests.integration.meta_proxy import Proxy, proxied_url
from tests.postgres import run_sql

MIB = 1 << 20
STORAGE = StorageConfig(block_size=Bytes(MIB), slice_size=Bytes(4 * MIB))
TWO_COPIES = Policy(1, 1)
REPORTS = [NodeReport(uuid4(), Address("127.0.0.1", 9000 + i), "", 1 << 40, 0, 0, "active") for i in range(3)]


class Services:
    """Admissions of several services on one MetaDB, and nodes that say how much they have."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url, self._stack = url, stack
        self.meta = MetaDB(MetaDBConfig(url=url), down_after=60)
        stack.callback(self.meta.close)

    def nodes_have(self, *free: int, disk: str = "") -> None:
        """``disk``: all of them are on this one."""
        for report, each in zip(REPORTS, free, strict=False):
            self.meta.heartbeat(replace(report, free=each, disk=disk), Deadline(60))

    def service(self, tally: Tally | None = None) -> Admission:
        admission = Admission(
            ReservationDB(self.meta, uuid4()),
            Gate(),
            STORAGE,
            HttpConfig(),
            Callers(CallersConfig(), HttpConfig(), tally),
        )
        self._stack.callback(admission.close)
        return admission

    def promised(self) -> int:
        """Bytes on all nodes that count now."""
        state = ReservationDB(self.meta, uuid4()).state(Deadline(60))
        return sum(width * share for width, share in state.demands.items())

    def rows(self) -> int:
        return int(run_sql(self.url, "SELECT count(*) FROM reservation")[0][0])


@pytest.fixture
def services(metadb_url: str) -> Iterator[Services]:
    with ExitStack() as stack:
        yield Services(metadb_url, stack)


def admit(admission: Admission, size: int | None, policy: Policy = TWO_COPIES) -> Promise:
    return admission.admit(size, policy, Deadline(20))


def test_the_last_bytes_are_promised_once_whatever_the_service(services: Services) -> None:
    services.nodes_have(100 * MIB, 100 * MIB)
    first, second = services.service(), services.service()
    with admit(first, 60 * MIB):
        for service in (first, second):
            with pytest.raises(Full, match="no room for 60.0 MiB as 1[+]1: at most") as refused:
                admit(service, 60 * MIB)
            assert refused.value.status == 507
            assert refused.value.retry_after, "the first may fail, and then there is room"
        with admit(second, 30 * MIB):
            pass
    eventually(lambda: not services.promised(), "what was not used is free again")
    with admit(second, 60 * MIB):
        pass


def test_the_bytes_of_one_disk_are_promised_once_whatever_nodes_it_has(services: Services) -> None:
    services.nodes_have(100 * MIB, 100 * MIB, 100 * MIB, disk="one")
    admission = services.service()
    with admit(admission, 40 * MIB), pytest.raises(Full, match="no room"):
        admit(admission, 20 * MIB)
    with pytest.raises(Full, match="no room"):
        admit(admission, 60 * MIB)
    services.nodes_have(100 * MIB, 100 * MIB, 100 * MIB)
    with admit(services.service(), 60 * MIB):
        pass


def test_of_many_at_once_as_many_are_admitted_as_fit(services: Services) -> None:
    services.nodes_have(35 * MIB, 35 * MIB, 35 * MIB)  # 52 MiB in two copies: five of 10
    admissions = [services.service() for _ in range(3)]
    start, leave = threading.Barrier(24), threading.Barrier(24)

    def upload(number: int) -> bool:
        start.wait(120)
        try:
            with admit(admissions[number % 3], 10 * MIB):
                leave.wait(120)
                return True
        except Full:
            leave.wait(120)
            return False

    with ThreadPoolExecutor(24) as uploads:
        assert sum(uploads.map(upload, range(24))) == 5
    eventually(lambda: not services.rows(), "every reservation is gone")


def test_a_file_that_never_fits_is_refused_for_good(services: Services) -> None:
    services.nodes_have(100 * MIB, 100 * MIB, MIB)
    with pytest.raises(
        Full, match="delete files and run `distfs trash empty`, or add storage nodes"
    ) as refused:
        admit(services.service(), 200 * MIB)
    assert refused.value.retry_after is None


def test_two_copies_need_room_on_two_nodes(services: Services) -> None:
    services.nodes_have(1000 * MIB, 5 * MIB, 5 * MIB)
    with pytest.raises(Full):
        admit(services.service(), 20 * MIB)
    with admit(services.service(), 20 * MIB, Policy(1, 0)):
        pass


def test_too_few_nodes_are_503_and_not_507(services: Services) -> None:
    services.nodes_have(100 * MIB)
    for size in (1, 10 * MIB):
        with pytest.raises(
            Unavailable, match=r"2 storage nodes .* are needed and 1 can \(1 known, 1 up\)"
        ) as refused:
            admit(services.service(), size)
        assert refused.value.status == 503


def test_what_was_committed_counts_until_the_nodes_have_reported(services: Services) -> None:
    services.nodes_have(100 * MIB, 100 * MIB)
    admission = services.service()
    with admit(admission, 60 * MIB) as promise:
        promise.keep()
    eventually(lambda: not admission.usage()["reservations"], "the service has forgotten it")
    eventually(lambda: _ended(services), "MetaDB was told")
    with pytest.raises(Full):
        admit(admission, 60 * MIB)
    services.nodes_have(40 * MIB)
    assert services.promised(), "one node has not reported yet"
    services.nodes_have(40 * MIB, 40 * MIB)
    assert not services.promised()


def _ended(services: Services) -> bool:
    return bool(run_sql(services.url, "SELECT FROM reservation WHERE ended_at IS NOT NULL"))


def test_what_a_dead_service_was_promised_expires(services: Services) -> None:
    services.nodes_have(100 * MIB, 100 * MIB)
    dead = ReservationDB(services.meta, uuid4())
    assert dead.reserve(Reservation(uuid4(), 2, 90 * MIB), dead.state(Deadline(60)).grants, 60, Deadline(60))
    with pytest.raises(Full):
        admit(services.service(), 60 * MIB)
    run_sql(services.url, "UPDATE reservation SET expires_at = now() - interval '1 s'")
    with admit(services.service(), 60 * MIB):
        pass
    eventually(lambda: not services.rows(), "and its row is removed by who lives")


def test_a_promise_is_renewed_and_shrinks_one_renewal_late(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.ledger, "RENEW_S", 0.2)
    monkeypatch.setattr(distfs.limits.ledger, "EXPIRES_S", 3600.0)
    services.nodes_have(100 * MIB, 100 * MIB)
    with admit(services.service(), 50 * MIB) as promise:
        whole = services.promised()
        run_sql(services.url, "UPDATE reservation SET expires_at = now() + interval '1 s'")
        promise.received(40 * MIB)
        eventually(lambda: abs(services.promised() - whole / 5) <= 2, "what is written is not promised")
        run_sql(services.url, "DELETE FROM reservation")  # as a crash of MetaDB does
        eventually(lambda: bool(services.promised()), "what was lost is put back")
    eventually(lambda: not services.rows(), "it is gone at its end")


def test_room_for_a_body_of_unknown_length_is_found_as_it_comes(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.promises, "REPORTED_S", 0.0)  # nobody reports here
    services.nodes_have(30 * MIB, 30 * MIB)
    with admit(services.service(), None) as promise:
        for _ in range(28):
            promise.received(MIB)
        assert promise.covered >= 28 * MIB
        with pytest.raises(Full):
            promise.received(20 * MIB)
    eventually(lambda: not services.rows(), "all of its reservations are gone")


def test_room_is_promised_ahead_of_the_bytes_and_not_for_all_that_is_declared(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.promises, "STEP", 4 * MIB)
    services.nodes_have(100 * MIB, 100 * MIB)
    first, second = services.service(), services.service()
    with admit(first, 60 * MIB) as promise:
        assert (promise.covered, services.rows()) == (4 * MIB, 1)
        with admit(second, 90 * MIB):
            pass
        for received in range(1, 61):
            promise.received(MIB)
            assert received * MIB <= promise.covered <= min(received + 4, 60) * MIB
        assert services.rows() == 15
        with pytest.raises(Full, match="no room for 60.0 MiB"):
            admit(second, 60 * MIB)
    with pytest.raises(Full, match="no room for 101.0 MiB"):
        admit(first, 101 * MIB)
    eventually(lambda: not services.rows(), "every step is given back")


def test_of_two_that_fit_one_by_one_the_other_is_refused_as_soon_as_it_shows(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither takes what the other needs for its end: one of them is stored."""
    monkeypatch.setattr(distfs.limits.promises, "REPORTED_S", 0.0)  # nobody reports here
    monkeypatch.setattr(distfs.limits.promises, "STEP", 4 * MIB)
    services.nodes_have(100 * MIB, 100 * MIB)
    with admit(services.service(), 80 * MIB) as first:
        with admit(services.service(), 80 * MIB) as second:
            while first.covered <= 20 * MIB and second.covered:
                first.received(MIB)
                with suppress(Full):
                    second.received(MIB)
            with pytest.raises(Full, match="no room for"):
                second.received(MIB)
        assert second.covered <= 24 * MIB, "it is told as soon as both do not fit"
        while first.covered < 80 * MIB:
            first.received(MIB)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "of unknown length"])
def test_an_address_is_promised_its_share_ahead_and_others_what_they_declare(
    declared: bool, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.promises, "STEP", 20 * MIB)
    services.nodes_have(100 * MIB, 100 * MIB)
    admission = services.service()

    def begin(address: str) -> Promise:
        promise = admission.admit(60 * MIB if declared else None, TWO_COPIES, Deadline(20), whose=[address])
        for _ in range(0 if declared else 12):
            promise.received(MIB)
        return promise

    with ExitStack() as stack:
        hostile = [stack.enter_context(begin("198.51.100.7")) for _ in range(5)]
        assert sum(promise.ahead for promise in hostile) <= 50 * MIB
        most = MIB if declared else 12 * MIB
        assert hostile[-1].ahead <= most, "the last has a block ahead, or as much as came"
        with begin("198.51.100.8") as other:
            assert other.ahead >= (20 * MIB if declared else 4 * MIB)
        hostile[-1].received(5 * MIB)
        assert hostile[-1].ahead >= 0, "it goes on all the same"
    assert not admission.callers.tally.of("bytes ahead")


def test_an_address_is_promised_one_share_ahead_by_all_processes_together(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.promises, "STEP", 20 * MIB)
    services.nodes_have(200 * MIB, 200 * MIB)
    table = SharedTable(2)
    processes = [services.service(SharedTally(table)) for _ in range(2)]

    def begin(process: int) -> Promise:
        table.mine(process)
        address = "198.51.100.7"
        return stack.enter_context(
            processes[process].admit(60 * MIB, TWO_COPIES, Deadline(20), whose=[address])
        )

    with ExitStack() as stack:
        ahead = [begin(0).ahead for _ in range(4)]
        assert ahead[:3] == [20 * MIB] * 3, "one process has what all of them may"
        assert begin(1).ahead == MIB, "another has no share of its own beside"
        assert sum(ahead) <= 100 * MIB


def test_what_was_promised_in_steps_to_a_service_that_died_expires(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.promises, "STEP", 10 * MIB)
    services.nodes_have(100 * MIB, 100 * MIB)
    with admit(services.service(), 60 * MIB) as promise:
        promise.received(25 * MIB)
        assert services.promised() > 2 * 25 * MIB
        run_sql(services.url, "UPDATE reservation SET expires_at = now() - interval '1 s'")
        with admit(services.service(), 90 * MIB):
            pass


def test_who_announces_a_length_is_held_to_it(services: Services) -> None:
    services.nodes_have(30 * MIB, 30 * MIB)
    with services.service().admit(2 * MIB, TWO_COPIES, Deadline(20), declared=False) as promise:
        promise.received(2 * MIB)
        with pytest.raises(TooLarge, match="declared to have"):
            promise.received(1)


def test_a_policy_that_the_body_names_is_promised_instead(services: Services) -> None:
    services.nodes_have(30 * MIB, 30 * MIB, 30 * MIB)
    with admit(services.service(), 20 * MIB) as promise:
        two = services.promised()
        promise.use(Policy(1, 2))
        assert services.promised() == two * 3 // 2, "three copies are promised, and only these"
        promise.use(Policy(1, 1))
        assert services.promised() == two
    with admit(services.service(), 40 * MIB) as promise, pytest.raises(Full):
        promise.use(Policy(1, 2))
    eventually(lambda: not services.rows(), "nothing is left of either")


def test_small_files_cost_no_row_and_leave_what_is_promised_alone(services: Services) -> None:
    services.nodes_have(20 * MIB, 20 * MIB)
    admission = services.service()
    form = admission.storage.block_size + 300  # of one block
    with admit(admission, 100_000), admit(admission, 0), admit(admission, form) as promise:
        promise.received(form)
        assert services.rows() == 0
    with admit(admission, 19 * MIB):
        with pytest.raises(Full):
            admit(services.service(), 10)
        with admit(services.service(), 0):
            pass
    small = [admit(admission, 900_000) for _ in range(15)]
    with pytest.raises(Full):
        admit(admission, 10 * MIB)
    for promise in small:
        promise.__exit__()
    with admit(admission, 10 * MIB):
        pass


def admission_of(meta: MetaDB) -> Admission:
    """Of a service that has no limits but room."""
    callers = Callers(CallersConfig(), HttpConfig())
    return Admission(ReservationDB(meta, uuid4()), Gate(), STORAGE, HttpConfig(), callers)


def test_without_metadb_nothing_is_admitted() -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none?sslmode=disable"
    meta = MetaDB(MetaDBConfig(url=nowhere, patience=Seconds(0)))
    admission = admission_of(meta)
    for size in (10, 10 * MIB, None):
        with pytest.raises(Unavailable, match="MetaDB"):
            admit(admission, size)
    admission.close()
    meta.close()


def test_all_who_wait_are_refused_at_once_when_metadb_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distfs.limits.promises, "_DECIDE_LIMIT_S", 2.0)
    uploads = 12
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none?sslmode=disable"
        meta = MetaDB(MetaDBConfig(url=url, statement_timeout=Seconds(0.5), connect_timeout=Seconds(5)))
        admission = admission_of(meta)

        def upload(_: int) -> None:
            with pytest.raises((Unavailable, Busy)) as refused:
                admission.admit(10 * MIB, TWO_COPIES, Deadline(20))
            assert refused.value.status == 503  # and not by its own deadline: that is a 504

        with ThreadPoolExecutor(uploads) as clients:
            list(clients.map(upload, range(uploads)))  # one after the other they take longer
        admission.close()
        meta.close()


def test_all_who_wait_are_admitted_when_metadb_is_back(
    services: Services, proxy: Proxy, metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them asks, the others wait for their turn: neither is held to what MetaDB may take when it is there."""
    monkeypatch.setattr(distfs.limits.promises, "_DECIDE_LIMIT_S", 2.0)
    services.nodes_have(100 * MIB, 100 * MIB)
    short = MetaDBConfig(
        url=proxied_url(proxy, metadb_url), statement_timeout=Seconds(1), patience=Seconds(300)
    )
    with closing(MetaDB(short, down_after=60)) as meta, ThreadPoolExecutor(4) as clients:
        admission = admission_of(meta)
        proxy.refuses = True
        waiting = [clients.submit(admit, admission, 10 * MIB) for _ in range(4)]
        eventually(lambda: meta._pool.away_for() > 5, "it has been away for long")
        assert not any(each.done() for each in waiting)
        proxy.refuses = False
        for each in waiting:
            with each.result(60):
                pass
        admission.close()


def test_many_that_end_at_once_give_back_together(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another they would take longer than each of them waits, and their room be kept until it expires."""
    services.nodes_have(100 * MIB, 100 * MIB)
    admission, told = services.service(), []
    settle, go_on = ReservationDB.settle, threading.Event()

    def counting(self: ReservationDB, *given: Any) -> None:
        told.append(len(given[2]))
        assert go_on.wait(60)
        settle(self, *given)

    promises = [admit(admission, 2 * MIB) for _ in range(24)]
    monkeypatch.setattr(distfs.limits.promises, "_GIVE_BACK_LIMIT_S", 60.0)
    monkeypatch.setattr(ReservationDB, "settle", counting)
    with ThreadPoolExecutor(24) as uploads:
        ended = [uploads.submit(promise.__exit__) for promise in promises]
        eventually(lambda: bool(told) and len(admission.ledger) == 0, "all have ended, and one tells")
        go_on.set()
        for each in ended:
            each.result()
    assert len(told) <= 3
    assert sum(told) == 24
    assert not services.rows()


@pytest.mark.parametrize("fail", [False, True], ids=["done", "failed"])
def test_no_thread_is_left_when_no_promise_is(services: Services, fail: bool) -> None:
    services.nodes_have(100 * MIB, 100 * MIB)

    before = set(threading.enumerate())  # of other tests' some may just be ending

    def renewers() -> int:
        return sum(thread.name == "admission" for thread in set(threading.enumerate()) - before)

    ends: list[Callable[[], None]] = []
    for _ in range(3):
        promise = admit(services.service(), 10 * MIB)
        ends.append(lambda promise=promise: _leave(promise, fail))  # type: ignore[misc]
    assert renewers() == 3
    for end in ends:
        end()
    eventually(lambda: not renewers(), "the threads have ended")


def _leave(promise: Promise, fail: bool) -> None:
    try:
        with promise:
            if fail:
                raise Unavailable("a node failed")
            promise.keep()
    except DistfsError:
        assert fail
