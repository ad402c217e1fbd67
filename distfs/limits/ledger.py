"""The room this service has promised to uploads that run, renewed in MetaDB while they do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.limits.db import Reservation, ReservationDB
from distfs.process.threads import start

log = logging.getLogger("distfs.admission.ledger")

#: A promise is renewed so often and, when its service is gone, expires after so long.
RENEW_S, EXPIRES_S = 5.0, 30.0
_CALL_LIMIT_S = 5.0


class Ledger:
    """This service's reservations, renewed by a thread that lives only while there are any.

    What is written shows in the nodes' free bytes after their next report, so a share shrinks one renewal late:
    for that long it counts twice, never not at all.
    """

    def __init__(self, db: ReservationDB) -> None:
        self._db = db
        self._changed = threading.Condition()
        self._running: dict[UUID, tuple[Reservation, Callable[[], float]]] = {}
        self._shares: dict[UUID, int] = {}  # what was left to write at the last renewal
        self._committed: list[Reservation] = []
        self._gone: list[Reservation] = []
        self._thread: threading.Thread | None = None
        self._settling = threading.Lock()  # so that no renewal under way puts back what was given back

    def __len__(self) -> int:
        return len(self._running)

    def reserve(self, wanted: Reservation, grants: int, deadline: Deadline) -> bool:
        """Whether MetaDB took it: ``grants`` is still the latest. Whoever asked has it renewed (``add``)."""
        return self._db.reserve(wanted, grants, EXPIRES_S, deadline)

    def add(self, wanted: Reservation, left: Callable[[], float]) -> None:
        """Renew it until its end; ``left``: which part of it is still to be written, 1 to 0."""
        with self._changed:
            self._running[wanted.id] = wanted, left
            self._shares[wanted.id] = wanted.share
            if self._thread is None or not self._thread.is_alive():
                self._thread = start(self._run, "admission")

    def left(self) -> dict[UUID, int]:
        """What is left to write of each now."""
        with self._changed:
            return {id: round(wanted.share * left()) for id, (wanted, left) in self._running.items()}

    def shrink(self, left: dict[UUID, int], deadline: Deadline) -> None:
        """All nodes have reported since that was left: the rest counts no more. Raises Unavailable."""
        if not self._settling.acquire(timeout=deadline.remaining("settling what was promised")):
            return
        try:
            with self._changed:
                for id in left.keys() & self._running.keys():
                    self._shares[id] = min(self._shares[id], left[id])
                running = [
                    replace(wanted, share=self._shares[id]) for id, (wanted, _) in self._running.items()
                ]
            self._db.settle(running, [], [], EXPIRES_S, deadline)
        finally:
            self._settling.release()

    def commit(self, those: list[Reservation]) -> None:
        """What they were for is committed: they count until every node has reported it."""
        with self._changed:
            for one in those:
                if self._running.pop(one.id, None):
                    self._committed.append(replace(one, share=self._shares.pop(one.id)))
            self._changed.notify()

    def give_back(self, those: list[Reservation], deadline: Deadline) -> None:
        """Others may have that room when this returns, or a little later if MetaDB is away. Raises Unavailable."""
        with self._changed:
            those = [one for one in those if self._running.pop(one.id, None)]  # the others are gone already
            for one in those:
                self._shares.pop(one.id, None)
            self._gone += those
            self._changed.notify()
        if not those or not self._settling.acquire(timeout=deadline.remaining("giving room back")):
            return
        try:
            with self._changed:  # what the others give back who wait here is told with it
                gone, self._gone = self._gone, []
            if gone:
                self._tell_gone(gone, deadline)
        finally:
            self._settling.release()

    def _tell_gone(self, gone: list[Reservation], deadline: Deadline) -> None:
        try:
            self._db.settle([], [], gone, EXPIRES_S, deadline)
        except DistfsError:
            with self._changed:
                self._gone += gone  # for who comes next
            raise

    def close(self, deadline: Deadline) -> None:
        """Wait until what was committed is told, and give back what still runs."""
        with self._changed:
            left = [one for one, _ in self._running.values()]
            thread = self._thread
        self.give_back(left, deadline)
        if thread is not None:
            thread.join(deadline.remaining())

    def _run(self) -> None:
        renew_at = time.monotonic() + RENEW_S
        while True:
            with self._changed:
                while self._running and not self._committed:
                    if (wait := renew_at - time.monotonic()) <= 0:
                        break
                    self._changed.wait(wait)
                if not (self._running or self._committed):
                    self._thread = None
                    return
            with self._settling:
                renew = time.monotonic() >= renew_at
                renew_at = time.monotonic() + RENEW_S if renew else renew_at
                try:
                    self._settle(renew)
                except Exception:  # the thread's outermost edge
                    log.exception("reservations were not settled, by a bug; the next renewal tries again")

    def _settle(self, renew: bool) -> None:
        with self._changed:
            running = self._shrunk() if renew else []
            committed, self._committed = self._committed, []
            gone, self._gone = self._gone, []
        try:
            self._db.settle(running, committed, gone, EXPIRES_S, Deadline(_CALL_LIMIT_S))
        except DistfsError as e:
            log.warning("reservations could not be settled, they expire by themselves: %s", e)

    def _shrunk(self) -> list[Reservation]:
        """What runs, with what was left to write one renewal ago; that of which nothing was left is gone."""
        found = []
        for id, (wanted, left) in list(self._running.items()):
            if share := self._shares[id]:
                found.append(replace(wanted, share=share))
                self._shares[id] = round(wanted.share * left())
            else:
                del self._running[id], self._shares[id]
                self._gone.append(wanted)
        return found
