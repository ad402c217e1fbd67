"""One connection to MetaDB, and the one place where the driver's errors become distfs's.

pg8000 (native) speaks the protocol on a socket of ours (``db_socket``), whose time limit is the deadline's.
"""

from __future__ import annotations

import contextlib
import select
import ssl
import struct
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from distfs.deadline import Deadline
from distfs.errors import (
    Away,
    ConfigError,
    DistfsError,
    Full,
    NodeForgotten,
    NodesLeft,
    OutcomeUnknown,
    OverQuota,
    Refused,
    SchemaBehind,
    TooSlow,
    Unavailable,
)
from distfs.metadb import db_socket
from distfs.metadb import schema as meta_schema
from distfs.metadb.answers import Answers
from distfs.metadb.db_socket import DBSocket
from distfs.metadb.driver import Connection, DatabaseError, InterfaceError, timestamptz_in
from distfs.metadb.statement import Statement, is_last
from distfs.metadb.url import Host, MetaURL
from distfs.process import descriptors
from distfs.quantity import compared
from distfs.telemetry import tracing
from distfs.telemetry.metrics import METADB_SECONDS

#: What pg8000 lets out when the connection breaks, wherever it was just reading or writing.
BROKEN = (InterfaceError, OSError, struct.error, AttributeError, ValueError)

#: Nobody listens, there is no socket, or who listened has just ended.
_NOBODY = (
    ConnectionRefusedError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    FileNotFoundError,
)

#: A connection survives an ordinary error, but not a plan or statement the server no longer has, nor a server
#: that became read-only: another connection finds another server.
_SPOILED = ("0A000", "26000", "25006")

#: What it says while it starts, stops, or gets over the crash of one of its processes.
_RESTARTS = ("57P01", "57P02", "57P03")

#: What a client is told; where MetaDB is, is for the log.
AWAY = "MetaDB cannot be reached at this moment: try again soon"
_UNKNOWN = f"{AWAY}; whether it was done is not known"

_TIMESTAMPTZ = 1184  # its OID

#: Statements look a few rows up. A plan is kept for as long as its connection or until the table is analysed, and one
#: that was made for a table of one page would go on reading all of it, row by row, while it grows by thousands.
_SESSION = {"search_path": "public", "TimeZone": "UTC", "enable_seqscan": "off", "jit": "off"}

#: How long before a request's end the server gives its statement up.
_LISTEN_S = 0.2


