"""What requests and answers have in common, whatever they are about: the body as a Source, text and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from werkzeug.datastructures import EnvironHeaders
from werkzeug.wrappers import Request as BaseRequest

from distfs.access.authorize import Action
from distfs.access.door import NOBODY
from distfs.body.ingest import source_of
from distfs.body.source import Source
from distfs.config.callers import Caller
from distfs.config.settings import TokenCaller
from distfs.deadline import Scope
from distfs.errors import Cancelled, DistfsError, Refused, TooLarge
from distfs.headers import host, safety
from distfs.headers.composed import Base, Composed
from distfs.model import Address
from distfs.problem import JSON, asks_for, phrase
from distfs.quantity import size
from distfs.telemetry.metrics import OTHER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Of a body that is no file.
MAX_JSON = 16 << 10
#: Of a page of a list.
_DEFAULT_LIMIT, _MAX_LIMIT = 100, 1000

C = TypeVar("C", bound=bytes | memoryview)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


class CountedBytes(Generic[C]):
    """An answer's bytes on their way out. ``sent`` of them until now; ``ended``: that was all, also of none."""

    def __init__(self, body: Iterable[C]) -> None:
        self._body, self._chunks = body, iter(body)
        rewind: Callable[[int], None] | None = getattr(body, "rewind", None)
        self.rewind = rewind and self._rewind  # as the host asks for it
        self.sent, self.ended = 0, False

    def __iter__(self) -> Iterator[C]:
        return self

    def __next__(self) -> C:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self.ended = True
            raise
        self.sent += len(chunk)
        return chunk

    def _rewind(self, count: int) -> None:
        self.sent -= count
        self._body.rewind(count)  # type: ignore[attr-defined]

    def close(self) -> None:
        """The answer is over, as far as it came."""
        if close := getattr(self._body, "close", None):
            close()


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

    def __init__(self, environ: WSGIEnvironment) -> None:
        """As the one of werkzeug, without a way back from ``environ``: that makes each request a circle, and its
        memory waits for the garbage collector."""
        self.environ = environ
        self.method = environ["REQUEST_METHOD"].upper()
        self.scheme = environ["wsgi.url_scheme"]
        path = environ.get("PATH_INFO") or ""
        self.path = "/" + (path if path.isascii() else _decoded(path)).lstrip("/")
        self.address: str = environ.get("REMOTE_ADDR", "")  # at the other end of the connection
        #: Cancelled when the client is gone or the service stops, by a host that looks for it: ours. Its reason is
        #: the error that the request comes to.
        self.hang_up: Scope | None = environ.get("distfs.hang_up")
        self.actor, self.action = NOBODY, Action.USAGE  # until it is let in
        self.safety = safety.OURS  # what its answer says to browsers
        self.who = ""  # whose token it came with
        self.by_link = False  # it came by one, good or not
        self.changed: list[str] = []  # what it made, changed or deleted
        self.change = ""  # what became of that, in words, where it is not all said
        self.refused = ""  # why it was not done
        self.error_class = ""  # the kind of error it came to
        self.route = OTHER  # as metrics name it

    @cached_property
    def caller(self) -> Caller:
        token, header = self.actor.token, partial(_header, self.environ)
        return (
            Caller(self.address, header) if token is None else TokenCaller(self.address, header, token.rule)
        )

    @cached_property
    def headers(self) -> EnvironHeaders:  # type: ignore[override]
        return EnvironHeaders(self.environ)

    @cached_property
    def query_string(self) -> bytes:  # type: ignore[override]
        query: str = self.environ.get("QUERY_STRING", "")
        return query.encode("latin-1")

    @property
    def root_path(self) -> str:  # type: ignore[override]
        """Where the app is mounted, without a slash at its end."""
        mounted = self.environ.get("SCRIPT_NAME")
        return _decoded(mounted).rstrip("/") if mounted else ""

    @cached_property
    def body(self) -> Body:
        return Body(source_of(self.environ))

    def argument(self, name: str) -> str | None:
        """A parameter of the URL. Raises Refused when it has two values."""
        query: str = self.environ.get("QUERY_STRING", "")
        if "%" not in query and "+" not in query and query.isascii():  # nothing stands for something else
            if name not in query:
                return None
            if "&" not in query and query.startswith(f"{name}="):
                return query[len(name) + 1 :]
        values = set(self.args.getlist(name))
        if len(values) > 1:
            raise Refused(f"the URL has two values of {name}: give one")
        return values.pop() if values else None

    def flag(self, name: str) -> bool:
        """A parameter of the URL that is yes or no. Raises Refused."""
        value = self.argument(name)
        if value not in (None, "0", "1"):
            raise Refused(f"?{name}={value[:40]}: it is 1, or 0")
        return value == "1"

    def check_host(self) -> None:
        """Raises Refused for a Host that is none: other hosts than ours let them pass."""
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
    def has_body(self) -> bool:
        length: str | None = self.environ.get("CONTENT_LENGTH")
        return length not in (None, "", "0") or bool(self.environ.get("HTTP_TRANSFER_ENCODING"))

    def json_object(self) -> dict[str, Any]:
        """The body as JSON, of at most MAX_JSON bytes. Raises Refused."""
        room, came = bytearray(MAX_JSON + 1), 0
        while came <= MAX_JSON and (count := self.body.readinto(memoryview(room)[came:])):
            came += count
        if came > MAX_JSON:
            raise TooLarge(f"a body of JSON has at most {size(MAX_JSON)} here")
        try:
            found = json.loads(room[:came])
        except (ValueError, RecursionError) as e:
            raise Refused(f"the body is not right as JSON: {e}") from e
        if not isinstance(found, dict):
            raise Refused('the body is no JSON object, such as {"visibility": "link"}')
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
        return self.body.received if "body" in self.__dict__ else 0

    @property
    def wants_json(self) -> bool:
        said = self.environ.get("HTTP_ACCEPT")
        return said is not None and asks_for(said, JSON)


