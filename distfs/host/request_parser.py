"""One HTTP/1 request's header, more strictly than waitress reads it, and where its body will be.

What two servers in a row could read differently (RFC 9112, 6.1 and 11.2) is refused: a body framed twice,
folded lines, codings other than one `chunked`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from waitress.parser import HTTPRequestParser, ParsingError, TransferEncodingNotImplemented
from waitress.utilities import Error as WaitressError

from distfs.admission.gate import Ticket
from distfs.config import HttpConfig
from distfs.errors import DistfsError, HeadersTooLarge, Refused, TooLarge, Unsupported
from distfs.headers import fields, host, lengths
from distfs.host.body_framing import ChunkFraming, Framing, LengthFraming
from distfs.host.request_body import Spool, StreamedBody
from distfs.quantity import compared
from distfs.quantity import size as readable

MAX_HEADER = 65536

_CODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)


#: How clients begin that take this port for another one's.
_OTHERS = {b"\x16\x03": "TLS", b"SSH-": "SSH", b"PRI * HTTP/2": "HTTP/2", b"PROXY ": "the PROXY protocol"}
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]")


def other_protocol(data: bytes) -> str:
    """What a connection's first bytes are, when they cannot begin a request; empty: they can."""
    data = data.lstrip(b"\r\n")
    for magic, name in _OTHERS.items():
        if data.startswith(magic):
            return name
    return "no HTTP" if data and not _METHOD.match(data) else ""


class RequestParser(HTTPRequestParser):  # type: ignore[misc]
    """Complete as soon as its header is in; ``framing`` then tells of a body, and its channel which way it comes.

    ``error`` is one of distfs's own, ready to be answered; after one, the connection cannot be trusted.
    """

    command = ""  # until the request line was read
    path = ""
    framing: Framing | None = None  # of a body that no way was chosen for yet
    streamed: Framing | None = None  # of a body that the worker reads from the socket
    body: StreamedBody | None = None
    announced = 0  # bytes a chunked body is to have at most; 0: not said
    ticket: Ticket | None = None  # of a large body, from its header to its answer
    body_rcv: Spool | None = None
    _chunks: ChunkFraming | None = None
    version = "1.1"  # until it was read
    content_length: int
    error: DistfsError | None = None

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self._http: HttpConfig = adj.http

    def received(self, data: bytes) -> int:
        """Take what belongs to this request; how many bytes that was. Sets ``completed`` and ``error``."""
        taken: int = super().received(data)
        if isinstance(self.error, WaitressError):
            self.error = _translated(self.error)
        return taken

    def parse_header(self, header_plus: bytes) -> None:
        _check_framing(header_plus)
        try:
            super().parse_header(_plainly(header_plus))
        except ValueError as e:  # an address urlsplit refuses
            raise ParsingError("the request line is malformed") from e
        self.body_rcv = None  # ours is chosen by the channel
        if self.path.startswith("/"):
            self.path = "/" + self.path.lstrip("/")  # as the app will see it
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("the protocol version is not HTTP/1.0 or HTTP/1.1")
        self._find_host()
        self.expect_continue = self.version == "1.1" and "100-continue" in fields.words(
            self.headers.get("EXPECT", "")
        )
        options = fields.words(self.headers.get("CONNECTION", ""))
        self.connection_close = "close" in options or (self.version == "1.0" and "keep-alive" not in options)
        self._frame_body()

    def _find_host(self) -> None:
        """By Host, or by a target that is a whole URL, whose word counts more (RFC 9112, 3.2)."""
        given = self.headers.get("HOST")
        if (given is None and self.version == "1.1") or not host.is_host(given or ""):
            raise ParsingError(f"its Host is missing, there twice, or no host: {host.REMEDY}")
        target = self.request_uri
        if target.startswith("/") or (target == "*" and self.command == "OPTIONS"):
            return
        if self.proxy_scheme not in ("http", "https") or not self.proxy_netloc:
            raise ParsingError("its target is neither a path nor a URL: send one that begins with /")
        if not host.is_host(self.proxy_netloc):
            raise ParsingError("the host in its target is none: send a path, and the host in a Host header")
        self.headers["HOST"], self.path = self.proxy_netloc, self.path or "/"

    def _frame_body(self) -> None:
        limit = self._http.max_file_size + self._http.max_form_overhead
        if self.content_length > limit:
            self.content_length = 0  # else waitress answers, in its own words
            self.error = TooLarge(
                f"the body is larger than the {readable(limit)} that are taken (http.max_file_size): send a "
                "smaller file, or the files of a form one by one"
            )
        elif self.chunked:
            self._frame_chunks(limit)
        elif self.content_length:
            self.framing = LengthFraming(self.content_length)

    def _frame_chunks(self, limit: int) -> None:
        """With what the client says the body has at most; what is no number is left to the app to refuse."""
        text = self.headers.get("X_UPLOAD_LENGTH") or self.headers.get("UPLOAD_LENGTH") or ""
        if size := lengths.number(text):
            self.announced = size
            if self.announced > limit:
                told, taken = compared(size, limit)
                self.error = TooLarge(
                    f"the body is to have {told}; {taken} are taken (http.max_file_size): send a smaller file"
                )
                return
            limit = self.announced
        self.framing = self._chunks = ChunkFraming(limit)

    def trailers(self) -> Mapping[str, str]:
        """What came behind a chunked body, by names in small letters; all of it once the body was read to its end."""
        return self._chunks.trailers if self._chunks else {}

    def header(self, name: str) -> str | None:
        """What the client says under a header's usual name."""
        value: str | None = self.headers.get(name.upper().replace("-", "_"))
        return value

    def spool(self, spool: Spool) -> None:
        """The body is to be received into ``spool``; the request is complete when it is."""
        self.framing = None
        self.body_rcv = spool
        self.completed = False

    def stream(self) -> None:
        """The body is left on the socket, for the worker: see ``open_body``."""
        self.framing, self.streamed = None, self.framing

    def get_body_stream(self) -> Any:
        """`wsgi.input`: each of the three has readinto."""
        if self.body is not None:
            return self.body
        return io.BytesIO() if self.body_rcv is None else self.body_rcv.getfile()

    def close(self) -> None:
        if self.ticket is not None:
            self.ticket.leave()
        if self.body_rcv is not None:
            self.body_rcv.close()


