"""Scrub: every node reads its fragments again, at a capped rate, and is asked for those it should have.

What fails is noted, and repair makes it anew. A fragment of which no cell can be used goes into quarantine at
once; one with a bad cell among good ones stays until it was replaced, for the good ones may be needed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Executor
from dataclasses import dataclass

from distfs.config.settings import PeersConfig, UpkeepConfig
from distfs.deadline import Deadline
from distfs.errors import Busy, Cancelled, Corrupt, DistfsError, NewerFormat, NotFound
from distfs.fragment_store import FragmentStore, Page, fault
from distfs.model import FragmentId
from distfs.peers.directory import NodeDirectory
from distfs.telemetry.metrics import CHECKSUMS
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.decisions import scrub_due_in, scrub_pace
from distfs.upkeep.listing import PAGE, Missing, look_for, slice_of
from distfs.upkeep.model import Kept, ScrubState
from distfs.upkeep.rate import Backoff, Meter, TokenBucket
from distfs.upkeep.reach import Reach
from distfs.upkeep.step import PARALLEL, Pace, Step, Tally, all_of, paced

log = logging.getLogger("distfs.upkeep")

_PIECE_BYTES, _PIECE_FRAGMENTS = 4 << 20, 32  # read in one step, about, of one node
_SCRUB = CHECKSUMS.index("scrub")
_TRIES = 3  # how often one fragment may end its node's turn before it is the fragment that is bad

#: Bounded pieces of one node's round: yields the bytes read, is sent the deadline of the next piece.
Round = Generator[int, Deadline, None]


class Scrub:
    """A step reads a few megabytes on each of a few nodes, at once."""

    name = "scrub"

    def __init__(
        self,
        db: UpkeepDB,
        directory: NodeDirectory,
        config: UpkeepConfig,
        peers: PeersConfig,
        executor: Executor,
    ) -> None:
        self._db, self._directory, self._config, self._peers = db, directory, config, peers
        self._executor = executor
        self._rounds: dict[int, Round] = {}
        self._due: dict[int, float] = {}  # by node: when to begin, on the monotonic clock
        self._buckets: dict[int, TokenBucket] = {}
        self._turns: dict[int, int] = {}  # by node: its last turn, counted
        self._backoff = Backoff.of(config.interval)
        self._meter = Meter()
        self._tally = Tally("checked", "bad", "newer")
        self._stumbles: Counter[tuple[int, FragmentId]] = Counter()
        self._reach = Reach(db, directory, executor, config.repair_delay)
        self._left: dict[int, _Left] = {}  # by node, of the rounds that run
        self._unlisted: dict[int, str] = {}  # nodes that cannot list what they keep, and why

    def step(self, deadline: Deadline) -> Step:
        ready, waits = self._ready(deadline)
        read = sum(all_of(self._executor, lambda node: self._advance(node, deadline), ready))
        self._meter.add(read)
        detail = self._tally.as_detail() | {"nodes_at_work": len(self._rounds)}
        if left := sum(each.bytes for each in self._left.values()):
            detail["bytes_left"] = left
        if rate := round(self._meter.rate()):
            detail["bytes_per_second"] = rate
        if unreachable := self._reach.unreachable(deadline):
            detail["unreachable"] = unreachable
        if stuck := "; ".join(self._unlisted.values()):
            detail["stuck"] = stuck
        if ready:
            return paced(0.0, True, detail)
        # Rounds that wait for their rate; those whose node is away are looked at again as an idle worker does.
        return Step(Pace.THROTTLED, detail, min(waits)) if waits else Step(Pace.IDLE, detail)

    def _ready(self, deadline: Deadline) -> tuple[list[int], list[float]]:
        """Nodes to go on with now, and how long others that are at work must wait for their rate."""
        ready, waits = [], []
        now = time.monotonic()
        nodes = self._directory.nodes(deadline)
        alive = {node.id for node in nodes if node.alive}
        self._unlisted = {node: why for node, why in self._unlisted.items() if node in alive}
        for node in nodes:
            if not node.alive or self._backoff.wait(node.id):
                continue
            if node.id not in self._due:
                state = self._db.scrub_state(node.id, deadline)
                self._due[node.id] = now + scrub_due_in(state, self._config.scrub_period)
            if self._due[node.id] > now:
                continue
            if node.id not in self._buckets:
                pace = scrub_pace(node.used, self._config.scrub_period, self._config.scrub_rate)
                self._buckets[node.id] = TokenBucket(pace)
            bucket = self._buckets[node.id]
            if (wait := bucket.wait()) > 0:
                waits.append(wait)
            else:
                ready.append(node.id)
        # Who had a turn longest ago comes first: a node whose list does not come to an end keeps no other waiting.
        ready.sort(key=lambda number: self._turns.get(number, 0))
        for number in ready[:PARALLEL]:
            self._turns[number] = max(self._turns.values(), default=0) + 1
        return ready[:PARALLEL], waits

    def _advance(self, node: int, deadline: Deadline) -> int:
        """One piece of a node's round; the bytes read. What fails is tried again later, from the saved cursor."""
        try:
            if node not in self._rounds:
                fresh = self._round(node, self._db.begin_scrub(node, deadline))
                next(fresh)
                self._rounds[node] = fresh
            read = self._rounds[node].send(deadline)
        except StopIteration:
            del self._rounds[node]
            del self._left[node]
            del self._due[node]
            del self._buckets[node]  # the next round may have more to read
            return 0
        except DistfsError as e:
            log.warning("the scrub of node %d pauses: %s", node, e)
            self._rounds.pop(node, None)
            self._left.pop(node, None)
            self._due.pop(node, None)
            self._backoff.failed(node)
            return 0
        self._buckets[node].spend(read)
        return read

    def _round(self, node: int, state: ScrubState) -> Round:
        """One round, or the rest of one."""
        cursor: str | None = state.cursor
        checked, bad = state.checked, state.bad
        deadline = yield 0
        left = self._left[node] = _Left(self._db.fragments_left(node, deadline) - checked)
        while cursor is not None:
            store = self._directory.store(node, deadline)
            page = self._list(store, node, cursor, deadline)
            if page is None:
                expected = self._db.fragments_on(node, slice_of(cursor), PAGE, deadline)
                turn = [_Turn(each.id, each.size, each, listed=False) for each in expected]
                cursor = str(expected[-1].id) if len(expected) == PAGE else None
            else:
                missing = Missing(self._db, store, node, cursor, page)
                while not missing.done:
                    missing.step(deadline)
                    deadline = yield 0
                bad += missing.noted
                self._tally.add("bad", missing.noted)
                turn = [_Turn(each.id, each.size, missing.kept.get(each.id)) for each in page.fragments]
                cursor = page.cursor
            read = count = 0
            for each in turn:
                failed = self._verify(store, node, each, deadline)
                checked, bad = checked + 1, bad + failed
                self._tally.add("checked")
                self._tally.add("bad", failed)
                read, count = read + each.size, count + 1
                left.read(each.size)
                if read >= _PIECE_BYTES or count >= _PIECE_FRAGMENTS:
                    self._db.save_scrub(node, str(each.id), checked, bad, deadline)
                    deadline = yield read
                    read = count = 0
            self._db.save_scrub(node, cursor, checked, bad, deadline)
            self._backoff.succeeded(node)
            deadline = yield read

    def _list(self, store: FragmentStore, node: int, cursor: str, deadline: Deadline) -> Page | None:
        """A page of what a node keeps; None: it answers, but one of its folders cannot be read.

        Then MetaDB says what to ask for, by name. The orphan sweep must stop at such a folder; if scrub did,
        nothing behind it would ever be read again.
        """
        try:
            page = store.list(cursor, PAGE, deadline)
        except DistfsError as e:
            _check_answering(store, e, deadline)
            if node not in self._unlisted:
                log.warning("node %d cannot list what it keeps: %s; going by MetaDB's list", node, e)
            self._unlisted[node] = f"node {node} could not list what it keeps: {e}"
            return None
        self._unlisted.pop(node, None)
        return page

    def _verify(self, store: FragmentStore, node: int, turn: _Turn, deadline: Deadline) -> bool:
        """Whether a fragment proved bad. Raises when its node cannot say."""
        limit = deadline.sooner(self._peers.base_timeout + turn.size / self._peers.min_rate)
        id, began = turn.id, time.monotonic()
        useless, failed_check = False, True
        try:
            digest, block_size = (turn.kept.digest, turn.kept.block_size) if turn.kept else (None, 0)
            reason = fault(store, id, digest, block_size, limit)
        except Corrupt as e:
            reason, useless = str(e), True
        except NotFound:
            # Listed, it was moved or deleted since; if not, the next listing misses it.
            return not turn.listed and look_for(id, self._db, store, node, deadline)
        except NewerFormat as e:
            log.info("fragment %s on node %d is left as it is: %s", id, node, e)
            self._tally.add("newer")
            return False
        except DistfsError as e:
            self._stumbles[node, id] += 1
            if self._stumbles[node, id] < _TRIES:
                raise
            _check_answering(store, e, deadline)
            reason, failed_check = f"cannot be verified: {e}", False
        self._stumbles.pop((node, id), None)
        if not reason or not self._db.note_damage(id.slice, id.index, node, reason, deadline):
            return False  # a bad one that nobody wants here is the orphan sweep's
        CHECKSUMS.add(failed_check, _SCRUB)
        log.warning("fragment %s on node %d: %s", id, node, reason)
        if useless:
            try:
                store.quarantine(id, time.monotonic() - began, deadline)
            except DistfsError as e:  # a disk gone read-only; what is behind this one is to be looked at, too
                log.info("fragment %s on node %d stays where it is until it was replaced: %s", id, node, e)
        return True


@dataclass(slots=True)
class _Left:
    """What is left of a node's round, as large as what was read of it: MetaDB counts what a node keeps."""

    fragments: int
    _read_fragments: int = 0
    _read_bytes: int = 0

    def read(self, size: int) -> None:
        self.fragments -= 1
        self._read_fragments += 1
        self._read_bytes += size

    @property
    def bytes(self) -> int:
        """0 when nothing was read yet."""
        return max(0, self.fragments) * self._read_bytes // max(1, self._read_fragments)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A fragment to verify."""

    id: FragmentId
    size: int
    kept: Kept | None  # what MetaDB says of it; None: nothing
    listed: bool = True


def _check_answering(store: FragmentStore, error: DistfsError, deadline: Deadline) -> None:
    """Raises unless a node that failed at one thing answers: what is wrong then is not the whole node."""
    if isinstance(error, Busy | Cancelled):
        raise error
    store.info(deadline)
