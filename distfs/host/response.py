"""One request, answered: the WSGI app is called and its answer written, by a worker thread.

Data goes straight to the socket, chunked answers keep the connection, HEAD, 204 and 304 have no body, and an answer
that cannot be completed is cut, never ended as if it were.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from email.utils import formatdate
from itertools import chain
from typing import Any, NoReturn, Protocol

from distfs.errors import ClientGone, DistfsError
from distfs.headers import safety
from distfs.headers.composed import Base, Composed
from distfs.host.client_socket import Bytes
from distfs.host.ending import Ending
from distfs.host.hang_up import HangUp
from distfs.host.host import Host
from distfs.host.request import Request
from distfs.problem import explained, phrase
from distfs.telemetry import tracing
from distfs.telemetry.context import NO_REQUEST, current_request_id, enter_request
from distfs.telemetry.metrics import failed

logger = logging.getLogger("distfs.server")
access_log = logging.getLogger("distfs.access")

#: Gives back the last so many bytes of what an app gave: it gives them again.
Rewind = Callable[[int], None]

SERVER = "distfs"
_SERVED_BY = f"Server: {SERVER}"
_LINE_BREAK = re.compile(r"[\r\n\0]")
#: The host's to set, not an app's (PEP 3333).
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers"}
    | {"transfer-encoding", "upgrade"}
)
_OF_INTEREST = _HOP_BY_HOP | {"content-length", "server", "date"}
_BODILESS = ("1", "204", "304")
#: What every environ has.
_ENVIRON = {
    "SERVER_SOFTWARE": SERVER,
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,  # it ends with the body
    "distfs.writes_views": True,
}


class Connection(Protocol):
    """What an answer needs of its connection."""

    loop: Host
    address: Any
    hang_up: HangUp | None
    full: bool  # the socket takes no more for now
    serving: float  # since when a request is ready or served, on the monotonic clock

    def write(self, *buffers: Bytes, rewind: Rewind | None = None) -> int:
        """Send in order. ``rewind``: takes back what a full socket does not take; -> how much that was.

        Raises ClientGone.
        """

    @property
    def others_wait(self) -> bool:
        """For their turn."""

    def who(self, request: Request) -> dict[str, str]: ...

    def rest(self) -> None:
        """Nothing is read for a while once this is answered."""

    def may_go_on(self, request: Request) -> bool:
        """Whether another request may follow on this connection once this one is answered."""


class AnswerCutShort(Exception):
    """The app gave fewer bytes than it had declared: a bug, ours or the app's."""