class Link:
    """A connection with its prepared statements. Used by one thread at a time."""

    def __init__(self, url: MetaURL, host: Host, deadline: Deadline, statement_timeout: float) -> None:
        """``deadline``: of all it takes until statements can be run: TCP, TLS, authentication.
        ``statement_timeout``: seconds after which the server gives a statement up; 0: never.

        Raises Unavailable with the server's reason, Away when it may only be restarting, TooSlow when there is no
        time to begin in, Cancelled, ConfigError for an unreadable certificate.
        """
        self.host = host
        self.reused = False  # set by the pool when it lends this link again
        self.broken = self._interrupted = (
            False  # broken: left in an exchange, interrupted, or ended by the server
        )
        self._asked = ""  # the query that was asked, and whose answer ``run`` is to receive
        self._most = self._limit = statement_timeout  # the server's: as agreed, and at present
        self._statements: dict[str, Statement] = {}
        context = url.ssl_context(host)
        self._socket: DBSocket | None = None
        try:
            self._socket = db_socket.connect(host, deadline)
            if isinstance(context, ssl.SSLContext):
                self._socket = db_socket.start_tls(self._socket, context, host.name)
            self.raw = Connection(
                url.user,
                database=url.database,
                password=url.password,
                sock=self._socket,
                ssl_context=False,  # that is done
                application_name="distfs",
                startup_params={"statement_timeout": str(round(statement_timeout * 1000)), **_SESSION},
            )
        except (DatabaseError, *BROKEN) as e:
            self._socket_close()
            deadline.check_cancelled()  # then that is why
            raise (Away if _may_restart(e) else Unavailable)(f"{host}: {_reason(e)}") from e
        self._socket.limit = None
        self._traced = {
            "db.system.name": "postgresql",
            "distfs.metadb.pid": _process(self.raw),
            "server.address": host.name,
            "server.port": host.port,
        }
        self.raw.register_in_adapter(_TIMESTAMPTZ, _moment)
        self._stale = select.poll()
        self._stale.register(self._socket, select.POLLIN)
        #: When the server was last heard on it, on the monotonic clock.
        self.answered_at = time.monotonic()

    @property
    def writable(self) -> bool:
        """False for a standby or a server that was set read-only. Reported by PostgreSQL 14 and later."""
        status = self.raw.parameter_statuses
        return "on" not in (status.get("in_hot_standby"), status.get("default_transaction_read_only"))

    @property
    def idle(self) -> bool:
        """It has heard nothing since it was used: neither the server's goodbye nor the end of the connection."""
        return not self._stale.poll(0)

    def run(
        self, name: str, deadline: Deadline, params: dict[str, Any], answers: Answers | None = None
    ) -> Sequence[Sequence[Any]]:
        """Run the named query as one transaction; -> its rows, or what ``answers`` has for them.

        Raises Unavailable when it certainly did not happen; OutcomeUnknown when the connection was lost after
        it was sent; Cancelled, whether it was sent or not: a change needs a ``deadline`` that nobody cancels;
        Refused for a refusal of the schema's own, DistfsError for a bug of ours.
        """
        sent = False
        left = deadline.remaining("waiting for MetaDB")
        self.broken = True
        usock = self.raw._usock
        usock.limit = deadline  # every wait for the server ends with it, or when it is cancelled
        unwatch = deadline.watch(self._interrupt)
        began, rows = time.monotonic(), None
        try:
            asked, self._asked = self._asked == name, ""
            if not asked and (self._limit != self._most or left < self._most + _LISTEN_S):
                self._limit_to(left)
            statement = self._statement(name, asked)
            sent = True
            rows = statement.run(params, left, answers, asked=asked)
        except DatabaseError as e:
            ended = is_last(e)
            self.broken = self._interrupted or ended or _field(e, "C") in _SPOILED
            self.answered_at = time.monotonic()
            if ended and sent:
                raise OutcomeUnknown(self._lost(e), public=_UNKNOWN) from e
            raise translate(e) from e
        except BROKEN as e:
            deadline.check_cancelled()  # then that is why
            if sent:
                raise OutcomeUnknown(self._lost(e), public=_UNKNOWN) from e
            raise Unavailable(self._lost(e), public=AWAY) from e
        finally:
            unwatch()
            usock.limit = None
            if tracing.on:
                error = sys.exception() if rows is None else None
                tracing.past(name, began, self._traced, tracing.CLIENT, error)
        self.broken = self._interrupted
        if statement.once:
            self._forget(statement)
        self.answered_at = time.monotonic()
        METADB_SECONDS.observe(self.answered_at - began)
        return rows

    def _statement(self, name: str, asked: bool) -> Statement:
        """Prepared, on each connection once; of a trace that is sent each time, with the trace in its text."""
        if tracing.on and not asked and (carried := tracing.sampled()) is not None:
            return Statement(
                self.raw, f"/*traceparent='{carried}'*/ {meta_schema.queries()[name]}", once=True
            )
        statement = self._statements.get(name)
        if statement is None:
            statement = self._statements[name] = Statement(self.raw, meta_schema.queries()[name])
        return statement

    def _forget(self, statement: Statement) -> None:
        """It is not run again. What it answered is known, whatever comes now."""
        try:
            statement.close()
        except (DatabaseError, *BROKEN):
            self.broken = True

    def ask_again(
        self, name: str, left: float, params: dict[str, Any], answers: Answers
    ) -> Sequence[Sequence[Any]] | None:
        """``run``, where it goes as it mostly does: the query was run on this connection before, and the answer comes
        at once and is as ``answers`` has it. None: it is not so; ``run`` goes on where this was."""
        statement = self._statements.get(name)
        if statement is None or self._limit != self._most or left < self._most + _LISTEN_S:
            return None
        if tracing.on or not self.raw._usock.times_itself:
            return None
        self.broken, self._asked = True, name
        began = time.monotonic()
        rows = statement.ask_again(params, answers)
        if rows is not None:
            self.broken, self._asked = False, ""
            self.answered_at = time.monotonic()
            METADB_SECONDS.observe(self.answered_at - began)
        return rows

    def _lost(self, error: BaseException) -> str:
        return f"lost the connection to MetaDB at {self.host}: {_reason(error)}"

    def _interrupt(self) -> None:
        self.broken = self._interrupted = True
        self.raw._usock.interrupt()

    def _limit_to(self, left: float) -> None:
        """Let the server give a statement up while we still listen: then it is known to be undone.

        Costs a round trip, so it is done only for a request that has less time than any statement may take.
        """
        wanted = min(self._most, left - min(_LISTEN_S, left / 4))
        enough = self._most if wanted >= self._most else wanted / 2
        if self._most and not enough <= self._limit <= wanted:
            self.raw.run(f"SET statement_timeout = {max(1, int(wanted * 1000))}")
            self._limit = wanted

    def close(self) -> None:
        """Never raises. A broken link says no goodbye: its socket may be full."""
        usock, stream = self.raw._usock, self.raw._sock
        if self.broken and usock is not None:
            usock.interrupt()
        for close in (self.raw.close, getattr(stream, "close", None)):
            with contextlib.suppress(*BROKEN):
                if close is not None:
                    close()
        self._socket_close()

    def _socket_close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _process(raw: Connection) -> int:
    """The server process at the other end; 0: it did not say."""
    said = raw._backend_key_data
    return int(struct.unpack("!i", said[:4])[0]) if said else 0


