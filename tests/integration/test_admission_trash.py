"""The trash gives way before an upload is refused: the oldest, as much as is needed, and only if that helps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import UUID, uuid4

import pytest

from distfs.config.settings import CallersConfig, HttpConfig
from distfs.deadline import Deadline
from distfs.errors import Full
from distfs.limits.callers import Callers
from distfs.limits.db import ReservationDB
from distfs.limits.gate import Gate
from distfs.limits.promises import WAITING, Admission
from distfs.meta import MetaDB
from tests.contract.litter import eventually
from tests.integration.test_admission_promises import MIB, STORAGE, Services, admit
from tests.postgres import run_sql


@pytest.fixture
def services(metadb_url: str) -> Iterator[Services]:
    with ExitStack() as stack:
        yield Services(metadb_url, stack)


def service(services: Services, gives_way: bool = True) -> Admission:
    db = ReservationDB(services.meta, uuid4())
    admission = Admission(
        db, Gate(), STORAGE, HttpConfig(), Callers(CallersConfig(), HttpConfig()), trash_gives_way=gives_way
    )
    services._stack.callback(admission.close)
    return admission


def thrown_away(services: Services, *days_ago: float) -> list[UUID]:
    """Files of 10 MiB each in the trash; -> the oldest first."""
    ids = [uuid4() for _ in days_ago]
    for id, days in zip(ids, days_ago, strict=True):
        run_sql(
            services.url,
            "INSERT INTO trash (id, name, content_type, size, sha256, k, m, block_size, created_at, deleted_at) "
            "VALUES (:id, 'x', 'text/plain', :size, sha256('x'), 1, 1, 1048576, now(), "
            "now() - make_interval(secs => :age))",
            id=id,
            size=10 * MIB,
            age=days * 86400,
        )
    return ids


def going(services: Services) -> set[UUID]:
    return {row[0] for row in run_sql(services.url, "SELECT id FROM trash WHERE erase_at IS NOT NULL")}


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """MetaDB has no standby: what is to be erased is at once."""
    monkeypatch.setattr(MetaDB, "settles_after", property(lambda _: 0.0))


def erase(services: Services, free: int, admission: Admission) -> None:
    """As upkeep and the nodes' reports would."""
    eventually(lambda: going(services), "the trash gives way")
    eventually(lambda: admission._waiting._value < WAITING, "the upload waits for it")
    run_sql(services.url, "DELETE FROM trash WHERE erase_at IS NOT NULL")
    services.nodes_have(free, free)


@pytest.mark.usefixtures("embedded")
@pytest.mark.parametrize("size", [15 * MIB, 1000], ids=["large", "small"])
def test_an_upload_waits_for_the_oldest_to_give_way(services: Services, size: int) -> None:
    free = 5 * MIB if size > MIB else MIB // 2
    services.nodes_have(free, free)
    newest, oldest, middle = thrown_away(services, 1, 6, 3)
    admission = service(services)
    eraser = threading.Thread(target=erase, args=(services, 50 * MIB, admission))
    eraser.start()
    with admit(admission, size):
        eraser.join()
    left = {row[0] for row in run_sql(services.url, "SELECT id FROM trash")}
    assert left == ({newest} if size > MIB else {newest, middle})
    assert oldest not in left


@pytest.mark.parametrize("gives_way", [True, False])
def test_nothing_gives_way_for_what_would_not_fit_even_then(services: Services, gives_way: bool) -> None:
    services.nodes_have(5 * MIB, 5 * MIB)
    thrown_away(services, 1, 2)
    wanted = 100 * MIB if gives_way else 12 * MIB
    words = (
        "20.0 MiB in the trash are too few"
        if gives_way
        else "trash holds 40.0 MiB: `distfs trash empty` frees them"
    )
    with pytest.raises(Full, match=words.replace("20.0", "40.0")):
        admit(service(services, gives_way), wanted)
    assert not going(services)


def test_with_a_standby_the_upload_comes_again_in_a_minute(services: Services) -> None:
    services.nodes_have(5 * MIB, 5 * MIB)
    [old] = thrown_away(services, 1)
    with pytest.raises(
        Full, match=r"20\.0 MiB of the trash are being erased to make room: try again in a minute"
    ) as refused:
        admit(service(services), 10 * MIB)
    assert refused.value.retry_after == 65
    assert going(services) == {old}
    [[settles]] = run_sql(services.url, "SELECT extract(epoch FROM erase_at - now()) FROM trash")
    assert 0 < settles <= 60


def test_room_ahead_of_a_body_of_unknown_length_costs_the_trash_nothing(services: Services) -> None:
    services.nodes_have(5 * MIB, 5 * MIB)
    thrown_away(services, 1)
    with service(services).admit(None, STORAGE.policy, Deadline(20)) as promise:
        promise.received(3 * MIB)
        promise.received(MIB)
    assert not going(services)


@pytest.mark.parametrize("gives_way", [True, False])
def test_a_cluster_is_full_when_nothing_can_give_way(services: Services, gives_way: bool) -> None:
    services.nodes_have(50 * MIB, 50 * MIB)
    assert service(services, gives_way).full(Deadline(60)) == ""
    services.nodes_have(0, 0)
    full = service(services, gives_way).full(Deadline(60))
    assert full.startswith("no room for 1 byte as 1+1: at most 0 bytes fit now; ")
    assert "delete files" in full
    thrown_away(services, 1)
    full = service(services, gives_way).full(Deadline(60))
    if gives_way:
        assert full == ""
    else:
        assert "`distfs trash empty` frees them" in full


def test_too_few_nodes_are_not_called_full(services: Services) -> None:
    services.nodes_have(0)
    assert service(services).full(Deadline(60)) == ""
