"""multipart/form-data taken apart while it streams (RFC 2046, RFC 7578), with no copy of a file's bytes.

``MultipartReader.readinto`` lets the source write straight into the caller's view and looks for the
delimiter there. Only what lies behind a delimiter, or may be the start of one at the end of the view,
is set aside (``_ahead``) and served by the next call. A small body is read at once, and served from there.

A delimiter is CRLF ``--boundary`` and then either ``--`` (the last one) or blanks and CRLF. The boundary
followed by anything else is data, as werkzeug and Go have it: a file may well contain such a line.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

from distfs.body.source import Source
from distfs.errors import BodyCutShort, DistfsError, Refused, TooLarge
from distfs.headers import fields, form_part, media_type
from distfs.headers.form_part import PartHead
from distfs.quantity import size as readable

#: Blanks allowed between a boundary and its CRLF ("transport padding"); nobody sends any.
MAX_PADDING = 64
#: How much is read ahead to see a part's headers.
SCRATCH = 64 * 1024

#: A line that begins with the boundary and is no delimiter is data to us (to RFC 2046 it is an error), but looking
#: at each takes its time. Boundaries are drawn at random: no file has many, unless somebody means harm.
MAX_LOOKALIKES = 10_000
#: A boundary that makes memmem step by fewer bytes is looked for by `re`.
MIN_STEP = 8
#: From so many bytes on, data is received where it is wanted. More than any delimiter, so that each step brings some.
IN_PLACE = 1024

_AFTER_BOUNDARY = re.compile(
    rb"(?P<last>--)|[ \t]{0,%d}\r\n|(?P<endless>[ \t]{%d})" % (MAX_PADDING, MAX_PADDING + 1)
)
_AFTER_BOUNDARY_SO_FAR = re.compile(rb"-?|[ \t]{0,%d}\r?" % MAX_PADDING)
#: Of an unquoted boundary: a token, and what RFC 2046 allows and clients forget to quote.
_UNAMBIGUOUS = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z/:=?-]+")
_AFTER_LAST_BOUNDARY = re.compile(rb"[ \t]*(?:\r\n|\Z)")

# bytes.find cannot search a memoryview without a copy, and `re` does 0.9-3 GiB/s on one. The C library's
# memmem does 10-40 GiB/s on it and lets other threads run meanwhile; at worst (a file made of the
# boundary's own characters) 0.2 GiB/s, as bytes.find.
_memmem = ctypes.CDLL(None).memmem
_memmem.restype = ctypes.c_void_p
_memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]


def find(view: memoryview, needle: bytes, start: int = 0) -> int:
    """Where ``needle`` begins in a writable, contiguous view of bytes, from ``start`` on; -1: nowhere."""
    size = len(view) - start
    if size < len(needle) or size <= 0:
        return -1
    address = ctypes.addressof(ctypes.c_char.from_buffer(view, start))
    found: int | None = _memmem(address, size, needle, len(needle))
    return -1 if found is None else found - address + start


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What a form may ask of us. Sizes in bytes."""

    max_file_size: int
    max_form_overhead: int = 1 << 20  # all that is not file bytes: headers, fields, preamble, epilogue
    max_parts: int = 1000
    max_header_size: int = 16 * 1024  # a part's headers
    max_field_size: int = 64 * 1024  # the value of a form field


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart/form-data Content-Type. Raises Refused: it is not one, or a bad one."""
    if not media_type.announces_form(content_type):
        raise Refused(
            "the body is not a form (multipart/form-data): send one with curl -F file=@NAME URL/upload"
        )
    given = [
        value.strip(" \t")
        for name, _, value in (part.partition("=") for part in fields.split(content_type, ";")[1:])
        if name.strip(" \t").lower() == "boundary"
    ]
    if not given or given[0] in ("", '""'):
        raise Refused("the form's Content-Type has no boundary: let the client set that header itself")
    if len(given) > 1:
        raise Refused("the form's Content-Type has two boundaries: let the client set that header itself")
    boundary = given[0] if _UNAMBIGUOUS.fullmatch(given[0]) else fields.unquoted(given[0])
    if boundary is None and not given[0].startswith('"'):
        raise Refused(
            'the boundary in the form\'s Content-Type has signs that need quotes: boundary="…" (RFC 2046)'
        )
    if not re.fullmatch(r"[ -~]{0,69}[!-~]", boundary or ""):
        raise Refused("the form's boundary is not 1 to 70 printable ASCII characters (RFC 2046)")
    return (boundary or "").encode("ascii")


class MultipartReader:
    """Walks through a form's parts: ``next_part``, then ``readinto`` until it gives less than asked."""

    def __init__(self, source: Source, boundary: bytes, limits: FormLimits, size: int | None = None) -> None:
        """``size``: of the body; None: nobody knows."""
        self._source = source
        self._small = size if size is not None and size <= SCRATCH else 0
        self._limits = limits
        self._delimiter = b"\r\n--" + boundary
        self._lookalikes = 0
        # memmem steps by where a needle's last two bytes are before: on a boundary such as ------ byte by byte.
        before = self._delimiter.rfind(self._delimiter[-2:], 0, -1)
        steps = len(self._delimiter) - 2 - before
        self._pattern = re.compile(re.escape(self._delimiter)) if steps < MIN_STEP else None
        # The CRLF a body may begin without: now the first delimiter is like the others and the preamble
        # is a part like the others, only that nobody wants it.
        self._ahead = bytearray(b"\r\n")
        self._at = 0  # _ahead[_at:] is yet to be parsed
        self._received = 0
        self._ended = False  # the source has no more
        self._in_preamble = True
        self._part_ended = False
        self._closed = False  # the closing delimiter was seen
        self._parts = 0
        self._overhead = 0

    def next_part(self) -> PartHead | None:
        """The next part's headers, or None after the last: then the body was read to its very end.

        The part before must have been read to its end. Raises Refused, TooLarge, BodyCutShort.
        """
        if self._in_preamble:
            self._discard_preamble()
        elif not self._part_ended and self.readinto(memoryview(bytearray(1))):
            raise DistfsError("the next part was asked for before this one was read to its end")
        if self._closed:
            self._discard_epilogue()
            return None
        self._parts += 1
        if self._parts > self._limits.max_parts:
            raise TooLarge(f"the form has more than {self._limits.max_parts} parts: send several forms")
        block = self._header_block()
        self._charge(len(block))
        self._part_ended = False
        return form_part.read(block)

    def readinto(self, view: memoryview) -> int:
        """The current part's data, as a Source gives it."""
        filled = 0
        while filled < len(view) and not self._part_ended:
            left = len(view) - filled
            ahead = len(self._ahead) - self._at
            direct = left >= IN_PLACE and left > ahead and not self._ended
            step = self._in_place if direct else self._from_ahead
            filled += step(view[filled:])
        return filled

    def is_empty(self) -> bool:
        """Whether the current part, of which nothing was read yet, has no data."""
        self._look(len(self._delimiter) + MAX_PADDING + 2)
        with memoryview(self._ahead)[self._at :] as window:
            data, delimiter = self._scan(window)
        return data == 0 and delimiter is not None

    def read_field(self) -> str:
        """The current part as text. Raises TooLarge beyond ``max_field_size``."""
        limit = self._limits.max_field_size
        buffer = bytearray(limit + 1)
        size = self.readinto(memoryview(buffer))
        if size > limit:
            raise TooLarge(
                f"a form field is longer than {readable(limit)}: send bytes as a file, curl -F file=@NAME"
            )
        self._charge(size)
        return buffer[:size].decode("utf-8", "replace")

    # --- the delimiter -------------------------------------------------------------------------

    def _scan(self, window: memoryview) -> tuple[int, re.Match[bytes] | None]:
        """(bytes certainly data, the end of the delimiter right behind them).

        None with fewer bytes than the window has: what follows them may or may not become a delimiter.
        """
        start, length = 0, len(self._delimiter)
        while (at := self._find(window, start)) >= 0:
            tail = bytes(window[at + length : at + length + MAX_PADDING + 2])
            match = _AFTER_BOUNDARY.match(tail)
            if match and match["endless"]:
                raise Refused(f"the form has a boundary line with more than {MAX_PADDING} blanks")
            if match or _AFTER_BOUNDARY_SO_FAR.fullmatch(tail):
                return at, match
            self._lookalikes += 1
            if self._lookalikes > MAX_LOOKALIKES:
                raise Refused(
                    "a file in the form is full of the form's boundary: send it with another boundary"
                )
            start = at + 1
        tail = bytes(window[max(0, len(window) - length + 1) :])
        at = tail.find(b"\r")
        while at >= 0 and not self._delimiter.startswith(tail[at:]):
            at = tail.find(b"\r", at + 1)
        return len(window) - (len(tail) - at if at >= 0 else 0), None

    def _find(self, window: memoryview, start: int) -> int:
        if self._pattern is None:
            return find(window, self._delimiter, start)
        found = self._pattern.search(window, start)
        return found.start() if found else -1

    def _end_part(self, delimiter: re.Match[bytes]) -> int:
        """The part is over; returns how many bytes to skip. The CRLF behind a boundary stays, as the line
        break before the headers: then a part without any looks like one with some."""
        self._part_ended = True
        self._closed = bool(delimiter["last"])
        return len(self._delimiter) + delimiter.end() - (0 if self._closed else 2)

    def _in_place(self, view: memoryview) -> int:
        """Data where the caller wants it: what was set aside, which is less than the view, then from the source.
        What is not certainly data is set aside."""
        held = len(self._ahead) - self._at
        view[:held] = memoryview(self._ahead)[self._at :]
        size = held + self._receive(view[held:])
        data, delimiter = self._scan(view[:size])
        skip = self._end_part(delimiter) if delimiter else 0
        self._ahead, self._at = bytearray(view[data + skip : size]), 0
        if not data and not delimiter:
            raise self._cut_short()
        return data

    def _from_ahead(self, view: memoryview) -> int:
        """Data that was set aside. 0 when it had to look further to tell, or the part ended."""
        enough = len(view) + len(self._delimiter) + MAX_PADDING + 2
        with memoryview(self._ahead)[self._at : self._at + enough] as window:
            data, delimiter = self._scan(window)
            size = min(data, len(view))
            view[:size] = window[:size]
        self._at += size
        if size == data and delimiter:
            self._at += self._end_part(delimiter)
        elif not size:
            before = len(self._ahead) - self._at
            if self._look(min(enough, SCRATCH)) == before:
                raise self._cut_short()
        return size

    def _receive(self, view: memoryview) -> int:
        size = self._source.readinto(view)
        self._received += size
        self._ended = size < len(view)
        return size

    def _look(self, size: int) -> int:
        """Bring at least ``size`` bytes ahead, unless the body ends before; how many are ahead now."""
        missing = size - (len(self._ahead) - self._at)
        if missing > 0 and not self._ended:
            del self._ahead[: self._at]
            self._at = 0
            old = len(self._ahead)
            self._ahead.extend(bytes(missing))
            with memoryview(self._ahead)[old:] as window:
                size = self._receive(window)
            del self._ahead[old + size :]
        return len(self._ahead) - self._at

    # --- all that is not data --------------------------------------------------------------------

    def _header_block(self) -> bytes:
        """The lines between a boundary and the data, each with its CRLF."""
        limit = self._limits.max_header_size
        end = self._ahead.find(b"\r\n\r\n", self._at)
        if end < 0:
            self._look(max(SCRATCH, limit + 4))
            end = self._ahead.find(b"\r\n\r\n", self._at)
        if end < 0 and len(self._ahead) - self._at < limit + 4:
            raise self._cut_short()
        if not 0 <= end - self._at <= limit:
            raise TooLarge(f"the headers of a part of the form are longer than {readable(limit)}: send fewer")
        block = bytes(self._ahead[self._at : end + 2])
        if self._delimiter in block:
            raise Refused("a part of the form has no blank line between its headers and its data")
        self._at = end + 4
        return block[2:]

    def _discard_preamble(self) -> None:
        if self._small:
            self._look(len(self._ahead) + self._small + 1)  # and so it sees that there is no more
        scratch = memoryview(bytearray(self._small or SCRATCH))
        while size := self.readinto(scratch):
            self._charge(size)
        self._in_preamble = False

    def _discard_epilogue(self) -> None:
        self._look(SCRATCH)
        if not _AFTER_LAST_BOUNDARY.match(self._ahead, self._at):
            raise Refused("the form goes on behind its closing boundary: nothing was stored")
        while size := len(self._ahead) - self._at:
            self._charge(size)
            self._ahead, self._at = bytearray(), 0
            self._look(SCRATCH)

    def _charge(self, size: int) -> None:
        self._overhead += size
        if self._overhead > self._limits.max_form_overhead:
            raise TooLarge(
                f"the form has more than {readable(self._limits.max_form_overhead)} that are not a file's"
                " (http.max_form_overhead): send large values as files"
            )

    def _cut_short(self) -> BodyCutShort:
        if not self._received:
            return BodyCutShort("the form is empty: send a file in it, curl -F file=@NAME URL/upload")
        if self._in_preamble:
            return BodyCutShort(
                "the body has no line with the boundary its Content-Type names: let the client write both,"
                " curl -F file=@NAME URL/upload"
            )
        return BodyCutShort("the form ended before its closing boundary; nothing was stored: send it again")