def _moment(text: str) -> Any:
    """A timestamptz; the driver's own reader takes ten times as long, and what only that can read."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return timestamptz_in(text)


def translate(error: DatabaseError) -> DistfsError:
    """What the server said, by its SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""
    code, message = _field(error, "C"), _field(error, "M")
    if code == "DF001":
        return (NodeForgotten if _field(error, "t") == "forgotten_node" else Refused)(message)
    if code == "DF002":
        return NodesLeft(message)
    if code == "DF003":
        used, most = compared(*map(int, message.split()))
        return OverQuota(
            f"the files of this owner have {used} of {most} that they may, and no room for more: delete some"
        )
    if code in ("42P01", "42703", "42883"):
        return SchemaBehind(f"MetaDB lacks what this version needs ({message}): run `distfs migrate`")
    if code == "42501":
        return ConfigError(f"MetaDB: {message}: the role in metadb.url has too few rights")
    if code == "57014":  # the statement's own limit: it was undone
        return TooSlow(f"MetaDB: {message}")
    if code == "53100":
        return Full(f"MetaDB's disk has no room for more bytes or files: free some there ({message})")
    if code[:2] in ("08", "25", "26", "40", "53", "55", "57", "58", "0A"):
        return Unavailable(f"MetaDB: {message}")
    return DistfsError(f"MetaDB: {message} (SQLSTATE {code})")


def _field(error: DatabaseError, key: str) -> str:
    fields = error.args[0] if error.args else None
    return str(fields.get(key, "")) if isinstance(fields, dict) else str(error)


def _cause(error: BaseException) -> BaseException:
    # pg8000 says goodbye to a server that has just refused it and hung up; what that raises hides the refusal.
    at: BaseException | None = error
    while not (at is None or isinstance(at, DatabaseError)):
        at = at.__context__
    return at or error.__cause__ or error


def _hung_up(cause: BaseException) -> bool:
    # OpenSSL calls it a violation of protocol, pg8000 a network error.
    return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError) or str(cause) == "network error"


def _may_restart(error: BaseException) -> bool:
    """Whether a server that cannot be connected to looks as one does that is restarted."""
    cause = _cause(error)
    if isinstance(cause, DatabaseError):
        return _field(cause, "C") in _RESTARTS
    return _hung_up(cause) or isinstance(cause, _NOBODY)


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    if isinstance(cause, DatabaseError):
        return _field(cause, "M")
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = f"certificate verify failed: {cause.verify_message.rstrip('.')}"
        return f"{why}; metadb.url says whose is believed: sslrootcert, or sslmode (docs/machines.md, Certificates)"
    if _hung_up(cause):
        return "it closed the connection"
    return descriptors.in_words(cause) if isinstance(cause, OSError) else str(cause)
