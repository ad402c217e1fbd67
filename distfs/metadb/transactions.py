"""How every statement is run, whatever it asks: within its time, again when a connection was lost, and patiently
while MetaDB is restarted.

A statement is one transaction, and may be run again without harm (``sql/queries.sql``). On that rests what happens
when a connection is lost: a read is run once more on a new connection, a change is run again until MetaDB has said
what became of it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import Away, Busy, ConfigError, DistfsError, OutcomeUnknown, TooSlow, Unavailable
from distfs.metadb import ballast, embedded_postgres
from distfs.metadb.answers import Answers, Rows
from distfs.metadb.link import Link
from distfs.metadb.pool import Pool
from distfs.metadb.url import MetaURL
from distfs.telemetry.context import current_request_id
from distfs.telemetry.metrics import RETRIES

#: A server that gives a statement up itself says why; it gets this much longer than its own limit to do so.
_GRACE_S = 0.5
_RETRY_FIRST_S, _RETRY_MOST_S = 0.02, 0.25
#: Nodes are heard of again within this after MetaDB was away.
_HEARD_AGAIN_S = 10.0
_STATEMENT = RETRIES.index("statement")


class Transactions:
    """Thread-safe; connects when it is first asked for something.

    A statement ends within ``statement_timeout`` + 0.5 s or at its deadline, whichever is sooner; while MetaDB is
    restarted, ``patience`` later. It raises Unavailable (503) with the reason while MetaDB is away, at once if that
    is for longer than ``patience``, and needs no restart after that.
    """

    def __init__(self, config: MetaDBConfig) -> None:
        """Raises ConfigError for the URL."""
        self._config = config
        self._budget, self._patience = config.statement_timeout + _GRACE_S, config.patience
        self._fixed = None if embedded_postgres.is_embedded(config.url) else MetaURL.of(config)
        limits = config.pool_size, config.connect_timeout, config.statement_timeout
        self._pool = Pool(self._where, *limits, trouble=self._trouble)
        self._waited = threading.local()

    def close(self) -> None:
        self._pool.close()

    def connections(self) -> dict[str, int]:
        """Those that are shared, for people to look at."""
        return self._pool.snapshot().as_dict()

    @property
    def is_there(self) -> bool:
        """Unless the last connect failed."""
        return not self._pool.away_for()

    @property
    def is_restarting(self) -> bool:
        """Nobody could connect just now, and that may end soon."""
        return self._pool.may_be_back and 0 < self._pool.away_for() < self._patience

    @property
    def is_gone(self) -> bool:
        """Nobody can connect, for longer than a restart takes: nobody waits for it any more."""
        away = self._pool.away_for()
        return away > 0 and away >= self._patience

    def excused(self, silence: float) -> float:
        """``silence`` and the time that MetaDB was away just before: meanwhile no node could say anything, and all of
        them would look silent until their next heartbeat."""
        return silence + self._pool.was_away(_HEARD_AGAIN_S)

    def waited_since(self, since: float) -> None:
        """This thread has waited for MetaDB in vain since that moment of the monotonic clock. What it asks next for
        the same request ends as if it had been asked then: who waits for the answer counts from there."""
        self._waited.since = since, current_request_id()

    def _seconds(self) -> float:
        """What a call may take that begins now."""
        waited = self._waited.__dict__
        if not waited:
            return self._budget
        since: float
        since, request = waited.pop("since")
        if request != current_request_id():
            return self._budget  # that one asked nothing more
        return max(self._budget - (time.monotonic() - since), _GRACE_S)

    def connect(self, deadline: Deadline) -> Link:
        """A connection of the caller's own, who closes it. Raises Unavailable."""
        return self._pool.connect(deadline.sooner(self._budget), self._config.statement_timeout)

    def read(self, query: str, deadline: Deadline, *, answers: Answers | None = None, **params: Any) -> Rows:
        """Until MetaDB has answered; also if it is restarted meanwhile. One that has been away for longer than that
        takes is not waited for."""
        begun: Link | None = None
        if answers is not None and not self._waited.__dict__:  # else it has less time
            left = min(deadline.remaining("waiting for MetaDB"), self._budget)
            begun = self._pool.lend()
        if begun is not None and answers is not None:
            try:
                rows = begun.ask_again(query, left, params, answers)
            except BaseException:
                self._pool.give_back(begun)
                raise
            if rows is not None:
                self._pool.give_back(begun)
                return rows
            begun.reused = True
        return self._run(query, deadline, params, change=False, at_once=True, answers=answers, begun=begun)

    def write(self, query: str, deadline: Deadline, *, again: str | None = None, **params: Any) -> Rows:
        """Until MetaDB has answered or there is no time left. Cancelled only as long as nothing was sent.

        ``again``: the query that, after a try was lost, tells from an empty answer whether that try had
        already done it. Raises OutcomeUnknown when a try was lost and could not be settled, whatever the tries
        after it met: their error says nothing of that one.
        """
        return self._run(query, deadline, params, change=True, again=again)

    def repeat(self, query: str, deadline: Deadline, **params: Any) -> Rows:
        """``write`` of what does nothing when it was done already: it may leave on a connection that was just used,
        without a look whether that is still there."""
        return self._run(query, deadline, params, change=True, at_once=True)

    def _run(
        self,
        query: str,
        deadline: Deadline,
        params: dict[str, Any],
        *,
        change: bool,
        again: str | None = None,
        at_once: bool = False,
        answers: Answers | None = None,
        begun: Link | None = None,
    ) -> Rows:
        """``begun``: a link that was lent for it; it may have been asked."""
        budget, pause = _Budget(deadline, self._seconds(), self._patience), _RETRY_FIRST_S
        error: DistfsError | None = None  # what failed, if there is no time for another try
        unknown = False  # a change was lost: it may have happened
        while True:
            lost = stale = False  # a connection broke; one that had been kept, as after a restart
            whole = budget.left.uncancelled() if change else budget.left
            limit = whole if unknown else budget.left
            try:
                link = begun or self._pool.take(limit, at_once=at_once and error is None)
                begun = None
                try:
                    if limit is not whole:
                        limit.check_cancelled()
                    rows = link.run(query, whole, params, answers)
                    return rows if rows or not (unknown and again) else link.run(again, whole, params)
                finally:
                    reused = link.reused
                    lost = not self._pool.give_back(link)
                    stale = lost and reused
            except TooSlow as e:
                raise error or e from e  # what failed before says more
            except (Unavailable, Busy, OutcomeUnknown) as e:
                if change and isinstance(e, OutcomeUnknown):
                    unknown, error = True, e
                elif not unknown and (error is None or _has_time(whole)):
                    error = Unavailable(str(e), public=e.public) if isinstance(e, OutcomeUnknown) else e
                waits = self._waits(e, budget) or unknown or (not self.is_gone if change else lost)
                if not (waits and _has_time(budget.left.uncancelled() if change else budget.left, pause)):
                    raise error or e from e
            except DistfsError as e:
                if error is None or not unknown:
                    raise
                raise error from e
            RETRIES.add(at=_STATEMENT)
            if not stale:
                time.sleep(pause)
                pause = min(2 * pause, _RETRY_MOST_S)

    def _waits(self, error: DistfsError, budget: _Budget) -> bool:
        """Whether MetaDB is waited for after ``error``. While it is restarted that costs nothing of the time that its
        answer may take; for one that does not answer at all there is no more than that."""
        if isinstance(error, Away):
            return not self.is_gone and budget.begin_anew()
        return 0 < self._pool.away_for() < min(self._budget, self._patience)

    def _trouble(self) -> str:
        here = embedded_postgres.folder_of(self._config.url)
        return ballast.trouble(here) if here else ""

    def _where(self) -> MetaURL:
        if self._fixed is None:
            return MetaURL.parse(embedded_postgres.resolve(self._config.url))
        try:
            return MetaURL.of(self._config)  # its password may be another by now
        except ConfigError as e:  # and was right at the start: somebody is about to change it
            raise Unavailable(f"MetaDB cannot be used: {e}") from e


class _Budget:
    """What a call may take: so many ``seconds`` while MetaDB is there, and its restart in between."""

    def __init__(self, deadline: Deadline, seconds: float, patience: float) -> None:
        self._deadline, self._seconds, self._patience = deadline, seconds, patience
        self._until = 0.0
        self.left = deadline.sooner(seconds)

    def begin_anew(self) -> bool:
        """False: the restart takes longer than ``patience``, since this was asked first."""
        now = time.monotonic()
        self._until = self._until or now + self._patience
        patient = now < self._until
        if patient:
            self.left = self._deadline.sooner(self._seconds)
        return patient


def _has_time(deadline: Deadline, seconds: float = 0.0) -> bool:
    try:
        return deadline.remaining() > seconds
    except TooSlow:
        return False
