"""HTTP/1 requests out of a connection's bytes, however they are cut: bytes in, events out. No I/O.

A table says which state follows which, as h11 has it, and each state has one reader. A request is a ``Head``, its
body as ``memoryview``s, and an ``End``; then the parser waits until ``next_request`` is called, with what follows
kept. Whatever comes, it takes time in proportion to the bytes, and memory within the limits of the configuration.

Who has the socket may leave the body in it: while the parser has no bytes of its own, ``data_left`` bytes of the body
come next for certain; they may go past it, straight to where they are wanted, when ``took`` is told so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

from distfs.config.settings import HttpConfig
from distfs.errors import DistfsError, HeadersTooLarge, Refused, TooLarge
from distfs.headers import fields
from distfs.host import head as heads
from distfs.host.head import CRLF, TEXT, Alike, Head
from distfs.host.http1_events import TRANSITIONS, End, Event, Failed, OtherProtocol, Pause, Read, State
from distfs.quantity import counted
from distfs.quantity import size as readable

HEAD_END = b"\r\n\r\n"
#: Bytes by which one is seen who speaks something else.
MAGIC = 64
#: How clients begin that take this port for another one's.
_OTHERS = {b"\x16": "TLS", b"SSH-": "SSH", b"PRI * HTTP/2": "HTTP/2", b"PROXY ": "the PROXY protocol"}
_FIRST_OF_METHODS = frozenset(b"GHDOC")  # and of none of the others
_UPLOADS = (b"PUT", b"POS")  # theirs is of some

ENDLESS = 1 << 62
_HEX = b"0123456789ABCDEFabcdef"
_MAX_HEX = 16
#: What chunk lines may take beyond 16 bytes each and twice their data: extensions on tiny chunks would
#: otherwise make a server read thousands of bytes for each that counts (CVE-2023-39326).
MAX_EXCESS = 16384
#: What comes too late behind a body, and is left out (RFC 9110, 6.5.1): it frames the message, routes it, or says who
#: may and how.
_TOO_LATE = (
    *("authorization", "cache-control", "connection", "content-encoding", "content-length", "content-range"),
    *(
        "content-type",
        "cookie",
        "expect",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
    ),
    *("if-unmodified-since", "keep-alive", "max-forwards", "pragma", "proxy-authorization", "range", "te"),
    *("trailer", "transfer-encoding", "upgrade"),
)


#: What every request without a body passes through.
_BEGUN = TRANSITIONS[State.IDLE][Read.FIRST_BYTE]
_ALONE = TRANSITIONS[State.HEAD][Read.HEAD_ALONE]
_ENDED, _ENDED_LAST = (TRANSITIONS[State.COMPLETE][read] for read in (Read.END, Read.LAST_END))
_END = End(MappingProxyType({}))  # of all that have no trailers


class _SpeaksOther(Exception):
    pass


class Parser:
    """One connection's requests, one after the other. Any thread may use it, one at a time."""

    __slots__ = (
        "_alike",
        "_announced",
        "_at",
        "_blank",
        "_data",
        "_end",
        "_excess",
        "_final",
        "_head",
        "_http",
        "_is_again",
        "_later",
        "_most",
        "_partial",
        "_scanned",
        "_trailer_left",
        "_trailers",
        "data_left",
        "state",
    )

    def __init__(self, http: HttpConfig) -> None:
        self._http = http
        self._data: bytes | bytearray = b""  # what was received and not looked at is in it from _at to _end
        self._at = self._end = 0
        self._later: deque[tuple[bytes | bytearray, int]] | None = None  # what follows that
        self._partial = bytearray()  # of a head or line whose end has not come yet
        self.state = State.IDLE
        self._final: Failed | OtherProtocol | None = None
        self._alike: Alike | None = None  # clients mostly send the same headers again
        self._begin()

    def _begin(self) -> None:
        self.data_left, self._is_again = 0, False
        self._head: Head | None = None
        self._blank = 0  # bytes of empty lines before the request
        self._scanned = 0  # of a partial head
        self._most = self._http.max_file_size + self._http.max_form_overhead
        self._announced = 0  # bytes of data in chunks until now
        self._excess = 0
        self._trailer_left = int(self._http.max_trailer)
        self._trailers: dict[str, list[str]] = {}

    # --- bytes in ---------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray, end: int | None = None) -> None:
        """``data[:end]`` came. It is not copied: it must stay as it is until NEED_DATA says that all was taken, or
        until next_request."""
        size = len(data) if end is None else end
        if self._at == self._end:
            self._data, self._at, self._end = data, 0, size
        else:
            self._later = self._later or deque()
            self._later.append((data, size))

    def again(self, data: bytearray, count: int) -> Head | None:
        """``data[:count]`` came, and is all of a request without a body, with the headers of the one before: its
        head, as ``next_event`` would have given it. None: it is not, and was not received."""
        alike = self._alike
        if alike is None or self.state is not State.IDLE or self._blank or self.has_more:
            return None
        if (
            data[0] not in _FIRST_OF_METHODS
            or (head := heads.again(bytes(data[:count]), self._http, alike)) is None
        ):
            return None
        self.state, self._is_again = _ENDED, True  # it goes on as the one before did
        return head

    def took(self, count: int) -> None:
        """``count`` of the ``data_left`` bytes went past the parser."""
        if self._at == self._end:
            self._data, self._at, self._end = b"", 0, 0  # the rest needs no memory of the beginning
        self.data_left -= count
        if not self.data_left:
            self._go(Read.ALL_DATA)

    @property
    def has_more(self) -> bool:
        """There are bytes that were received and not looked at."""
        return self._at < self._end or bool(self._later)

    @property
    def at_hand(self) -> int:
        """How many."""
        return self._end - self._at + sum(size for _, size in self._later or ())

    # --- events out -------------------------------------------------------------------------------

    def next_event(self, most: int = ENDLESS) -> Event:
        """What comes next; data at most ``most`` bytes at a time, and valid until the next ``receive``."""
        try:
            while (event := _READERS[self.state](self, most)) is None:
                pass
        except DistfsError as e:
            event = self._final = Failed(e, self._head or Head())
            self.state = State.FAILED
        except _SpeaksOther as e:
            event = self._final = OtherProtocol(str(e))
            self.state = State.FAILED
        return event

    def next_request(self) -> None:
        """The request is answered, and the connection goes on; memory that was received into is free again."""
        if self._is_again and self.state is State.DONE:
            self.state, self._is_again = State.IDLE, False  # nothing else has changed
            return
        self._go(Read.NEXT)
        self._begin()
        if self._at < self._end or self._later:
            self._keep()

    def limit_body(self, most: int) -> None:
        """More data than that in chunks is refused, before it comes."""
        self._most = most

    @property
    def begun(self) -> bool:
        """A part of a head has come."""
        return self.state is State.HEAD

    @property
    def exact(self) -> bool:
        """All of the body's data is one run: nothing beyond it is read by reading ``data_left`` bytes."""
        return self.state is State.LENGTH

    @property
    def ended(self) -> bool:
        """All of the request has come."""
        return self.state in (State.COMPLETE, State.DONE, State.LAST)

    @property
    def trailers(self) -> dict[str, str]:
        """What came behind a chunked body until now; all of it once the request has ended."""
        said = self._trailers
        return {name: ", ".join(values) for name, values in said.items()} if said else {}

    # --- a reader for each state: an event, or None when another state is next ---------------------

    def _read_idle(self, most: int) -> Event | None:
        if not self._blank and self._at < self._end and self._data[self._at] in _FIRST_OF_METHODS:
            self.state = _BEGUN
            return self._read_head(most)
        while self._has_bytes():
            data, at, end = self._data, self._at, self._end
            while at < end and data[at] == CRLF[self._blank & 1]:
                at += 1
                self._blank += 1
            self._at = at
            if self._blank > self._http.max_header:
                raise HeadersTooLarge("more empty lines than belong before a request: send none")
            if at < end:
                if self._blank & 1:
                    raise heads.bad_octet(CRLF[0])
                self._go(Read.FIRST_BYTE)
                return None
        return Pause.NEED_DATA

    def _read_head(self, _most: int) -> Event | None:
        data, at, limit = self._data, self._at, self._http.max_header
        if not self._partial:
            stop = data.find(HEAD_END, at, min(self._end, at + limit))
            if stop >= 0:
                self._at = stop + len(HEAD_END)
                return self._take_head(bytes(data[at:stop]))
        while self._has_bytes():
            partial, before = self._partial, len(self._partial)
            cut = min(self._end, self._at + limit - before)
            partial += self._data[self._at : cut]
            stop = partial.find(HEAD_END, max(0, before - len(HEAD_END) + 1))
            if stop >= 0:
                self._at += stop + len(HEAD_END) - before
                raw = bytes(partial[:stop])
                self._partial = bytearray()
                return self._take_head(raw)
            self._at = cut
            self._check_beginning(before)
        return Pause.NEED_DATA

    def _check_beginning(self, before: int) -> None:
        """Refuse at once what cannot become a head any more: who sent it may wait for an answer."""
        partial = self._partial
        if before < MAGIC:
            _check_protocol(partial)
        if (bad := heads.first_bad_octet(partial, self._scanned, len(partial))) >= 0:
            raise heads.bad_octet(partial[bad])
        self._scanned = len(partial) - partial.endswith(b"\r")
        if len(partial) >= self._http.max_header:
            if CRLF not in partial:
                raise heads.target_too_long(self._http.max_header_line)
            most = readable(self._http.max_header)
            raise HeadersTooLarge(f"the request's head is larger than {most} (http.max_header): send less")

    def _take_head(self, raw: bytes) -> Head:
        if raw[0] not in _FIRST_OF_METHODS:
            _check_protocol(raw)
        head = self._head = Head()
        self._alike = heads.read(raw, self._http, head, self._alike)
        if head.chunked:
            self._go(Read.HEAD_WITH_CHUNKS)
        elif head.length:
            self.data_left = head.length
            self._go(Read.HEAD_WITH_LENGTH)
        else:
            self.state = _ALONE
        return head

    def _read_data(self, most: int) -> Event | None:
        if not self._has_bytes():
            return Pause.NEED_DATA
        at = self._at
        self._at += min(self.data_left, self._end - at, most)
        event = memoryview(self._data)[at : self._at]
        self.took(len(event))
        return event

    def _read_size(self, _most: int) -> Event | None:
        line = self._line(self._http.max_chunk_line)
        if line is None:
            return self._need_line(self._http.max_chunk_line, "a line is", "http.max_chunk_line")
        digits, semicolon, extension = line.partition(b";")
        if semicolon:
            digits = digits.rstrip(b" \t")
        if not digits or digits.translate(None, _HEX):
            raise Refused("malformed chunked body: a chunk's size is not a hexadecimal number")
        if len(digits) > _MAX_HEX:
            raise Refused(f"malformed chunked body: a chunk's size has more than {_MAX_HEX} digits")
        if extension.translate(None, TEXT):
            raise Refused("malformed chunked body: a chunk's extension has a control character in it")
        size = int(digits, 16)
        self._excess = max(0, self._excess + len(line) - 16 - 2 * size)
        if self._excess > MAX_EXCESS:
            raise Refused("chunked body with too much in chunk extensions: send it without them")
        self._announced += size
        if self._announced > self._most:
            raise TooLarge(f"the body is larger than {counted(self._most, 'byte')}: send a smaller one")
        self.data_left = size
        self._go(Read.SIZE if size else Read.LAST_SIZE)
        return None

    def _read_data_end(self, _most: int) -> Event | None:
        while self._has_bytes():
            octet = self._data[self._at]
            if octet != CRLF[len(self._partial)]:
                raise Refused("malformed chunked body: a chunk is longer than its size says")
            self._at += 1
            if self._partial:
                self._partial.clear()
                self._go(Read.LINE_END)
                return None
            self._partial.append(octet)
        return Pause.NEED_DATA

    def _read_trailer(self, _most: int) -> Event | None:
        room = self._trailer_left + len(CRLF)
        line = self._line(room)
        if line is None:
            return self._need_line(room, "its trailers are", "http.max_trailer")
        if not line:
            self._go(Read.LINE_END)
            return None
        self._trailer_left -= len(line) + len(CRLF)
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not fields.is_token(name) or line.translate(None, TEXT):
            raise Refused("malformed chunked body: a trailer is not of the form `Name: value`")
        name = name.lower()
        if name not in _TOO_LATE:
            self._trailers.setdefault(name, []).append(value.strip(" \t"))
        return None

    def _read_end(self, _most: int) -> Event | None:
        goes_on = self._head is not None and self._head.goes_on
        self.state = _ENDED if goes_on else _ENDED_LAST
        return End(self.trailers) if self._trailers else _END

    def _read_nothing(self, _most: int) -> Event | None:
        return self._final or Pause.DONE

    # --- what they share ----------------------------------------------------------------------------

    def _go(self, read: Read) -> None:
        self.state = TRANSITIONS[self.state][read]

    def _has_bytes(self) -> bool:
        """Whether there is one, at ``_at``."""
        if self._at < self._end:
            return True
        if self._later:
            (self._data, self._end), self._at = self._later.popleft(), 0
            return True
        self._data, self._at, self._end, self._later = b"", 0, 0, None
        return False

    def _keep(self) -> None:
        """Copy what was not looked at, where somebody may write over it."""
        if self._has_bytes() and isinstance(self._data, bytearray):
            self._data = bytes(self._data[self._at : self._end])
            self._at, self._end = 0, len(self._data)

    def _line(self, most: int) -> bytes | None:
        """The next line, of at most ``most`` bytes, without its end. None: it is not all there, or too long."""
        while self._has_bytes() and len(self._partial) < most:
            data, at = self._data, self._at
            stop = min(self._end, at + most - len(self._partial))
            newline = data.find(b"\n", at, stop)
            self._at = stop if newline < 0 else newline + 1
            self._partial += data[at : self._at]
            if newline >= 0:
                line = bytes(self._partial)
                self._partial.clear()
                if not line.endswith(CRLF):
                    raise Refused("malformed chunked body: a line does not end in CR LF")
                return line[:-2]
        return None

    def _need_line(self, most: int, what: str, setting: str) -> Event:
        if len(self._partial) >= most:
            raise Refused(f"malformed chunked body: {what} longer than {setting} allows: send less")
        return Pause.NEED_DATA


def _check_protocol(beginning: bytes | bytearray) -> None:
    """Raises _SpeaksOther, with the name, when these first bytes cannot begin a request."""
    if beginning[0] in _FIRST_OF_METHODS or beginning.startswith(_UPLOADS):
        return
    for magic, name in _OTHERS.items():
        if beginning.startswith(magic):
            raise _SpeaksOther(name)
    if beginning[0] not in CRLF and not fields.is_token(chr(beginning[0])):
        raise _SpeaksOther("no HTTP")


_READERS: Mapping[State, Callable[[Parser, int], Event | None]] = {
    State.IDLE: Parser._read_idle,
    State.HEAD: Parser._read_head,
    State.LENGTH: Parser._read_data,
    State.SIZE: Parser._read_size,
    State.DATA: Parser._read_data,
    State.DATA_END: Parser._read_data_end,
    State.TRAILER: Parser._read_trailer,
    State.COMPLETE: Parser._read_end,
    State.DONE: Parser._read_nothing,
    State.LAST: Parser._read_nothing,
    State.FAILED: Parser._read_nothing,
}