class Response:
    """The answer of the app."""

    complete = False  # start_response was called

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection, self.request = connection, request
        self.version = request.head.version
        self.status, self._has_body = "200 OK", True
        #: Whether bytes may follow the header (RFC 9112, 6.3).
        self.may_have_body = request.head.method != "HEAD"
        self._base: Base | None = None  # what of the headers was put together before
        self._given: dict[str, str] = {}  # what the app said, by names in small letters
        self.response_headers: list[tuple[str, str]] = []
        self.content_length: int | None = None
        self.content_bytes_written = 0
        self.wrote_header = False
        self.chunked_response = False
        self.close_on_finish = False
        self.ending: Ending | None = None  # of the connection, when it is over; None: it goes on
        self._course: Generator[None] | None = None  # while it goes on: it refers to this
        self._context: contextvars.Context | None = None  # of its thread, for the next that takes it up

    def take_up(self, error: DistfsError | None = None) -> bool:
        """Go on, in whatever thread, with what is not over. ``error``: it is given up."""
        return False if self._context is None else self._context.run(self.go_on, error)

    def go_on(self, error: DistfsError | None = None) -> bool:
        """Answer, whatever happens. Whether it is over, as ``ending`` says; else it is taken up again when what is
        unsent has left."""
        course = self._course = self._course or self.execute()
        try:
            if error is None:
                next(course)
            else:
                course.throw(error)
        except StopIteration:
            self.ending = Ending.LINGER if self.close_on_finish else None
            return True
        except ClientGone as e:
            enter_request(self.request_id)
            logger.info("%s %s: %s", self.request.head.method, self.request.head.path, e)
            self.ending = Ending.CUT
            return True
        except BaseException as e:  # noqa: BLE001 - the outermost edge of a request: nobody above could answer or log it
            self.ending = self._fail(e)
            return True
        if self._context is None:
            self._context = contextvars.copy_context()
            tracing.step_out()
        return False

    def _fail(self, error: BaseException) -> Ending:
        """Answer with the error while that is still possible; else cut the answer that is on its way."""
        request_id = enter_request(self.request_id)
        if self.wrote_header:
            if isinstance(error, DistfsError):  # its text says what is the matter, and where
                logger.warning("the answer was cut short: %s", error)
            else:
                logger.error("the answer was cut short: %s", error, exc_info=error)
            return Ending.CUT
        if not isinstance(error, DistfsError):
            logger.error("the app failed", exc_info=error)
            error = DistfsError(f"internal error: tell the operator the request's id, {request_id}")
        refusal = Refusal(self.connection, self.request, error)
        refusal.response_headers = [("X-Request-Id", request_id)]
        refusal.close_on_finish = True
        try:
            for _ in refusal.execute():
                pass
        except ClientGone:
            return Ending.CUT
        return Ending.LINGER

    @property
    def request_id(self) -> str:
        """The app's own, where it has given one; else a new one. The same each time."""
        for name, value in self.response_headers:
            if name.lower() == "x-request-id":
                return value
        request_id = current_request_id()
        if request_id == NO_REQUEST:
            request_id = enter_request(self.request.head.headers.get("HTTP_X_REQUEST_ID", ""))
        self.response_headers.append(("X-Request-Id", request_id))
        return request_id

    def _set_status(self, status: str) -> None:
        """By which it has a body; HEAD's answer has the header of such a one."""
        self.status, self._has_body = status, not status.startswith(_BODILESS)
        self.may_have_body = self._has_body and self.request.head.method != "HEAD"

    def execute(self) -> Generator[None]:
        """Yields when what is unsent is to leave first, and when others are to come first: no thread waits for that.

        Raises ClientGone, and whatever the app raises; ``wrote_header`` tells if an answer is on its way.
        """
        app_iter: Iterable[Bytes] = self.connection.loop.app(self.environment(), self.start_response)
        rewind: Rewind | None = getattr(app_iter, "rewind", None)
        whole: Callable[[], bytes | None] | None = getattr(app_iter, "whole", None)
        parts, first = app_iter, rewind is not None
        try:
            if whole is not None and self.content_length is not None and (all_ := whole()) is not None:
                self._write(all_, None)
                app_iter.ended = True  # type: ignore[attr-defined]  # who has ``whole`` has it
                parts = ()
            for data in parts:
                if self.content_length is None and not self.wrote_header and _has_one(app_iter):
                    self.content_length = len(data)
                if data:
                    self._write(data, rewind)
                if rewind is not None and self.content_length != self.content_bytes_written:
                    if self.connection.full:
                        yield  # before the app reads what could not be sent
                    elif first and self.connection.others_wait:
                        rewind(0)  # who waits for his first part comes before the second of this
                        yield
                    first = False
                if self.wrote_header and not self.may_have_body:
                    break
        finally:
            if close := getattr(app_iter, "close", None):
                close()
        if (
            not self.wrote_header
            or self.chunked_response
            or self.content_length != self.content_bytes_written
        ):
            self.finish()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[Bytes], None]:
        """PEP 3333's. Raises what exc_info holds once the header is on its way."""
        if exc_info:
            try:
                if self.wrote_header:
                    raise exc_info[1]
            finally:
                exc_info = None  # no circle through its traceback
            self.response_headers, self.content_length, self._base = [], None, None
        elif self.complete:
            raise AssertionError("start_response was called a second time without exc_info")
        self.complete = True
        self._take(status, headers)
        if (length := self._given.get("content-length")) is not None:
            self.content_length = int(length)
        self._set_status(status)
        self.response_headers += headers
        return self.write

    def _take(self, status: str, headers: list[tuple[str, str]]) -> None:
        """What the app said, by names in small letters. Of what many answers have, once."""
        base = headers.base if type(headers) is Composed and not self.response_headers else None
        own = headers if base is None else headers[len(base.pairs) :]
        given = _given(status, own)
        if base is not None:
            if not base.checked:
                base.given = _given(status, base.pairs)
                base.checked = True
            given = {**base.given, **given} if given else base.given
        self._base, self._given = base, given

    def write(self, data: Bytes) -> None:
        """``data`` may be reused once this returns. Raises ClientGone."""
        self._write(data, None)

    def _write(self, data: Bytes, rewind: Rewind | None) -> None:
        """``rewind``: takes back what a full socket does not take."""
        if not self.complete:
            raise AssertionError("start_response was not called before the first byte of the answer")
        head = b"" if self.wrote_header else self.build_response_header()
        self.wrote_header = True
        size = len(data) if self.may_have_body else 0
        if self.content_length is not None and size > (
            left := self.content_length - self.content_bytes_written
        ):
            logger.error("the answer is longer than its Content-Length of %d: cut to it", self.content_length)
            data, size, rewind = data[:left], left, None
        self.content_bytes_written += size
        if size and self.chunked_response:
            self.connection.write(head, b"%X\r\n" % size, data, b"\r\n")
        elif size:
            self.content_bytes_written -= self.connection.write(head, data, rewind=rewind)
        elif head:
            self.connection.write(head)

    def finish(self) -> None:
        if not self.wrote_header:
            if self.content_length is None and self.may_have_body:
                self.content_length = 0
            self.write(b"")
        if self.chunked_response:
            self.connection.write(b"0\r\n\r\n")
        if self.may_have_body and self.content_length not in (None, self.content_bytes_written):
            raise AnswerCutShort(
                f"{self.content_bytes_written} of the {self.content_length} bytes of its Content-Length were given"
            )

    def build_response_header(self) -> bytes:
        """The header; decides whether the connection goes on after this answer (``close_on_finish``)."""
        given, headers, has_body = self._given, self.response_headers, self._has_body
        known: list[str] = []
        if not has_body:
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        elif self._base is not None:
            known, headers = [self._base.text], headers[len(self._base.pairs) :]
        lines = [f"HTTP/{self.version} {self.status}", *known, *map(": ".join, headers)]
        if "server" not in given:
            lines.append(_SERVED_BY)
        if "date" not in given:
            lines.append(_date_line())
        if has_body and self.content_length is not None and "content-length" not in given:
            lines.append(f"Content-Length: {self.content_length}")
        if self.content_length is None and self.may_have_body:
            if self.version == "1.1":
                self.chunked_response = True
                lines.append("Transfer-Encoding: chunked")
            else:
                self.close_on_finish = True  # nothing but the close tells the end
        if self.close_on_finish or not self.connection.may_go_on(self.request):
            self.close_on_finish = True
            lines.append("Connection: close")
        elif self.version == "1.0":
            lines.append("Connection: keep-alive")
        lines += "", ""
        return "\r\n".join(lines).encode("latin-1")

    def environment(self) -> dict[str, Any]:
        """PEP 3333's, and what our app asks for."""
        head, connection = self.request.head, self.connection
        environ: dict[str, Any] = {
            **(head.environ or self._environment_of_all_alike()),
            "REQUEST_METHOD": head.method,
            "REQUEST_URI": head.target,
            "PATH_INFO": head.path,
            "QUERY_STRING": head.query,
            "wsgi.errors": sys.stderr,
            "wsgi.input": self.request.input(),
            "distfs.admitted": self.request.admitted is not None,
            "distfs.trailers": self.request.trailers,
            "distfs.hang_up": connection.hang_up,
            "distfs.rest": connection.rest,
            "distfs.ready": connection.serving,  # since when, on the monotonic clock
            "distfs.crowded": connection.others_wait,
            "distfs.draining": connection.loop.draining and connection.loop.service_stops,
        }
        if self.request.body is not None:
            environ["distfs.collect"] = self.request.body.collect
        return environ

    def _environment_of_all_alike(self) -> dict[str, Any]:
        """What requests of this connection with these headers have in common."""
        head, loop = self.request.head, self.connection.loop
        host, port = (self.connection.address or ("", 0))[:2]
        head.environ = {
            **head.headers,
            **_ENVIRON,
            "REMOTE_ADDR": host,
            "REMOTE_HOST": host,
            "REMOTE_PORT": str(port),
            "SERVER_NAME": loop.name,
            "SERVER_PORT": loop.port,
            "SERVER_PROTOCOL": f"HTTP/{self.version}",
            "wsgi.url_scheme": loop.scheme,
        }
        return head.environ