def _header(environ: WSGIEnvironment, name: str) -> str | None:
    found: str | None = EnvironHeaders(environ).get(name)
    return found


def _decoded(text: str) -> str:
    """UTF-8 of what PEP 3333 has an octet a character."""
    return text.encode("latin-1").decode("utf-8", "replace")


class Answer:
    """An answer that is complete: its headers say all there is to say. werkzeug's own looks at each of them anew."""

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        body: Iterable[bytes | memoryview],
        base: Base | None = None,
    ) -> None:
        """``base``: further headers, before them."""
        self.status_code, self.headers, self.body, self._base = status, headers, body, base

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        base, more = self._base, self.headers
        headers = list(more.items()) if base is None else Composed(base, more)
        start_response(_STATUS[self.status_code], headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            return ()
        return self.body  # type: ignore[return-value]  # views, to a server that writes them


_STATUS = {each: f"{each} {phrase(each)}" for each in (*HTTPStatus, 499)}


def text(body: str, status: int = 200) -> Answer:
    return _encoded(body, status, "text/plain; charset=utf-8")


def html(body: str, status: int = 200) -> Answer:
    return _encoded(body, status, "text/html; charset=utf-8")


def as_json(value: object, status: int = 200) -> Answer:
    return _encoded(json.dumps(value, indent=2) + "\n", status, JSON)


def _encoded(body: str, status: int, content_type: str) -> Answer:
    data = body.encode()
    return Answer(status, {"Content-Type": content_type, "Content-Length": str(len(data))}, [data])


_WHERE_IDS_ARE = {
    "file": f"an upload answers with one like {UUID(int=0)}",
    "link": "`GET /links` shows them",
    "token": "`GET /tokens` shows them",
}


@lru_cache(maxsize=2048)
def parse_uuid(given: str, what: str = "file") -> UUID:
    """An id as users write it; ``what`` it is of. Raises Refused."""
    if not _UUID.fullmatch(given):
        raise Refused(f"{given[:60]!r} is not a {what}'s id: {_WHERE_IDS_ARE[what]}")
    return UUID(int=int(given.replace("-", ""), 16))


def asked_page(request: Request, what: str = "file") -> tuple[UUID | None, int]:
    """Of a list in the order of ids: after which one it begins, and how long it is at most; ``what`` is listed.
    Raises Refused, also for a parameter that it has not: who misspelt ``after`` would get the first page forever."""
    if unknown := request.args.keys() - {"after", "limit"}:
        raise Refused(f"a list has no {min(unknown)[:60]!r}; it has: after, limit")
    after = request.args.get("after")
    limit = request.args.get("limit", str(_DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= _MAX_LIMIT):
        raise Refused(f"limit must be 1 to {_MAX_LIMIT}")
    return parse_uuid(after, what) if after else None, int(limit)
