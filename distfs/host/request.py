"""A request on its way through the host: its head, the way its body takes, and what is wrong with it.

It has the names that waitress's task looks for.
"""

from __future__ import annotations

import io
from typing import Any

from distfs.config.settings import HttpConfig
from distfs.errors import DistfsError, TooLarge
from distfs.headers import lengths
from distfs.host.head import Head
from distfs.host.request_body import Spool, StreamedBody
from distfs.limits.gate import Ticket
from distfs.quantity import compared
from distfs.quantity import size as readable


class Request:
    """``error`` is one of distfs's own, ready to be answered; after one, the connection cannot be trusted."""

    url_scheme = "http"

    def __init__(self, head: Head, error: DistfsError | None = None) -> None:
        self.error = error
        self.command, self.path, self.query = head.method, head.path, head.query
        self.request_uri, self.version = head.target, head.version
        self.headers = dict(head.headers)
        self.connection_close = not head.goes_on
        self.expect_continue = head.expects_continue
        self.chunked = head.chunked
        self.declared = (
            head.length
        )  # bytes of the body; of a chunked one, what it is to have at most; 0: not said
        self.has_body = head.chunked or head.length > 0
        self.streamed = False  # the worker reads the body from the socket
        self.body: StreamedBody | None = None
        self.spool: Spool | None = None
        self.ticket: Ticket | None = None  # of a large body, from its header to its answer
        if head.chunked:
            self.headers.pop("TRANSFER_ENCODING", None)  # apps see a body, however it was framed

    def check_size(self, http: HttpConfig) -> None:
        """What is no number is left to the app to refuse. Raises TooLarge."""
        limit = http.max_file_size + http.max_form_overhead
        if not self.chunked:
            if self.declared > limit:
                raise TooLarge(
                    f"the body is larger than the {readable(limit)} that are taken (http.max_file_size): send a "
                    "smaller file, or the files of a form one by one"
                )
            return
        said = self.headers.get("X_UPLOAD_LENGTH") or self.headers.get("UPLOAD_LENGTH") or ""
        self.declared = lengths.number(said) or 0
        if self.declared > limit:
            told, taken = compared(self.declared, limit)
            raise TooLarge(
                f"the body is to have {told}; {taken} are taken (http.max_file_size): send a smaller file"
            )

    def ended(self) -> None:
        """All of its body has come, if it has one."""
        if self.spool is not None:
            self.headers["CONTENT_LENGTH"] = str(len(self.spool))

    def header(self, name: str) -> str | None:
        """What the client says under a header's usual name."""
        return self.headers.get(name.upper().replace("-", "_"))

    def get_body_stream(self) -> Any:
        """`wsgi.input`: each of the three has readinto."""
        if self.body is not None:
            return self.body
        return io.BytesIO() if self.spool is None else self.spool.getfile()

    def close(self) -> None:
        if self.ticket is not None:
            self.ticket.leave()
        if self.spool is not None:
            self.spool.close()