class Refusal(Response):
    """The answer to a request that the app never saw or failed on: one line of text, or JSON as the app has it."""

    complete = True

    def __init__(self, connection: Connection, request: Request, error: DistfsError) -> None:
        super().__init__(connection, request)
        self._error = error

    def execute(self) -> Generator[None]:
        yield from ()
        error = self._error
        accept, reason = self.request.head.headers.get("HTTP_ACCEPT", ""), error.for_client
        kind, answer = explained(accept, error.status, reason, self.request_id)
        body = answer.encode()
        self._set_status(f"{error.status} {phrase(error.status)}")
        self.content_length = len(body)
        self.response_headers = [("Content-Type", kind), *safety.OURS.items(), *self.response_headers]
        if error.retry_after is not None:
            self.response_headers.append(("Retry-After", str(error.retry_after)))
        self._log(reason)
        self.write(body)
        self.finish()

    def _log(self, reason: str) -> None:
        """The app's access log has no line for it, nor its metrics a count."""
        failed(self._error)
        facts = {
            "method": self.request.head.method or "-",
            "path": as_text(self.request.head.path) or "-",
            "status": self._error.status,
            **self.connection.who(self.request),
            "reason": reason,
        }
        level = logging.INFO if self._error.status < 500 else logging.WARNING
        access_log.log(level, "refused", extra=facts)


