"""What admission asks of MetaDB: free bytes, and the room that is promised to uploads of all services.

The rules of ``meta`` hold: one statement is one transaction, every time is the database's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from distfs.deadline import Deadline
from distfs.limits.room import Disk
from distfs.meta import MetaDB


@dataclass(frozen=True, slots=True)
class AdmissionState:
    """What a decision rests on, seen at one moment."""

    grants: int  # how many reservations were ever granted: another number means that another came between
    disks: tuple[Disk, ...]  # of the nodes that take writes
    known: int  # nodes, and how many of them are up
    up: int
    demands: Mapping[int, int]  # what is promised: bytes a node, by how many nodes
    running: int = 0  # to how many uploads that run,
    running_bytes: int = 0  # and how much of it; the rest was written and is in no report yet
    full: tuple[tuple[int, int], ...] = ()  # disks that take nothing: their capacity, and what is used of it
    reported: float = 0.0  # how many seconds old the oldest of the nodes' last reports was


@dataclass(frozen=True, slots=True)
class TrashRoom:
    """What the trash holds, in bytes on all nodes."""

    bytes: int = 0
    going: int = 0  # of it, what is being erased


@dataclass(frozen=True, slots=True)
class Reservation:
    """``share`` bytes on each of ``width`` nodes."""

    id: UUID
    width: int
    share: int


class ReservationDB:
    """Thread-safe. Every method raises Unavailable while MetaDB is away."""

    def __init__(self, meta: MetaDB, service: UUID) -> None:
        """``service``: whose reservations are made here."""
        self._meta, self._service = meta, service

    def state(self, deadline: Deadline) -> AdmissionState:
        while True:
            silence = self._meta.silence
            [[grants, disks, full, known, up, demands, running, running_bytes, reported]] = self._meta.read(
                "admission_state", deadline, down_after=silence
            )
            if self._meta.silence <= silence:  # else it was away meanwhile
                break
        promised = {int(width): int(share) for width, share in _decoded(demands).items()}
        free = tuple(Disk(*disk) for disk in _decoded(disks))
        taking_none = tuple((capacity, used) for capacity, used in _decoded(full))
        return AdmissionState(
            grants, free, known, up, promised, running, running_bytes, taking_none, reported
        )

    def trash(self, deadline: Deadline) -> TrashRoom:
        """Looks at every file in the trash: for who is about to be refused."""
        [[size, going]] = self._meta.read("trash_room", deadline)
        return TrashRoom(size, going)

    def trash_gives_way(self, size: int, deadline: Deadline) -> None:
        """Have the oldest files in the trash erased, of ``size`` bytes on all nodes, by whoever leads upkeep."""
        self._meta.write("trash_gives_way", deadline, bytes=size, settle=self.settles_after)

    @property
    def settles_after(self) -> float:
        """Seconds before what is to be erased is."""
        return self._meta.settles_after

    @property
    def is_restarting(self) -> bool:
        """MetaDB is away, and may be back soon."""
        return self._meta.is_restarting

    @property
    def is_gone(self) -> bool:
        """MetaDB is away for longer than a restart takes."""
        return self._meta.is_gone

    def reserve(self, wanted: Reservation, seen: int, seconds: float, deadline: Deadline) -> bool:
        """Grant it for ``seconds``, unless another was granted, by whatever service, since ``seen``."""
        rows = self._meta.write(
            "reserve",
            deadline,
            again="is_reserved",
            id=wanted.id,
            service=self._service,
            width=wanted.width,
            share=wanted.share,
            seen=seen,
            ttl=seconds,
        )
        return bool(rows)

    def settle(
        self,
        running: Sequence[Reservation],
        committed: Sequence[Reservation],
        gone: Sequence[Reservation],
        seconds: float,
        deadline: Deadline,
    ) -> None:
        """Renew those that run, for ``seconds`` and with the shares they have now; end the others.

        Committed ones count, up to ``seconds``, until every node has reported its free bytes anew.
        """
        states = (("running", running), ("committed", committed), ("gone", gone))
        given = [
            {"id": str(one.id), "width": one.width, "share": one.share, "state": state}
            for state, those in states
            for one in those
        ]
        self._meta.write(
            "settle_reservations",
            deadline,
            reservations=json.dumps(given),
            service=self._service,
            ttl=seconds,
        )

    def forget(self, services: Sequence[UUID], deadline: Deadline) -> None:
        """Give back what these, which are gone, were promised for what they have not committed."""
        self._meta.write("forget_reservations", deadline, services=[str(each) for each in services])


def _decoded(given: Any) -> Any:
    """JSON, whether the driver has parsed it or not."""
    return json.loads(given) if isinstance(given, str) else given
