"""What requests and answers have in common: the body as a Source, and a file's facts as JSON and headers."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import UUID

from werkzeug.urls import iri_to_uri
from werkzeug.wrappers import Request as BaseRequest

from distfs.body.ingest import source_of
from distfs.body.source import Source
from distfs.config.callers import Caller
from distfs.deadline import Scope
from distfs.errors import Cancelled, DistfsError, Refused
from distfs.headers import host, media_type
from distfs.headers.media_type import MediaType
from distfs.model import Address, File
from distfs.problem import JSON, asks_for

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


class Body:
    """A request's body as a Source that counts its bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.received = 0

    def readinto(self, view: memoryview) -> int:
        count = self._source.readinto(view)
        self.received += count
        return count


class Request(BaseRequest):
    """A request; its ``body`` is read as a Source, and by nothing else."""

    @cached_property
    def body(self) -> Body:
        return Body(source_of(self.environ))

    def argument(self, name: str) -> str | None:
        """A parameter of the URL."""
        return self.args.get(name) if self.environ.get("QUERY_STRING") else None

    @property
    def caller(self) -> Caller:
        return Caller(self.environ.get("REMOTE_ADDR", ""), self.headers.get)

    def check_host(self) -> None:
        """Raises Refused for a Host that is none; our own host has done so already, others let them pass."""
        given = self.environ.get("HTTP_HOST")
        needed = self.environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
        if (given is None and needed) or not host.is_host(given or ""):
            raise Refused(f"malformed request: its Host is missing, there twice, or no host: {host.REMEDY}")

    @property
    def url(self) -> str:
        """Of this service, as the client calls it; it ends with a slash."""
        server = Address(self.environ["SERVER_NAME"], int(self.environ.get("SERVER_PORT") or 80))
        called = host.in_url(self.environ.get("HTTP_HOST") or str(server), self.scheme)
        return f"{self.scheme}://{called}{self.root_path}/"

    @property
    def hang_up(self) -> Scope | None:
        """Cancelled when the client is gone or the service stops, by a host that looks for it: ours. Its reason is
        the error that the request comes to."""
        found: Scope | None = self.environ.get("distfs.hang_up")
        return found

    @property
    def given_up(self) -> DistfsError | None:
        """Why nobody goes on with the request: ClientGone, Stopping; None: somebody does."""
        reason = self.hang_up and self.hang_up.reason
        return reason if isinstance(reason, DistfsError) else None

    def because_given_up(self, error: Exception) -> DistfsError | None:
        """What ``error`` comes to when it only says that the request was given up."""
        return self.given_up if isinstance(error, Cancelled) else None

    @property
    def received(self) -> int:
        """Bytes of the body that were read."""
        body = self.__dict__.get("body")
        return body.received if isinstance(body, Body) else 0

    @property
    def wants_json(self) -> bool:
        return asks_for(self.headers.get("Accept", ""), JSON)


class Answer:
    """An answer that is complete: its headers say all there is to say. werkzeug's own looks at each of them anew."""

    def __init__(self, status: int, headers: dict[str, str], body: Iterable[bytes | memoryview]) -> None:
        self.status_code, self.headers, self.body = status, headers, body

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(_STATUS[self.status_code], list(self.headers.items()))
        if environ["REQUEST_METHOD"] == "HEAD":
            return ()
        return self.body  # type: ignore[return-value]  # views, to a server that writes them


_STATUS = {each.value: f"{each.value} {each.phrase}" for each in HTTPStatus}


def text(body: str, status: int = 200) -> Answer:
    return _encoded(body, status, "text/plain; charset=utf-8")


def as_json(value: object, status: int = 200) -> Answer:
    return _encoded(json.dumps(value, indent=2) + "\n", status, JSON)


def _encoded(body: str, status: int, content_type: str) -> Answer:
    data = body.encode()
    return Answer(status, {"Content-Type": content_type, "Content-Length": str(len(data))}, [data])


def parse_uuid(given: str) -> UUID:
    """A file's id as users write it. Raises Refused."""
    if not _UUID.fullmatch(given):
        raise Refused(f"{given[:60]!r} is not a file's id: an upload answers with one like {UUID(int=0)}")
    return UUID(given)


# --- a file -----------------------------------------------------------------------------------------


def download_url(request: Request, file: File) -> str:
    """Where the file is, as a path on this host."""
    return f"{request.root_path}/download/{file.id}"


def facts(request: Request, file: File) -> dict[str, object]:
    """What everyone may know of a file."""
    return {
        "uuid": str(file.id),
        "name": file.name,
        "size": file.size,
        "sha256": file.sha256.hex(),
        "content_type": str(media_type.read(file.content_type)),
        "policy": str(file.policy),
        "created_at": file.created_at.isoformat(),
        "download": download_url(request, file),
    }


def created(request: Request, files: Sequence[File]) -> Answer:
    """201: a line a file, or JSON: an object for one file, a list for several (RFC 9530 digest for one)."""
    if request.wants_json:
        entries = [facts(request, file) for file in files]
        response = as_json(entries[0] if len(entries) == 1 else entries, 201)
    else:
        response = text("".join(f"{file.id}\n" for file in files), 201)
    response.headers["Location"] = iri_to_uri(download_url(request, files[0]))
    if len(files) == 1:
        response.headers["Repr-Digest"] = repr_digest(files[0])
    return response


def etag(file: File) -> str:
    return file.sha256.hex()


def repr_digest(file: File) -> str:
    """RFC 9530: the digest of the whole file, whatever range is asked for."""
    return f"sha-256=:{b64encode(file.sha256).decode()}:"


def served_type(file: File) -> MediaType:
    """As it was read anew: another version may have stored it as it came."""
    return _served_type(file.content_type)


@lru_cache(maxsize=256)
def _served_type(text: str) -> MediaType:
    return media_type.read(text).plain()
