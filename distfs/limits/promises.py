"""Who may upload: decided from what a request declares, before any of its body is read.

A file that is larger than its first block is promised room in the whole cluster: rows in MetaDB, so that no two
uploads, of whatever services, are promised the same bytes. A large one is promised it in steps, as it comes. Each
decision names the state it rests on, and MetaDB takes it only while that is the latest. Smaller files cost no row:
they are counted here, and must leave a margin for those of other services.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar
from uuid import UUID, uuid4

from distfs.body.source import Source
from distfs.config.callers import Caller
from distfs.config.settings import HttpConfig, StorageConfig
from distfs.deadline import Deadline
from distfs.errors import Away, Busy, DistfsError, Full, TooLarge, TooSlow, Unavailable
from distfs.limits.callers import Ahead, Callers
from distfs.limits.db import AdmissionState, Reservation, ReservationDB, TrashRoom
from distfs.limits.gate import Gate
from distfs.limits.ledger import Ledger
from distfs.limits.refusal import NoRoom, Wish, full, refusal
from distfs.limits.room import room, share_of, size_of, width_for
from distfs.model import Policy
from distfs.quantity import compared, counted
from distfs.transfer.placement import shortage

log = logging.getLogger("distfs.admission.promises")

Decision = TypeVar("Decision")

#: Small files are judged by a state of at most this age.
STATE_AGE_S = 1.0
#: How often a decision is made anew because another came before it.
TRIES = 50
#: Room is promised ahead of a body's bytes, so much at a time: what is only declared takes none from others.
STEP = 1 << 30
#: For a body of unknown length each step is as long as all before it; this long at most.
STEP_SLICES = 8
#: The same for who has its share ahead already; and so often what came is counted as ahead no more.
LEAST_STEP = 32 << 20
#: Bytes that came are on their way to the nodes' disks for less.
WRITTEN_S = 0.5
#: How long an upload waits for the trash to give way, and of that for the nodes to report it; and how many may.
GIVE_WAY_S, REPORTED_S = 30.0, 8.0
#: Bytes a node that give way beyond what is missing: others upload, too, and MetaDB's own files may be on that disk.
MORE = 8 << 20
WAITING = 4
_GIVE_BACK_LIMIT_S = 2.0
#: So that a MetaDB that hangs is a 503 within 5 s for all who wait, and not for one after another.
_DECIDE_LIMIT_S = 4.5
_LOOK_S = 0.25  # how soon a request that was cancelled is not in line any more


class Admission:
    """What a service has promised. Thread-safe."""

    def __init__(
        self,
        db: ReservationDB,
        gate: Gate,
        storage: StorageConfig,
        http: HttpConfig,
        callers: Callers,
        *,
        trash_gives_way: bool = False,
    ) -> None:
        self.trash_gives_way = trash_gives_way
        self.gate, self.http, self.storage, self.callers = gate, http, storage, callers
        self._db = db
        self._deciding = threading.Lock()  # one decision of this service at a time: they would only collide
        self.ledger = Ledger(db)
        self._counting = threading.Lock()
        self._small = 0  # shares of the small files in flight
        self._state: AdmissionState | None = None
        self._read_at = float("-inf")
        self._rooms: dict[Policy, int] = {}  # shares, by ``_state``
        self._trash_room, self._trash_read_at = TrashRoom(), float("-inf")
        self._waiting = threading.BoundedSemaphore(WAITING)

    def check(self, caller: Caller, size: int) -> None:
        """What is to be said against a body of ``size`` bytes without asking anybody. Raises TooLarge, TooMany."""
        self._check_size(size, self.callers.largest(caller))
        self.callers.check(caller)

    def _check_size(self, size: int, largest: int) -> None:
        """Of a body, whose files may have ``largest`` bytes."""
        most = largest + self.http.max_form_overhead
        if size > most:
            body, taken = compared(size, most)
            own = "callers.rules.max_file_size, or that of this token or link"
            by = "http.max_file_size" if largest == self.http.max_file_size else own
            raise TooLarge(
                f"a body of {body} is more than the {taken} that are taken ({by}): send less at once"
            )

    @contextmanager
    def large(self, caller: Caller, size: int) -> Iterator[None]:
        """A large upload of ``size`` declared bytes (0: not said) by ``caller``, from its header to its answer.

        Raises TooMany, Busy.
        """
        with self.callers.large_upload(caller, size), self.gate.enter(size):
            yield

    def admit(
        self,
        size: int | None,
        policy: Policy,
        deadline: Deadline,
        *,
        declared: bool = True,
        largest: int | None = None,
        whose: Sequence[str] = (),
    ) -> Promise:
        """Room for a body of ``size`` bytes; None: nobody knows how many, and room is found as they come.

        ``declared`` False: ``size`` is only what the client says beside a chunked body, and holds it to that.
        ``largest``: what its files may have; None: ``http.max_file_size``. ``whose``: address and token that may have
        only their share of what is promised.
        Leave the promise on every way out; ``keep`` it when the file is committed. Raises TooLarge; Full when the
        cluster has no room for it under this policy; Unavailable when too few nodes take writes.
        """
        if size is not None:
            self._check_size(size, self.http.max_file_size if largest is None else largest)
        promise = Promise(self, policy, size, deadline, whose, strict=not declared)
        if size is not None and size <= self.storage.small_body:
            try:
                promise.small = self._admit_small(size, policy, deadline)
            except NoRoom:
                promise.small = self._with_room(lambda: self._admit_small(size, policy, deadline), deadline)
            promise.covered = size
        else:
            promise.cover(1)
        return promise

    def share_ahead(self, policy: Policy, deadline: Deadline) -> int:
        """How many bytes that did not come yet one address may be promised."""
        state, _ = self._known(deadline, fresh=False)
        with self._counting:
            fits = size_of(self._room(state, policy), policy.k, self.storage.slice_size)
        return max(1, int(fits * self.callers.config.address_share))

    def settle(self, deadline: Deadline) -> bool:
        """Have what has come until now count once, when all nodes have reported it; -> whether they have."""
        at, left = time.monotonic(), self.ledger.left()
        while (asked := time.monotonic()) < at + REPORTED_S:
            state, _ = self._known(deadline, fresh=True)
            if asked - state.reported > at + WRITTEN_S:
                self.ledger.shrink(left, deadline)
                self._read_at = float("-inf")
                return True
            time.sleep(deadline.bound(_LOOK_S, "waiting for room"))
        return False

    def reserve(self, size: int, policy: Policy, deadline: Deadline, whole: int = 0) -> Reservation:
        """``whole``: what is to come in all; where that does not fit, none of it is promised.

        Raises what ``admit`` raises.
        """
        return self._with_room(lambda: self.reserve_at_once(size, policy, deadline, whole), deadline)

    def reserve_at_once(self, size: int, policy: Policy, deadline: Deadline, whole: int = 0) -> Reservation:
        """The same, with the room there is without making any."""
        try:
            with self._turn(deadline):
                return self._decide(size, max(size, whole), policy, deadline)
        except TooSlow as e:
            deadline.remaining()  # if it is the request's own time that is over, that is to be said
            raise Busy(
                "no room was promised in time: MetaDB is slow, or too many uploads begin at once: try again soon"
            ) from e

    @contextmanager
    def _turn(self, deadline: Deadline) -> Iterator[None]:
        """To decide. Raises TooSlow."""
        limit = deadline.sooner(_DECIDE_LIMIT_S)
        while not self._deciding.acquire(timeout=limit.bound(_LOOK_S, "waiting to be admitted")):
            if self._db.is_restarting:  # who has the turn waits for that
                limit = deadline.sooner(_DECIDE_LIMIT_S)
        try:
            yield
        finally:
            self._deciding.release()

    def _decide(self, size: int, whole: int, policy: Policy, deadline: Deadline) -> Reservation:
        while True:
            try:
                return self._reserve(size, whole, policy, deadline.sooner(_DECIDE_LIMIT_S))
            except Away:
                if self._db.is_gone:
                    raise

    def _reserve(self, size: int, whole: int, policy: Policy, deadline: Deadline) -> Reservation:
        share, all_of_it = (share_of(each, policy.k, self.storage.slice_size) for each in (size, whole))
        fresh = False
        for _ in range(TRIES):
            state, fresh = self._known(deadline, fresh=fresh)
            width = width_for(
                state.disks,
                self._demands(state, policy),
                policy.width,
                self.storage.fewest(policy),
                all_of_it,
            )
            if not width:
                if fresh:
                    raise self._refusal(state, whole, policy)
                fresh = True
                continue
            wanted = Reservation(uuid4(), width, share)
            if self.ledger.reserve(wanted, state.grants, deadline):
                demands = {**state.demands, width: state.demands.get(width, 0) + share}
                self._learn(replace(state, grants=state.grants + 1, demands=demands), self._read_at)
                return wanted
            fresh = True
        raise Busy("too many uploads begin at once in this cluster: try again soon")

    def full(self, deadline: Deadline) -> str:
        """Why the cluster takes no more bytes, and what helps; empty: it does."""
        state, _ = self._known(deadline, fresh=False)
        return full(
            state,
            lambda: self._trash(deadline),
            self.storage,
            gives_way=self.trash_gives_way,
            settles_after=self._db.settles_after,
        )

    def forget_dead(self, services: Sequence[UUID]) -> None:
        """Give back what processes that were killed were promised."""
        try:
            self._db.forget(services, Deadline(_GIVE_BACK_LIMIT_S))
        except DistfsError as e:
            log.warning("reservations of a process that was killed were not given back, they expire: %s", e)

    def close(self) -> None:
        """Give everything back that is still promised."""
        with contextlib.suppress(DistfsError):
            self.ledger.close(Deadline(_GIVE_BACK_LIMIT_S))

    def usage(self) -> dict[str, int]:
        """For operators: what is in flight, in bytes and uploads."""
        return {
            "large_uploads": self.gate.uploads,
            "declared_bytes": self.gate.bytes,
            "reservations": len(self.ledger),
        }

    # --- small files ------------------------------------------------------------------------------

    def _admit_small(self, size: int, policy: Policy, deadline: Deadline) -> int:
        """-> its share, to be forgotten when it is over."""
        share = share_of(size, policy.k, self.storage.slice_size)
        if not share:
            return 0
        for fresh in (False, True):
            state, _ = self._known(deadline, fresh=fresh)
            with self._counting:
                if self._small + share + self.storage.block_size <= self._room(state, policy):
                    self._small += share
                    return share
        raise self._refusal(state, size, policy, self.storage.block_size)

    def forget_small(self, share: int) -> None:
        with self._counting:
            self._small -= share

    def _room(self, state: AdmissionState, policy: Policy) -> int:
        """Under ``_counting``: the share a file may have, worked out once for each state."""
        known = self._rooms.get(policy)
        if known is None or state is not self._state:
            known = room(state.disks, state.demands, policy.width, self.storage.fewest(policy))
            if state is self._state:
                self._rooms[policy] = known
        return known

    # --- what is known ----------------------------------------------------------------------------

    def _known(self, deadline: Deadline, *, fresh: bool) -> tuple[AdmissionState, bool]:
        """The state of at most STATE_AGE_S ago, or of now; and whether it is of now."""
        state, read_at = self._state, self._read_at
        if not fresh and state is not None and time.monotonic() - read_at < STATE_AGE_S:
            return state, False
        read_at = time.monotonic()
        state = self._db.state(deadline)
        self._learn(state, read_at)
        return state, True

    def _learn(self, state: AdmissionState, read_at: float) -> None:
        with self._counting:
            self._state, self._read_at, self._rooms = state, read_at, {}

    def _demands(self, state: AdmissionState, policy: Policy) -> dict[int, int]:
        """What is promised, with the small files that are on their way here."""
        width = policy.width
        return {**state.demands, width: state.demands.get(width, 0) + self._small}

    # --- when there is no room ----------------------------------------------------------------------

    def _refusal(self, state: AdmissionState, size: int, policy: Policy, margin: int = 0) -> Unavailable:
        """``margin``: bytes a node that it has to leave. The trash, if it may, was asked first to give way."""
        fewest = self.storage.fewest(policy)
        if (able := sum(disk.nodes for disk in state.disks)) < fewest:
            return Unavailable(shortage(fewest, able, state.known, state.up))
        wish = Wish(size, policy, fewest, self.storage.slice_size, self._small, margin)
        return NoRoom(state, wish)

    def _with_room(self, decide: Callable[[], Decision], deadline: Deadline) -> Decision:
        """``decide``; while there is no room for it, again when the trash has given way."""
        try:
            return decide()
        except NoRoom as e:
            refused = e
        with self._making_room(refused, deadline) as making:
            while making():
                try:
                    return decide()
                except NoRoom as e:
                    refused = e
        trash, settles = self._trash(deadline), self._db.settles_after
        raise refusal(refused, trash, gives_way=self.trash_gives_way, settles_after=settles) from refused

    @contextmanager
    def _making_room(self, refused: NoRoom, deadline: Deadline) -> Iterator[Callable[[], bool]]:
        """-> whether it is worth while to look again, asked after each look; it waits a little."""
        trash = self._trash(deadline)
        if self.trash_gives_way and trash.going < refused.missing <= trash.bytes:
            self._db.trash_gives_way(refused.missing + MORE * refused.wish.policy.width, deadline)
            self._trash_read_at = float("-inf")
        going_at = time.monotonic() if self._trash(deadline).going else float("-inf")
        ends = time.monotonic() + GIVE_WAY_S
        # Who waits has a worker: the others are told to come again.
        waits = going_at > 0 and not self._db.settles_after and self._waiting.acquire(blocking=False)

        def again() -> bool:
            nonlocal going_at
            now = time.monotonic()
            going_at = now if self._trash(deadline).going else going_at
            if not waits or now > min(ends, going_at + REPORTED_S):
                return False
            time.sleep(deadline.bound(_LOOK_S, "waiting for room"))
            return True

        try:
            yield again
        finally:
            if waits:
                self._waiting.release()

    def _trash(self, deadline: Deadline) -> TrashRoom:
        """As it was at most STATE_AGE_S ago."""
        if time.monotonic() - self._trash_read_at > STATE_AGE_S:
            read_at = time.monotonic()
            self._trash_room, self._trash_read_at = self._db.trash(deadline), read_at
        return self._trash_room


class Promise:
    """Room for one request's files, until it is left."""

    def __init__(
        self,
        admission: Admission,
        policy: Policy,
        size: int | None,
        deadline: Deadline,
        whose: Sequence[str],
        *,
        strict: bool,
    ) -> None:
        self.covered = 0  # plain bytes there is room for
        self.small = 0  # the share of a small body
        self._admission, self._policy, self._size, self._deadline = admission, policy, size, deadline
        self._strict = strict
        self._received = 0
        self._reserved: list[Reservation] = []
        self._kept = False
        self._counted = Ahead(admission.callers.tally, whose)

    def __enter__(self) -> Promise:
        return self

    def __exit__(self, *exc: object) -> None:
        if small := self.small:
            self.small = 0
            self._admission.forget_small(small)
        reserved, self._reserved = self._reserved, []
        self._counted.are(0)
        if not reserved:
            return
        if self._kept:
            self._admission.ledger.commit(reserved)
            return
        try:
            self._admission.ledger.give_back(reserved, Deadline(_GIVE_BACK_LIMIT_S))
        except DistfsError as e:
            log.warning("a reservation could not be given back, it expires by itself: %s", e)

    def keep(self) -> None:
        """The files are committed: what was promised is used."""
        self._kept = True

    @property
    def ahead(self) -> int:
        """Bytes that are promised and did not come yet."""
        return self.covered - self._received

    def cover(self, size: int) -> None:
        """Room for ``size`` bytes in all, at least. Raises Full, Unavailable."""
        more = size - self.covered
        if more <= 0:
            return
        begin = self.covered
        try:
            granted, more = self._reserve(more)
            self.covered = end = begin + more
        finally:
            self._counted.are(self.ahead)
        self._reserved.append(granted)

        def left() -> float:
            return min(1.0, max(0.0, (end - self._received) / (end - begin)))

        self._admission.ledger.add(granted, left)

    def _reserve(self, more: int) -> tuple[Reservation, int]:
        """For ``more`` bytes and, where that may be, some ahead of those that came; -> for how many in all."""
        admission, policy, deadline, whole = self._admission, self._policy, self._deadline, 0
        least = max(more, admission.storage.block_size)
        few = max(least, min(self.covered, LEAST_STEP))

        def may_be_ahead(step: int) -> bool:
            return self._counted.take(step, lambda: admission.share_ahead(policy, deadline))

        if self._size is not None:
            whole = max(more, self._size - self.covered)
            step = min(max(more, STEP), whole)
            ahead, last = [], step if may_be_ahead(step) else min(few, whole)
        else:
            step = max(least, min(self.covered, STEP_SLICES * admission.storage.slice_size))
            step = step if may_be_ahead(step) else few
            ahead, last = [step >> n for n in range(step.bit_length()) if step >> n > least], least

        def some(sizes: list[int]) -> tuple[Reservation, int] | None:
            for size in sizes:
                with contextlib.suppress(Full):
                    return admission.reserve_at_once(size, policy, deadline, whole), size
            return None

        if found := some([*ahead, last] if self._reserved else ahead):
            return found
        if self._reserved and admission.settle(deadline) and (found := some(ahead)):
            return found
        return admission.reserve(last, policy, deadline, whole), last

    def use(self, policy: Policy) -> None:
        """The next file is kept so: a form may say it only in its body. Raises what ``admit`` raises."""
        if policy == self._policy:
            return
        self._policy = policy
        if self._reserved:
            self._admission.ledger.give_back(self._reserved, self._deadline)
            self._reserved = []
            covered, self.covered = self.covered, 0
            self.cover(covered)

    def watch(self, source: Source) -> Source:
        """``source``, with what comes of it counted. Reading raises Full, or TooLarge beyond what was declared."""
        fits = self.small and not self._strict  # whatever comes of it
        return source if fits else _Watched(source, self)

    def received(self, count: int) -> None:
        self._received += count
        if self._strict and self._size is not None and self._received > self._size:
            declared = counted(self._size, "byte")
            raise TooLarge(f"the body is larger than the {declared} it was declared to have")
        if self._received > self.covered:
            self.cover(self._received)
        elif self._counted.bytes - self.ahead >= LEAST_STEP:
            self._counted.are(self.ahead)


class _Watched:
    def __init__(self, source: Source, promise: Promise) -> None:
        self._source, self._promise = source, promise

    def readinto(self, view: memoryview) -> int:
        count = self._source.readinto(view)
        self._promise.received(count)
        return count