def as_text(path: str) -> str:
    """A path as the app sees it and logs it, UTF-8, from an octet a character."""
    return path.encode("latin-1").decode("utf-8", "replace")


_dates: list[tuple[int, str]] = [(0, "")]


def _date_line() -> str:
    """Made once a second."""
    now = int(time.time())
    at, line = _dates[0]
    if at != now:
        line = f"Date: {formatdate(now, usegmt=True)}"
        _dates[0] = now, line
    return line


def _has_one(app_iter: object) -> bool:
    return isinstance(app_iter, list | tuple) and len(app_iter) == 1


def _given(status: str, headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What they say of how the answer is sent, by names in small letters. Raises AssertionError, ValueError for what
    cannot be sent, or is not the app's to say.

    All texts are looked at at once, since that takes a tenth of the time.
    """
    given: dict[str, str] = {}
    try:
        all_of_it = "" + status
        for name, value in headers:
            all_of_it += name + value
            if (known := name.lower()) in _OF_INTEREST:
                given[known] = value
    except TypeError:
        all_of_it = "\0"  # it is said below, as what is not right
    if "\r" in all_of_it or "\n" in all_of_it or "\0" in all_of_it:
        _say_what_is_wrong(status, headers)
    if given and not _HOP_BY_HOP.isdisjoint(given):
        names = ", ".join(_HOP_BY_HOP.intersection(given))
        raise AssertionError(f"{names}: the server's to set, not the app's (PEP 3333)")
    return given


def _say_what_is_wrong(status: str, headers: Sequence[tuple[str, str]]) -> NoReturn:
    for text in (status, *chain.from_iterable(headers)):
        if not isinstance(text, str):
            raise AssertionError(f"a response's status and headers are text, not {text!r}")
        if _LINE_BREAK.search(text):
            raise ValueError(f"a line break in a response's status or header: {text!r}")
    raise AssertionError(f"a response's headers are pairs of texts, not {headers!r}")