def _plainly(header: bytes) -> bytes:
    """The same without blanks around values, which waitress takes ages to skip, and with a Content-Length that it
    reads as we do."""
    first, *lines = header.split(b"\r\n")
    found, declared = [first], []
    for line in lines:
        name, colon, value = line.partition(b":")
        if name.lower() == b"content-length":
            declared.append(value.strip(b" \t").decode("latin-1"))
        else:
            found.append(name + colon + value.strip(b" \t"))
    if declared:
        size = lengths.content_length(",".join(declared))
        if size is None:
            raise ParsingError(
                "its Content-Length is not a whole number of bytes: let the client set it itself"
            )
        found.insert(1, b"Content-Length: %d" % size)
    return b"\r\n".join(found)


def _check_framing(header: bytes) -> None:
    """Raises what waitress's parser raises, for headers that it would read too kindly."""
    if b"\r\n " in header or b"\r\n\t" in header:
        raise ParsingError("a header is folded over lines: send it in one")
    codings = [coding.strip().lower() for coding in _CODING.findall(header)]
    if not codings:
        return
    if codings != [b"chunked"]:
        raise TransferEncodingNotImplemented("the only Transfer-Encoding taken is one `chunked`")
    if re.search(rb"\r\ncontent-length:", header, re.IGNORECASE):
        raise ParsingError("the body has both Content-Length and Transfer-Encoding: send one of them")
    if re.match(rb"[^\r\n]*HTTP/1\.0\r\n", header):
        raise ParsingError("HTTP/1.0 has no Transfer-Encoding: send HTTP/1.1 or a Content-Length")


def _translated(error: WaitressError) -> DistfsError:
    if error.code == HeadersTooLarge.status:
        return HeadersTooLarge(f"the request's headers are larger than {readable(MAX_HEADER)}: send fewer")
    if error.code == Unsupported.status:
        return Unsupported(error.body)
    return Refused(f"malformed request: {error.body}")
