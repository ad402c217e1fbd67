"""Threads that run as long as their process log an error nobody thought of, and go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import distfs.limits.ledger
from distfs.config.settings import CallersConfig, HttpConfig, Seconds, StorageConfig
from distfs.errors import Corrupt
from distfs.limits.callers import Callers
from distfs.limits.db import ReservationDB
from distfs.limits.gate import Gate
from distfs.limits.promises import Admission
from distfs.meta import MetaDB
from distfs.model import Address, FragmentId, Policy
from distfs.storage.disk.watch import DiskWatch
from distfs.storage.membership import Membership
from distfs.upkeep.damage import DamageNotes
from distfs.upkeep.db import UpkeepDB
from tests.contract.litter import eventually
from tests.contract.nodes import NODE, new_store
from tests.integration.meta_examples import report, soon
from tests.postgres import run_sql


class _Failing:
    """Replaces a method: its first calls are a bug's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, times: int = 1) -> None:
        self._real: Callable[..., Any] = getattr(owner, name)
        self._left = times
        self.calls = 0
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self._left:
            raise ZeroDivisionError("a bug")
        return self._real(*args, **kwargs)


@pytest.fixture(autouse=True)
def traced(caplog: pytest.LogCaptureFixture) -> Any:
    """Every test here ends with the bug's traceback in the log."""
    yield
    assert any(record.exc_info and record.levelno == logging.ERROR for record in caplog.get_records("call"))


def test_promises_are_renewed_after_a_bug(
    meta: MetaDB, metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.ledger, "RENEW_S", 0.05)
    for port in (9001, 9002):
        meta.heartbeat(report(port=port), soon())
    run_sql(metadb_url, "UPDATE node SET free = 1::bigint << 40, capacity = 1::bigint << 40")
    admission = Admission(
        ReservationDB(meta, uuid4()),
        Gate(),
        StorageConfig(),
        HttpConfig(),
        Callers(CallersConfig(), HttpConfig()),
    )
    with admission.admit(50 << 20, Policy(1, 1), soon()):
        renewals = _Failing(monkeypatch, admission._db, "settle")
        eventually(lambda: renewals.calls > 2, "it is renewed again")
    admission.close()


def test_a_node_lives_after_a_bug(meta: MetaDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path, meta.cluster_id(soon()), NODE)
    often = replace(NODE, heartbeat=Seconds(0.05))
    beats = _Failing(monkeypatch, meta, "heartbeat")
    membership = Membership(store, meta, Address("127.0.0.1", 9001), often, lambda _: None)
    eventually(lambda: any(node.alive for node in meta.nodes(soon())), "it said that it lives")
    assert beats.calls > 1
    membership.stop()
    store.close()


def test_a_disk_is_probed_after_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path, uuid4(), NODE)
    probes = _Failing(monkeypatch, store, "probe")
    watch = DiskWatch(store, 0.01)
    eventually(lambda: probes.calls > 2, "it is probed again")
    watch.stop()
    eventually(lambda: not list((tmp_path / "tmp").iterdir()), "no probe is left")
    store.close()


def test_damage_is_noted_after_a_bug(meta: MetaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    db = UpkeepDB(meta)
    notes = DamageNotes(db)
    noted = _Failing(monkeypatch, db, "note_damage")
    for _ in range(2):
        notes(FragmentId(uuid4(), 0), 1, Corrupt("a bit"))
    eventually(lambda: noted.calls == 2, "the second is noted")
    notes.close()
