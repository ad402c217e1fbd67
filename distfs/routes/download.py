"""Files out: whole, in ranges, or not at all when the client has them already."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from contextlib import closing
from hashlib import sha256
from typing import NamedTuple

from werkzeug.wrappers import Response

from distfs.access.authorize import Visibility
from distfs.errors import Refused, TooMuch
from distfs.formats.compression import MAX_WINDOW, library
from distfs.headers import accept, dates, disposition, lengths, safety
from distfs.headers.composed import Base
from distfs.model import File
from distfs.quantity import counted
from distfs.routes import links
from distfs.routes.body_out import FileBody, FramesBody
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
    file = the_file(services, request, uuid, services.answer_deadline(request.hang_up))
    request.safety = safety.PUBLIC if file.visibility == _PUBLIC else safety.STORED
    said = _said_of(file, services.door.guarded)
    link = request.actor.link
    if file.stored is not None and link is None and _takes_frames(request, file):
        return _encoded(services, request, file, said)
    if (link is None or link.is_plain) and not asks_for_less(request.environ, link is not None):
        get = request.method == "GET"
        body = _bytes(services, request, file, said, said.whole, None) if get else ()
        request.safety = safety.SAID
        return Answer(200, {}, body, said.all if link is None else said.by_link)
    return _as_asked(services, request, file, said)


def _as_asked(services: Services, request: Request, file: File, said: _Said) -> Answer | Response:
    """By its conditions, in its ranges, and by what its link allows."""
    link = request.actor.link
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
    body: Iterable[bytes | memoryview] = ()
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
    if file.stored is not None:  # it may come in frames
        headers["Vary"] = "Accept-Encoding"
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
    return FileBody(services, request, file, spans, parts, deadline)


def _takes_frames(request: Request, file: File) -> bool:
    """Whether the blocks of a file may leave as they are stored, all of them, each a frame of zstd. A range is of the
    file's own bytes, and so is what a client says it has room for."""
    environ = request.environ
    said: str = environ.get("HTTP_ACCEPT_ENCODING", "")
    return (
        bool(said)
        and not environ.get("QUERY_STRING")
        and not environ.keys() & {"HTTP_RANGE", "HTTP_WANT_MAX_SIZE"}
        and accept.likes_coding(said, "zstd")
        and file.block_size <= MAX_WINDOW
        and library() is not None
    )


def _encoded(services: Services, request: Request, file: File, said: _Said) -> Answer | Response:
    """Its frames, which are another representation, with a tag of its own. They are checked as ever: each is unpacked
    before it leaves. How many bytes they have is known before only of those of one block."""
    tag = f"{said.tag}-zstd"
    headers = said.headers | {"ETag": f'"{tag}"'}
    if has_conditions(request.environ):
        status = precondition(request.headers, tag, file.created_at)
        if status is not None:
            return Response(status=status, headers=headers)
    headers |= said.body | {"Content-Encoding": "zstd"}
    del headers["Content-Length"], headers["Accept-Ranges"]
    if request.method != "GET":
        return Answer(200, headers, ())
    body = FramesBody(services, request, file, services.transfer_deadline(file.size, request.hang_up))
    if file.size > file.block_size:
        return Answer(200, headers, body)
    with closing(body):
        frame = b"".join(map(bytes, body))
    headers["Content-Length"] = str(len(frame))
    headers["Content-Digest"] = f"sha-256=:{b64encode(sha256(frame).digest()).decode()}:"
    return Answer(200, headers, [frame])


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
