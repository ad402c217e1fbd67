"""The orphan sweep: fragments no row of MetaDB knows are put aside, and deleted long after.

Unknown is never missing. Nothing is put aside or deleted before a node's whole listing was read without an error;
what nobody wants is asked for again just before it is put aside, and once more before it is deleted; any error, or
a clock in doubt, ends the sweep of that node with nothing more done.

That no row names a fragment does not make it garbage. While its slice lacks one, all there is of the slice stays,
good or bad: bad ones are healed from block by block. What is lost where the row says is adopted here (``adopt``);
and before a fragment of a slice that can still be wanted is touched, the node that is to keep it must show that it
does.

The sweeps of all nodes go on in turns: one whose listing is slow, wrong or without end keeps no other waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from distfs.config.settings import UpkeepConfig
from distfs.deadline import Deadline
from distfs.errors import Corrupt, DistfsError, NewerFormat, NodeUnavailable, NotFound
from distfs.fragment_store import FragmentStore, Listed
from distfs.model import FragmentId
from distfs.telemetry.tracing import traced
from distfs.upkeep.adopt import adopt
from distfs.upkeep.decisions import clock_in_doubt
from distfs.upkeep.listing import PAGE, Missing
from distfs.upkeep.maker import FragmentMaker
from distfs.upkeep.model import Claim
from distfs.upkeep.rate import Backoff, TokenBucket
from distfs.upkeep.step import Pace, Step, paced

log = logging.getLogger("distfs.upkeep")

#: Remembered in one sweep of one node; what is beyond is found by the next.
_MOST_SUSPECTS = 10_000
_ASK_LIMIT_S = 5.0  # for a node to say that it keeps a fragment

#: Bounded pieces of one node's sweep; is sent the deadline of the next piece. Ends with whether it had to leave
#: out something, and going on at once would get further.
Sweep = Generator[None, Deadline, bool]
#: The same of a part of it.
Adopting = Generator[None, Deadline, None]


REBUILDING = "MetaDB is made anew from the nodes: `distfs metadb rebuild --from-nodes --finish` ends that"


class Orphans:
    """A step reads one page of one node's listing, acts on one page of suspects, or checks one stray."""

    name = "orphans"

    def __init__(self, maker: FragmentMaker, config: UpkeepConfig) -> None:
        self._maker, self._db, self._directory, self._config = maker, maker.db, maker.directory, config
        self._min_age = config.upload_ttl + config.sweep_margin
        self._due: dict[int, float] = {}  # by node: when to sweep it again, on the monotonic clock
        self._backoff = Backoff.of(config.interval)
        self._running: dict[int, Sweep] = {}  # by node, whose turn was longest ago first
        self._bucket = TokenBucket(config.repair_rate)  # an adoption reads what repair would write
        counted = ("swept", "adopted", "quarantined", "deleted", "released", "missing", "newer")
        self._counts = dict.fromkeys(counted, 0)
        self._stuck: dict[int, str] = {}  # by node: why its last sweep ended before its end

    def step(self, deadline: Deadline) -> Step:
        wait = self._bucket.wait()
        if wait > 0:
            return Step(Pace.THROTTLED, self._detail(), wait)
        node = self._next(deadline)
        if node is None:
            return paced(0.0, False, self._detail())
        if self._db.is_rebuilding(deadline):  # what no row names yet may be all there is of a file
            self._running.clear()
            return paced(0.0, False, self._detail() | {"stuck": REBUILDING})
        sweep = self._running.pop(node, None)
        if sweep is None:
            sweep = self._sweep(node)
            next(sweep)
        self._advance(node, sweep, deadline)
        return paced(0.0, True, self._detail())

    def _detail(self) -> dict[str, object]:
        detail: dict[str, object] = dict(self._counts)
        if self._stuck:
            detail["stuck"] = "; ".join(self._stuck.values())
        return detail

    def _next(self, deadline: Deadline) -> int | None:
        """Whose turn it is: first those that are to be swept, then those whose sweep runs."""
        now = time.monotonic()
        able = [n.id for n in self._directory.nodes(deadline) if n.alive and not self._backoff.wait(n.id)]
        due = [node for node in able if self._due.get(node, now) <= now and node not in self._running]
        begun = next(iter(self._running), None)
        return min(due, key=lambda node: self._due.get(node, now), default=begun)

    @traced("sweep")
    def _advance(self, node: int, sweep: Sweep, deadline: Deadline) -> None:
        try:
            sweep.send(deadline)
            self._running[node] = sweep
        except StopIteration as end:
            self._due[node] = time.monotonic() + (0.0 if end.value else self._config.sweep_interval)
            self._backoff.succeeded(node)
            self._counts["swept"] += 1
            self._stuck.pop(node, None)
        except DistfsError as e:
            log.warning("the sweep of node %d ends here, nothing is concluded from it: %s", node, e)
            self._backoff.failed(node)
            self._stuck[node] = f"node {node}: {e}"

    def _sweep(self, node: int) -> Sweep:
        deadline = yield
        store = self._directory.store(node, deadline)
        self._check_clock(node, store, deadline)
        some_left = yield from self._sweep_quarantine(node, store)
        more_left = yield from self._sweep_fragments(node, store)
        return some_left or more_left

    # --- what is in use ------------------------------------------------------------------------------

    def _sweep_fragments(self, node: int, store: FragmentStore) -> Sweep:
        suspects: list[FragmentId] = []
        cursor: str | None = ""
        while cursor is not None:
            deadline = yield
            page = store.list(cursor, PAGE, deadline)
            claims = self._claims(node, page.fragments, deadline)
            missing = Missing(self._db, store, node, cursor, page)
            while not missing.done:
                missing.step(deadline)
                deadline = yield
            self._counts["missing"] += missing.noted
            yield from self._adopt(node, claims, aside=False)
            old = (f.id for f in page.fragments if f.age >= self._min_age)
            suspects += [id for id in old if claims[id].unwanted]
            del suspects[_MOST_SUSPECTS:]
            cursor = page.cursor
        return (yield from self._act_on(node, store, suspects, self._put_aside, "quarantined"))

    def _act_on(
        self,
        node: int,
        store: FragmentStore,
        suspects: list[FragmentId],
        act: Callable[[int, FragmentStore, FragmentId, Deadline], None],
        counted: str,
    ) -> Sweep:
        """Those that are still nobody's, page by page. Whether there may be more, and something became of these."""
        done = self._counts[counted]
        for some in _pages(suspects):
            deadline = yield
            self._check_clock(node, store, deadline)
            for id in self._nobodys(node, some, deadline):
                try:
                    act(node, store, id, deadline)
                except NewerFormat as e:
                    self._leave_newer(id, node, e)
        return len(suspects) == _MOST_SUSPECTS and self._counts[counted] > done

    def _leave_newer(self, id: FragmentId, node: int, error: DistfsError) -> None:
        """What it is worth cannot be told here."""
        log.info("fragment %s on node %d is left as it is: %s", id, node, error)
        self._counts["newer"] += 1

    def _put_aside(self, node: int, store: FragmentStore, id: FragmentId, deadline: Deadline) -> None:
        if store.quarantine(id, self._min_age, deadline):
            log.info("orphan %s on node %d is put aside", id, node)
            self._counts["quarantined"] += 1

    # --- what was put aside ----------------------------------------------------------------------------

    def _sweep_quarantine(self, node: int, store: FragmentStore) -> Sweep:
        suspects: list[FragmentId] = []
        cursor: str | None = ""
        while cursor is not None:
            deadline = yield
            page = store.list_quarantine(cursor, PAGE, deadline)
            claims = self._claims(node, page.fragments, deadline)
            for listed in page.fragments:
                if claims[listed.id].here:
                    self._bring_back(node, store, listed, deadline)
                    deadline = yield
            yield from self._adopt(node, claims, aside=True)
            over = (f.id for f in page.fragments if f.age >= self._config.quarantine_ttl)
            suspects += [id for id in over if claims[id].unwanted]
            del suspects[_MOST_SUSPECTS:]
            cursor = page.cursor
        return (yield from self._act_on(node, store, suspects, self._discard, "deleted"))

    def _bring_back(self, node: int, store: FragmentStore, aside: Listed, deadline: Deadline) -> None:
        """What is to be here is put back in use, if it is good. If it was made anew in its place, the old one goes
        when its time is over."""
        id = aside.id
        try:
            if store.release(id, deadline):
                log.warning("fragment %s on node %d was in quarantine and is wanted", id, node)
                self._counts["released"] += 1
            elif aside.age >= self._config.quarantine_ttl and not store.verify(id, deadline):
                self._check_clock(node, store, deadline)
                self._discard(node, store, id, deadline)
        except NewerFormat as e:
            self._leave_newer(id, node, e)
        except (Corrupt, NotFound) as e:
            # It stays aside until repair has replaced it, here or elsewhere.
            log.debug("fragment %s on node %d: %s", id, node, e)

    def _discard(self, node: int, store: FragmentStore, id: FragmentId, deadline: Deadline) -> None:
        if store.discard(id, self._config.quarantine_ttl, deadline):
            log.info("orphan %s on node %d is deleted", id, node)
            self._counts["deleted"] += 1

    # --- what a fragment is worth ----------------------------------------------------------------------

    def _claims(self, node: int, found: Sequence[Listed], deadline: Deadline) -> dict[FragmentId, Claim]:
        return self._db.claims(node, [f.id for f in found], deadline) if found else {}

    def _adopt(self, node: int, claims: dict[FragmentId, Claim], *, aside: bool) -> Adopting:
        """Let the node keep what it has and what is lost elsewhere. What proves bad is left for repair to heal from,
        which is told of it.

        However young they are. Ages protect what an upload is about to commit, and no row knows the slice of such a
        one. What repair has just written here is the same fragment, and whoever is first names this node.
        """
        any_bad = False
        if needed := [id for id, claim in claims.items() if claim.short and not claim.here]:
            deadline = yield
            for task in self._db.strays(node, needed, self._config.repair_delay, deadline):
                deadline = yield
                try:
                    self._counts["adopted"] += adopt(self._maker, task, node, deadline, aside=aside)
                except NewerFormat as e:
                    self._leave_newer(task.fragment, node, e)
                except Corrupt as e:
                    log.info("stray fragment %s on node %d is not good: %s", task.fragment, node, e)
                    any_bad = True
                self._bucket.spend(task.fragment_size)
        if any_bad:
            self._db.wake_worker("repair", deadline)

    def _nobodys(self, node: int, ids: Sequence[FragmentId], deadline: Deadline) -> Iterator[FragmentId]:
        """Of suspects, one by one, those that at this moment nobody would miss."""
        claims = self._db.claims(node, ids, deadline)
        silent: set[int] = set()
        for id in ids:
            claim = claims[id]
            if claim.unwanted and self._is_kept(id, claim.keeper, silent, deadline):
                yield id

    def _is_kept(self, id: FragmentId, keeper: int, silent: set[int], deadline: Deadline) -> bool:
        """Whether the node that is to keep a fragment has it; nobody has to keep what no slice wants.

        What proves missing or damaged there is noted, so that the next sweep finds a stray. ``silent``: nodes not
        to be asked; grows by those that do not answer.
        """
        if keeper == 0:
            return True
        if keeper in silent:
            return False
        limit = deadline.sooner(_ASK_LIMIT_S)
        try:
            self._directory.store(keeper, limit).stat(id, limit)
            return True
        except (NotFound, Corrupt) as e:
            log.warning("fragment %s on node %d: %s", id, keeper, e)
            self._db.note_damage(id.slice, id.index, keeper, str(e), deadline)
        except NewerFormat as e:
            self._leave_newer(id, keeper, e)
        except DistfsError as e:
            log.info("node %d does not say whether it keeps fragment %s: %s", keeper, id, e)
            silent.add(keeper)
        return False

    def _check_clock(self, node: int, store: FragmentStore, deadline: Deadline) -> None:
        """Raises NodeUnavailable when ages on this node mean nothing."""
        before = self._db.clock(deadline)
        clock = store.info(deadline).clock
        after = self._db.clock(deadline)
        if clock_in_doubt(clock, before, after):
            raise NodeUnavailable(
                f"the clocks of node {node} and MetaDB are {abs(clock - before):.0f} s apart: run NTP on both"
            )


def _pages(ids: Sequence[FragmentId]) -> Iterable[Sequence[FragmentId]]:
    return (ids[at : at + PAGE] for at in range(0, len(ids), PAGE))
