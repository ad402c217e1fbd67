"""One request, answered: the WSGI app is called and its answer written, by a worker thread.

Replaces how waitress writes: big data goes straight to the socket, chunked answers keep the connection,
HEAD, 204 and 304 have no body, and an answer that cannot be completed is cut, never ended as if it were.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

from waitress.task import WSGITask, hop_by_hop
from waitress.utilities import build_http_date

from distfs.errors import Busy, DistfsError
from distfs.host.client_socket import Bytes
from distfs.problem import explained, phrase
from distfs.telemetry import NO_REQUEST, current_request_id, enter_request

logger = logging.getLogger("distfs.server")
access_log = logging.getLogger("distfs.access")

_LINE_BREAK = re.compile(r"[\r\n\0]")


class AnswerCutShort(Exception):
    """The app gave fewer bytes than it had declared: a bug, ours or the app's."""


class Response(WSGITask):  # type: ignore[misc]
    """The answer of the app. ``channel`` and ``request`` are a Channel and a Request."""

    content_length: int | None
    response_headers: list[tuple[str, str]]
    wrote_header = False
    complete = False  # start_response was called

    def service(self) -> None:
        """Raises ClientGone, and whatever the app raises; ``wrote_header`` tells if an answer is on its way."""
        self.start()
        self.execute()
        self.finish()

    @property
    def request_id(self) -> str:
        """The app's own, where it has given one; else a new one. The same each time."""
        for name, value in self.response_headers:
            if name.lower() == "x-request-id":
                return value
        request_id = current_request_id()
        if request_id == NO_REQUEST:
            request_id = enter_request(self.request.headers.get("X_REQUEST_ID", ""))
        self.response_headers.append(("X-Request-Id", request_id))
        return request_id

    @property
    def may_have_body(self) -> bool:
        """Whether bytes may follow the header (RFC 9112, 6.3)."""
        return bool(self.has_body) and self.request.command != "HEAD"

    def execute(self) -> None:
        environ = self.get_environment()
        app_iter: Iterable[Bytes] = self.channel.server.application(environ, self.start_response)
        try:
            for data in app_iter:
                if self.content_length is None and not self.wrote_header and _has_one(app_iter):
                    self.content_length = len(data)
                if data:
                    self.write(data)
                if self.wrote_header and not self.may_have_body:
                    break
        finally:
            if close := getattr(app_iter, "close", None):
                close()

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
            self.response_headers, self.content_length = [], None
        elif self.complete:
            raise AssertionError("start_response was called a second time without exc_info")
        self.complete = True
        _check_text(status)
        for name, value in headers:
            _check_text(name)
            _check_text(value)
            if name.lower() in hop_by_hop:
                raise AssertionError(f"{name} is the server's to set, not the app's (PEP 3333)")
            if name.lower() == "content-length":
                self.content_length = int(value)
        self.status = status
        self.response_headers.extend(headers)
        return self.write

    def write(self, data: Bytes) -> None:
        """``data`` may be reused once this returns. Raises ClientGone."""
        if not self.complete:
            raise AssertionError("start_response was not called before the first byte of the answer")
        head = b"" if self.wrote_header else self.build_response_header()
        begun, self.wrote_header = self.wrote_header, True
        size = len(data) if self.may_have_body else 0
        if self.content_length is not None and size > (
            left := self.content_length - self.content_bytes_written
        ):
            logger.error("the answer is longer than its Content-Length of %d: cut to it", self.content_length)
            data, size = data[:left], left
        self.content_bytes_written += size
        if size and self.chunked_response:
            parts: tuple[Bytes, ...] = (head, b"%X\r\n" % size, data, b"\r\n")
        else:
            parts = (head, data) if size else (head,)
        try:
            self.channel.write(*parts)
        except Busy:  # nothing of it was sent: another answer may still be given
            self.wrote_header = begun
            raise

    def finish(self) -> None:
        if not self.wrote_header:
            if self.content_length is None and self.may_have_body:
                self.content_length = 0
            self.write(b"")
        if self.chunked_response:
            self.channel.write(b"0\r\n\r\n")
        if self.may_have_body and self.content_length not in (None, self.content_bytes_written):
            raise AnswerCutShort(
                f"{self.content_bytes_written} of the {self.content_length} bytes of its Content-Length were given"
            )

    def build_response_header(self) -> bytes:
        """The header; decides whether the connection goes on after this answer (``close_on_finish``)."""
        given = {name.lower() for name, _ in self.response_headers}
        headers = [
            (name, value)
            for name, value in self.response_headers
            if self.has_body or name.lower() != "content-length"
        ]
        if "server" not in given:
            headers.append(("Server", self.channel.adj.ident))
        if "date" not in given:
            headers.append(("Date", build_http_date(self.start_time)))
        if self.content_length is not None and "content-length" not in given and self.has_body:
            headers.append(("Content-Length", str(self.content_length)))
        if self.may_have_body and self.content_length is None:
            if self.version == "1.1":
                self.chunked_response = True
                headers.append(("Transfer-Encoding", "chunked"))
            else:
                self.close_on_finish = True  # nothing but the close tells the end
        if self.close_on_finish or not self.channel.may_go_on(self.request):
            self.close_on_finish = True
            headers.append(("Connection", "close"))
        elif self.version == "1.0":
            headers.append(("Connection", "keep-alive"))
        lines = [f"HTTP/{self.version} {self.status}", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ.pop("wsgi.file_wrapper", None)  # its files would be copied through the loop
        environ.pop("waitress.client_disconnected", None)
        environ["distfs.writes_views"] = True
        environ["distfs.admitted"] = self.request.ticket is not None
        environ["distfs.trailers"] = lambda: self.channel.parser.trailers
        environ["distfs.hang_up"] = self.channel.hang_up
        environ["distfs.draining"] = self.channel.server.draining
        if self.request.streamed and self.request.chunked:
            environ["HTTP_TRANSFER_ENCODING"] = "chunked"  # its length is known to nobody yet
        return environ


class Refusal(Response):
    """The answer to a request that the app never saw or failed on: one line of text, or JSON as the app has it."""

    complete = True

    def __init__(self, channel: Any, request: Any, error: DistfsError) -> None:
        super().__init__(channel, request)
        self._error = error

    def execute(self) -> None:
        error = self._error
        accept, reason = self.request.headers.get("ACCEPT", ""), error.for_client
        kind, answer = explained(accept, error.status, reason, self.request_id)
        body = answer.encode()
        self.status = f"{error.status} {phrase(error.status)}"
        self.content_length = len(body)
        safe = ("X-Content-Type-Options", "nosniff")
        self.response_headers = [("Content-Type", kind), safe, *self.response_headers]
        if error.retry_after is not None:
            self.response_headers.append(("Retry-After", str(error.retry_after)))
        self._log(reason)
        self.write(body)

    def _log(self, reason: str) -> None:
        """The app's access log has no line for it."""
        facts = {
            "method": self.request.command or "-",
            "path": as_text(self.request.path) or "-",
            "status": self._error.status,
            **self.channel.who(self.request),
            "reason": reason,
        }
        level = logging.INFO if self._error.status < 500 else logging.WARNING
        access_log.log(level, "refused", extra=facts)


def as_text(path: str) -> str:
    """A path as the app sees it and logs it, UTF-8, from an octet a character."""
    return path.encode("latin-1").decode("utf-8", "replace")


def _has_one(app_iter: object) -> bool:
    return isinstance(app_iter, list | tuple) and len(app_iter) == 1


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise AssertionError(f"a response's status and headers are text, not {text!r}")
    if _LINE_BREAK.search(text):
        raise ValueError(f"a line break in a response's status or header: {text!r}")
