"""One request as the host has it: its head, which way its body comes, and what it holds until it is answered."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from distfs.config.settings import KIB, HttpConfig
from distfs.errors import DistfsError, TooLarge, Unavailable
from distfs.headers import lengths
from distfs.host.head import Head
from distfs.host.host import Host
from distfs.host.http1 import Parser
from distfs.host.request_body import SmallBody, StreamedBody
from distfs.quantity import compared
from distfs.quantity import size as readable

#: A larger body is read by its worker, straight to where it is wanted. In the loop, which is one thread for all, each
#: part of it would be copied several times; and what comes in more than a few parts is waited for more cheaply there.
PARTS = 64 * KIB
#: Under a cap, a larger body is left in the client's socket.
PACED = 16 * KIB


class Request:
    """``error``: one of distfs's own, ready to be answered; after one, the connection cannot be trusted."""

    __slots__ = ("admitted", "announced", "asks", "body", "error", "head", "parser", "small", "streamed")

    def __init__(self, head: Head, parser: Parser, error: DistfsError | None = None) -> None:
        self.head, self.parser, self.error = head, parser, error
        self.small: SmallBody | None = None  # received whole before the app is called
        self.streamed = False  # its worker reads the body from the socket
        self.body: StreamedBody | None = None
        self.asks = False  # the client waits for a 100
        self.announced = 0  # bytes the body is to have at most, or has; 0: not said
        self.admitted: ExitStack | None = None  # of a large body, from its head to its answer

    def choose_way(self, host: Host, address: str) -> bool:
        """How the body comes in; whether a worker is to have the request at once, at its head.

        Chunked ones are streamed from their first byte: how large they become is unknown, most are pipes of
        something large, and the way cannot change once chunks were decoded.
        """
        head = self.head
        if host.draining and not host.answers_while_draining(head.path):
            # Its head is complete only now: others may serve it. Who asks how we are is told.
            self.error = Unavailable("this service is stopping: ask another one, or try again soon")
        elif head.length or head.chunked:
            try:
                self._choose_way(host, address)
            except DistfsError as e:
                self.error = e
        return self.streamed or self.error is not None

    def _choose_way(self, host: Host, address: str) -> None:
        head = self.head
        self.asks = (
            head.expects_continue and not self.parser.has_more
        )  # the app may refuse before a byte is sent
        self._measure(host.http)
        large = head.chunked or head.length > host.http.stream_threshold
        if large:
            self.admitted = ExitStack()
            self.admitted.enter_context(host.admit_body(address, head.header, self.announced))
        # At a pace, what is not at hand anyway is left in the socket, so that the client feels it.
        if large or self.asks or head.length > (PACED if host.paces_bodies() else PARTS):
            self.streamed = True
        else:
            host.check_body(address, head.header, head.length)
            self.small = SmallBody(host.memory)

    def _measure(self, http: HttpConfig) -> None:
        """How large the body is to be at most, by length or by what the client says of chunks; what is no number is
        left to the app to refuse. Raises TooLarge."""
        limit = http.max_file_size + http.max_form_overhead
        head = self.head
        if not head.chunked:
            self.announced = head.length
            if head.length > limit:
                raise TooLarge(
                    f"the body is larger than the {readable(limit)} that are taken (http.max_file_size): send a "
                    "smaller file, or the files of a form one by one"
                )
            return
        text = head.header("X-Upload-Length") or head.header("Upload-Length") or ""
        if size := lengths.number(text):
            if size > limit:
                told, taken = compared(size, limit)
                raise TooLarge(
                    f"the body is to have {told}; {taken} are taken (http.max_file_size): send a smaller file"
                )
            self.announced = size
            self.parser.limit_body(size)

    def trailers(self) -> Mapping[str, str]:
        """What came behind a chunked body, by names in small letters; all of it once the body was read to its end."""
        return self.parser.trailers

    def input(self) -> Any:
        """`wsgi.input`: each of the three has readinto."""
        if self.body is not None:
            return self.body
        return io.BytesIO(self.small.value() if self.small is not None else b"")

    def close(self) -> None:
        """Give back what it holds."""
        if self.admitted is not None:
            self.admitted.close()
        if self.body is not None:
            self.body.close()
        if self.small is not None:
            self.small.close()
