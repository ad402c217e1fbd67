"""GET /logs: what this service and its nodes logged, on whichever machines, for administrators."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError, Refused, Unavailable
from distfs.log_store import stored
from distfs.model import Node
from distfs.process.descriptors import in_words
from distfs.routes.messages import Answer, Request
from distfs.services import Services
from distfs.telemetry import log_query, log_search
from distfs.telemetry.context import current_request_id
from distfs.telemetry.log_query import merged
from distfs.telemetry.log_search import Line, Wanted, as_in_lines, earliest

log = logging.getLogger("distfs.http")

#: Of those who ask at once, of each process; seconds that a search has; bytes of one piece of the answer.
MOST_AT_ONCE, LIMIT_S, _PIECE = 4, 600.0, 64 << 10
_places = threading.BoundedSemaphore(MOST_AT_ONCE)


def get_logs(services: Services, request: Request) -> Answer:
    """Lines in order of time, as files have them, each a JSON object: those of the folder that this service logs to,
    and those of all nodes; or of all parts, where they are in MetaDB.

    What could not be asked is a last line, of the event ``log.missing``. Raises Refused, Busy, Unavailable.
    """
    try:
        wanted = log_query.asked({name: value for name, value in request.args.items() if name and value})
    except ValueError as e:
        raise Refused(str(e)) from e
    deadline = Deadline(LIMIT_S, scope=request.hang_up)
    headers = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
    told = () if request.method == "HEAD" else _Told(services, wanted, deadline)
    return Answer(200, headers, told)


class _Told:
    """The answer's body. Nothing of it is kept."""

    def __init__(self, services: Services, wanted: Wanted, deadline: Deadline) -> None:
        """Raises Busy, Unavailable."""
        self._held = ExitStack()
        if not _places.acquire(blocking=False):
            raise Busy("as many read the log here as may: try again in a moment")
        self._held.callback(_places.release)
        try:
            self._sources = _Sources(services, wanted, deadline, self._held)
            self._pieces = self._told()
            self._held.callback(self._pieces.close)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        self._held.close()

    def _told(self) -> Generator[bytes]:
        piece = b""
        for _, text, _ in merged(self._sources.all):
            piece += text + b"\n"
            if len(piece) >= _PIECE:
                yield piece
                piece = b""
        piece += b"".join(map(_missing, self._sources.missing))
        if piece:
            yield piece


class _Sources:
    """Where lines are. ``missing``: what of them could not be had, and why, when all have come to their end."""

    def __init__(self, services: Services, wanted: Wanted, deadline: Deadline, held: ExitStack) -> None:
        self._wanted, self._deadline = wanted, deadline
        self.missing: list[str] = []
        config = services.config
        if config.log.store == "metadb":
            lines = stored(config.metadb, wanted, earliest(wanted) or None, deadline)
            self.all = [self._guarded("MetaDB", lines)]
            return
        self.all = [self._guarded("this service", self._own(config.log.dir))]
        for node in self._nodes(services):
            name = f"node {node.id}"
            try:
                lines_of_it = services.directory.client(node.id, deadline).log(wanted, deadline)
            except DistfsError as e:
                deadline.check_cancelled()
                self.missing.append(f"{name}: {e}")
                continue
            held.callback(lines_of_it.close)
            self.all.append(self._guarded(name, iter(lines_of_it)))

    def _nodes(self, services: Services) -> Iterator[Node]:
        """Those that are up."""
        try:
            known = services.directory.nodes(self._deadline.sooner(services.config.peers.base_timeout))
        except DistfsError as e:
            self._deadline.check_cancelled()
            self.missing.append(f"nodes: {e}")
            return
        for node in known:
            if node.alive:
                yield node
            else:
                self.missing.append(f"node {node.id}: it is down")

    def _own(self, folder: str) -> Iterator[Line]:
        if folder in ("auto", "off"):
            raise Unavailable("it writes no files of its log: set log.dir for it")
        try:
            yield from log_search.search([Path(folder)], self._wanted, between=self._deadline.remaining)
        except OSError as e:
            raise Unavailable(f"its log cannot be read: {in_words(e)}") from e

    def _guarded(self, name: str, lines: Iterator[Line]) -> Iterator[Line]:
        """What one of them cannot tell, the others may."""
        try:
            yield from lines
        except DistfsError as e:
            self._deadline.check_cancelled()
            self.missing.append(f"{name}: {e}")


def _missing(what: str) -> bytes:
    """A line that says so, in the form of the others."""
    log.debug("what was asked for of the log is not all here: %s", what)
    said = {
        "part": "service",
        "time": as_in_lines(time.time()),
        "level": "WARNING",
        "event": "log.missing",
        "request_id": current_request_id(),
        "logger": log.name,
        "message": f"what was asked for of the log is not all here: {what}",
    }
    return json.dumps(said).encode() + b"\n"
