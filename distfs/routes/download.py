"""Files out: whole, in ranges, or not at all when the client has them already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from werkzeug.wrappers import Response

from distfs.access.authorize import Visibility
from distfs.deadline import Deadline
from distfs.errors import Refused, TooMuch
from distfs.headers import dates, disposition, lengths, safety
from distfs.headers.composed import Base
from distfs.model import File
from distfs.quantity import counted
from distfs.routes import links
from distfs.routes.conditions import asks_for_less, has_conditions, precondition, same_as_before
from distfs.routes.file_facts import etag, repr_digest, served_type
from distfs.routes.messages import Answer, Request
from distfs.routes.ranges import ByteRanges, Span, content_range, wanted
from distfs.routes.seen import the_file
from distfs.services import Services
from distfs.transfer.download import is_small

SIZE_HEADER = "Want-Max-Size"
_PUBLIC, _PRIVATE = Visibility.PUBLIC.value, Visibility.PRIVATE.value


def get_file(services: Services, request: Request, uuid: str | None = None) -> Answer | Response:
    """The bytes of a file, with everything HTTP can say about them.

    The first block is fetched and checked before the answer begins, so that a file that cannot be read is
    a clean 502 or 503. If a later one cannot, the connection is cut.
    """
    uuid = request.argument("uuid") if uuid is None else uuid
    if not uuid:
        raise Refused("which file? GET /download/UUID or /download?uuid=UUID")
    body: Iterable[bytes | memoryview]
    file = the_file(services, request, uuid, services.answer_deadline(request.hang_up))
    request.safety = safety.PUBLIC if file.visibility == _PUBLIC else safety.STORED
    said = _said_of(file, services.door.guarded)
    link = request.actor.link
    if (link is None or link.is_plain) and not asks_for_less(request.environ, link is not None):
        body = _bytes(services, request, file, said, said.whole, None) if request.method == "GET" else ()
        request.safety = safety.SAID
        return Answer(200, {}, body, said.all if link is None else said.by_link)
    headers, tag = said.headers.copy(), said.tag
    if link is not None and (part := links.tag_of_part(request, file)):
        tag, headers["ETag"] = part, f'"{part}"'
        del headers["Repr-Digest"]
    if (
        has_conditions(request.environ)
        and (status := precondition(request.headers, tag, file.created_at)) is not None
    ):
        return Response(status=status, headers=headers)
    asked = _asked(request, file, tag)
    spans = asked or said.whole
    parts = ByteRanges(spans, file.size, said.body["Content-Type"]) if len(spans) > 1 else None
    headers |= said.body
    if link is not None:
        headers |= links.bound(services, request, link, spans)
        if link.name:
            headers["Content-Disposition"] = disposition.for_download(link.name, shown=said.shown)
    if asked:
        headers["Content-Length"] = str(parts.length if parts else spans[0].stop - spans[0].start)
        if parts:
            headers["Content-Type"] = parts.content_type
        else:
            headers["Content-Range"] = content_range(spans[0], file.size)
    _check_size(request, headers["Content-Length"])
    body = ()
    if request.method == "GET":
        about = services, request, file, said, spans, parts
        if link is None or link.uses is None:
            body = _bytes(*about)
        else:
            body = links.counted(services, request, lambda: _bytes(*about))
    return Answer(206 if asked else 200, headers, body)


class _Said(NamedTuple):
    """What answers say of a file, unless the request has a say in it; the same for all who ask."""

    tag: str
    headers: dict[str, str]  # of any answer
    body: dict[str, str]  # of one with all of its bytes, too
    all: Base  # both, and what they say to browsers
    by_link: Base  # the same to who came by one that has no conditions
    shown: bool  # a browser may show it at once
    whole: list[Span]
    at_once: bool  # it may be read whole


def _said_of(file: File, guarded: bool) -> _Said:
    known: _Said | None = file.kept.get(guarded)
    if known is not None:
        return known
    kind, tag = served_type(file), etag(file)
    headers = {
        "ETag": f'"{tag}"',
        "Last-Modified": dates.write(file.created_at),
        "Repr-Digest": repr_digest(file),
        "Accept-Ranges": "bytes",
    }
    if guarded:  # or a cache would give for hours what was made private, or a token opened
        headers["Cache-Control"] = "private, no-cache" if file.visibility == _PRIVATE else "no-cache"
    body = {
        "Content-Length": str(file.size),
        "Content-Disposition": disposition.for_download(file.name, shown=kind.shown),
        "Content-Type": str(kind),
    }
    to_browsers = safety.PUBLIC if file.visibility == _PUBLIC else safety.STORED
    all_ = {**headers, **body, **to_browsers}
    bases = Base(all_), Base(all_ | links.UNCOUNTED)
    said = _Said(tag, headers, body, *bases, kind.shown, [Span(0, file.size)], is_small(file))
    file.kept[guarded] = said
    return said


def _bytes(
    services: Services,
    request: Request,
    file: File,
    said: _Said,
    spans: list[Span],
    parts: ByteRanges | None,
) -> Iterable[bytes | memoryview]:
    """The bytes, the first of them already here, or all. Raises what Downloader.read raises."""
    if said.at_once and spans == said.whole and not services.bandwidth.capped("out"):
        return [services.downloader.whole(file, services.transfer_deadline(file.size, request.hang_up))]
    deadline = services.transfer_deadline(sum(stop - start for start, stop in spans), request.hang_up)
    return _Body(services, request, file, spans, parts, deadline)


class _Body:
    """The bytes of an answer, each block checked before it leaves. The first is read when it is made.

    Views for our own server, bytes for others, which may keep them for a while. A client that reads slowly holds no
    block and no connection to a node: our server calls ``rewind``, and what was not sent is read again. From then on
    so much is asked of a node at a time as was taken before, beginning with one block, or nodes would fill their
    sockets for nothing.
    """

    def __init__(
        self,
        services: Services,
        request: Request,
        file: File,
        spans: list[Span],
        parts: ByteRanges | None,
        deadline: Deadline,
    ) -> None:
        """Raises TooMany, and what Downloader.read raises."""
        self._services, self._file, self._spans, self._parts = services, file, spans, parts
        self._deadline = deadline
        self._share = services.bandwidth.transfer(request.caller, "out")
        self._as_views = bool(request.environ.get("distfs.writes_views"))
        self._given = self._last = 0  # bytes in all, and by the last view
        self._counted = ExitStack()
        self._stretch = 0  # blocks to ask for at a time; 0: all there are
        self._views: Iterator[memoryview] | None = None
        self._first: bytes | memoryview | None = None
        try:
            self._counted.enter_context(services.admission.callers.download(request.caller))
            self._first = next(self, None)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return self

    def __next__(self) -> bytes | memoryview:
        view, self._first = self._first, None
        if view is not None:
            return view
        if self._views is None:
            self._views = self._open(self._given)
        view = next(self._views)
        self._last = len(view)
        self._given += self._last
        return view if self._as_views else bytes(view)

    def rewind(self, count: int) -> None:
        """The last ``count`` bytes were not sent: let go of everything, and give them again when asked."""
        self._let_go()
        self._given -= count
        self._share.give_back(min(count, self._last))
        self._stretch = 1

    def close(self) -> None:
        """Whoever hangs up early gets the nodes' connections released."""
        self._let_go()
        self._share.close()
        self._counted.close()

    def _let_go(self) -> None:
        views, self._views = self._views, None
        if close := getattr(views, "close", None):
            close()

    def _open(self, at: int) -> Iterator[memoryview]:
        """The bytes from ``at`` on."""
        if self._parts:
            views = self._parts.body(self._read, at)
        else:
            start, stop = self._spans[0]
            views = self._read(Span(start + at, stop))
        return self._services.bandwidth.outgoing(views, self._share, self._deadline)

    def _read(self, span: Span) -> Iterator[memoryview]:
        start, size = span.start, self._file.block_size
        while start < span.stop:
            stop = (start // size + self._stretch) * size if self._stretch else span.stop
            stop = min(stop, span.stop)
            yield from self._services.downloader.read(self._file, start, stop, self._deadline)
            start, self._stretch = stop, 2 * self._stretch


def _check_size(request: Request, length: str) -> None:
    """A client that has room for so many bytes only. Raises TooMuch, before any of them is read."""
    environ = request.environ
    text = environ.get("HTTP_WANT_MAX_SIZE") or (environ.get("QUERY_STRING") and request.argument("max_size"))
    if not text:
        return
    size = int(length)
    most = lengths.number(text)
    if most is None:
        raise Refused(f"{SIZE_HEADER} (or ?max_size=) is not a whole number of bytes")
    if size > most:
        raise TooMuch(
            f"{counted(size, 'byte')} would be sent, and at most {counted(most, 'byte')} are wanted"
        )


def _asked(request: Request, file: File, tag: str) -> list[Span]:
    """The ranges to send; empty: the whole file."""
    header = request.environ.get("HTTP_RANGE")
    if not header or request.method != "GET":
        return []
    condition = request.headers.get("If-Range")
    if condition is not None and not same_as_before(condition.strip(), tag, file.created_at):
        return []
    return wanted(header, file.size)
