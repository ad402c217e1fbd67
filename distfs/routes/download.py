"""Files out: whole, in ranges, or not at all when the client has them already."""

from __future__ import annotations

from collections.abc import Iterator

from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import http_date, is_resource_modified, parse_etags, parse_range_header
from werkzeug.wrappers import Response

from distfs.errors import Refused, TooMuch
from distfs.model import File
from distfs.routes.messages import Request, content_disposition, etag, parse_uuid, repr_digest
from distfs.services import Services

SIZE_HEADER = "Want-Max-Size"


def get_file(services: Services, request: Request, uuid: str | None = None) -> Response:
    """The bytes of a file, with everything HTTP can say about them.

    The first block is fetched and checked before the answer begins, so that a file that cannot be read is
    a clean 502 or 503. If a later one cannot, the connection is cut.
    """
    uuid = request.args.get("uuid", "") if uuid is None else uuid
    if not uuid:
        raise Refused("which file? GET /download/UUID or /download?uuid=UUID")
    file = services.meta.file(parse_uuid(uuid), services.answer_deadline())
    headers = {
        "ETag": f'"{etag(file)}"',
        "Last-Modified": http_date(file.created_at),
        "Repr-Digest": repr_digest(file),
        "Accept-Ranges": "bytes",
    }
    if (status := _precondition(request, file)) is not None:
        return Response(status=status, headers=headers)
    start, stop = _wanted(request, file)
    _check_size(request, stop - start)
    headers |= {
        "Content-Length": str(stop - start),
        "Content-Disposition": content_disposition(file),
        "X-Content-Type-Options": "nosniff",
    }
    if (start, stop) != (0, file.size):
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    status = 206 if "Content-Range" in headers else 200
    body: Iterator[bytes | memoryview] | tuple[()] = ()
    if request.method == "GET":
        body = _blocks(services, request, file, start, stop)
    response = Response(
        status=status, headers=headers, content_type=file.content_type, direct_passthrough=True
    )
    response.response = body  # type: ignore[assignment]  # views, to a server that writes them
    return response


def _blocks(
    services: Services, request: Request, file: File, start: int, stop: int
) -> Iterator[bytes | memoryview]:
    """The bytes, the first of them already here. Raises what Downloader.read raises."""
    deadline = services.transfer_deadline(stop - start)
    blocks = services.downloader.read(file, start, stop, deadline)
    blocks = services.bandwidth.outgoing(blocks, request.caller, deadline)
    first = next(blocks, None)
    return _Blocks(first, blocks, bool(request.environ.get("distfs.writes_views")))


class _Blocks:
    """A response body: views for our own server, bytes for others, which may keep them for a while."""

    def __init__(self, first: memoryview | None, rest: Iterator[memoryview], as_views: bool) -> None:
        self._first, self._rest, self._as_views = first, rest, as_views

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return self

    def __next__(self) -> bytes | memoryview:
        view, self._first = self._first, None
        if view is None:
            view = next(self._rest)
        return view if self._as_views else bytes(view)

    def close(self) -> None:
        """Whoever hangs up early gets the nodes' connections released."""
        if close := getattr(self._rest, "close", None):
            close()


def _check_size(request: Request, size: int) -> None:
    """A client that has room for so many bytes only. Raises TooMuch, before any of them is read."""
    text = request.headers.get(SIZE_HEADER) or request.args.get("max_size")
    if not text:
        return
    if not (text.isascii() and text.isdecimal()):
        raise Refused(f"{SIZE_HEADER} (or ?max_size=) is not a whole number of bytes")
    if size > int(text[:20]):
        raise TooMuch(f"{size} bytes would be sent, and at most {text[:20]} are wanted")


def _precondition(request: Request, file: File) -> int | None:
    """304 or 412 where If-None-Match, If-Modified-Since or If-Match decide the answer (RFC 9110, 13)."""
    environ = request.environ
    if is_resource_modified(environ, etag=etag(file), last_modified=file.created_at):
        return None
    return 412 if parse_etags(environ.get("HTTP_IF_MATCH")) else 304


def _wanted(request: Request, file: File) -> tuple[int, int]:
    """The range to send. Several ranges, and what is no range at all, mean the whole (RFC 9110, 14.2)."""
    whole = (0, file.size)
    header = request.headers.get("Range")
    if not header or request.method != "GET":
        return whole
    if "If-Range" in request.headers and is_resource_modified(
        request.environ, etag=etag(file), last_modified=file.created_at, ignore_if_range=False
    ):
        return whole
    parsed = parse_range_header(header)
    if parsed is None or parsed.units != "bytes" or len(parsed.ranges) != 1:
        return whole
    start, stop = parsed.ranges[0]
    if start < 0:  # a suffix
        start = max(0, start + file.size)
    if start >= file.size:
        raise RequestedRangeNotSatisfiable(file.size)
    return start, file.size if stop is None else min(stop, file.size)
