"""The service as a WSGI app: URL map, request ids, the one place where an error becomes an answer, access log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter, Map, Rule
from werkzeug.wrappers import Response

from distfs.access.authorize import ADMIN, FREE, Action
from distfs.access.door import ANYBODY, LATER, NOBODY, Actor
from distfs.config.callers import Caller, Identity, direct
from distfs.config.file import load
from distfs.config.settings import CallersConfig, Config, TokenCaller
from distfs.deadline import Deadline
from distfs.errors import BadToken, DistfsError, Encoded, Refused, TooManyWrong, Unauthorized
from distfs.headers.authorization import BAD, CHALLENGE, shown_token, shows_several
from distfs.peers.wanted_traces import WantedTraces
from distfs.problem import explained, phrase
from distfs.process.threads import as_ours
from distfs.routes import admin, download, files, links, logs, metrics, profile, tokens, traced, upload
from distfs.routes.browsers import Browsers
from distfs.routes.changes import SAFE, note
from distfs.routes.messages import Answer, Body, CountedBytes, Request
from distfs.services import Services, build
from distfs.telemetry import metrics as counted
from distfs.telemetry import tracing
from distfs.telemetry.context import current_request_id, enter_request, leave_request
from distfs.telemetry.logs import log_facts
from distfs.telemetry.tracing import Span
from distfs.together import Together

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger("distfs.http")
_TOLD = 10  # ids of one request, in the access log
access_log = logging.getLogger("distfs.access")

View = Callable[..., Answer | Response]


class _AnyName(BaseConverter):
    """A file's name: any characters, slashes and line breaks too."""

    regex = "(?s:.+)"
    part_isolating = False


_ID = "/<uuid>"
_UPLOADS = "/upload/"
#: By its action is decided who may call it: before the view is called or, for what is done to a file, by
#: `routes.seen.the_file`.
_ROUTES: list[tuple[str, str, Action, View]] = [
    ("GET", "/upload", Action.UPLOAD, upload.get_form),
    ("POST", "/upload", Action.UPLOAD, upload.post_form),
    ("PUT", "/upload", Action.UPLOAD, upload.put_raw),
    ("PUT", "/upload/<any_name:name>", Action.UPLOAD, upload.put_raw),
    ("GET", "/download", Action.DOWNLOAD, download.get_file),
    ("GET", "/download/<uuid>", Action.DOWNLOAD, download.get_file),
    ("GET", "/files", Action.LIST, files.list_files),
    ("GET", "/files/<uuid>", Action.FACTS, files.get_facts),
    ("DELETE", "/files/<uuid>", Action.DELETE, files.delete_file),
    ("PATCH", "/files/<uuid>", Action.CHANGE, files.change_file),
    ("POST", "/files/<uuid>/links", Action.SHARE, links.share),
    ("POST", "/links", Action.INVITE, links.invite),
    ("GET", "/links", Action.LINKS, links.list_links),
    ("POST", "/links/revoke", Action.UNLINK, links.revoke),
    ("POST", "/tokens", Action.TOKENS, tokens.create_token),
    ("GET", "/tokens", Action.TOKENS, tokens.list_tokens),
    ("DELETE", "/tokens/<uuid>", Action.TOKENS, tokens.revoke_token),
    ("POST", "/tokens/<uuid>/rotate", Action.TOKENS, tokens.rotate_token),
    ("GET", "/healthz", Action.HEALTH, admin.get_alive),
    ("GET", "/readyz", Action.HEALTH, admin.get_ready),
    ("GET", "/status", Action.STATUS, admin.get_status),
    ("GET", "/status/history", Action.STATUS, admin.get_history),
    ("GET", "/metrics", Action.METRICS, metrics.get_metrics),
    ("GET", "/logs", Action.STATUS, logs.get_logs),
    ("GET", "/debug/stacks", Action.STATUS, admin.get_stacks),
    ("GET", "/debug/profile", Action.STATUS, profile.get_profile),
    ("GET", "/", Action.USAGE, admin.get_usage),
]
#: What a proxy says of itself.
_BY_PROXY = frozenset(("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA"))
#: As metrics name it.
_ROUTE_OF = {view: re.sub(r"<\w+:", "<", path) for _, path, _, view in _ROUTES}


def create_app(config: Config | None = None, together: Together | None = None) -> HttpApp:
    """The WSGI app, for any WSGI host: ``gunicorn 'distfs.http_app:create_app()'``.

    ``config`` None: from ``config.yml`` and the environment. Connects to nothing before the first request.
    ``together``: it is one of several processes of a service.
    """
    config = load() if config is None else config
    tracing.set_up(config.tracing, "")
    services = build(config, together)
    tracing.tell_wanted = WantedTraces(services.directory.asked).add
    return HttpApp(services)


class HttpApp:
    """Routes requests to ``services``. Any number of threads may call it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._browsers = Browsers(services.config.http)
        self._counts = services.config.metrics.enabled
        routes = _ROUTES
        if services.config.metrics.public:  # as what tells whether the service is well
            routes = [(m, p, Action.HEALTH if a is Action.METRICS else a, view) for m, p, a, view in routes]
        self._views = {(method, path): (view, act) for method, path, act, view in routes if "<" not in path}
        self._views_of_ids = {
            (m, p[: -len(_ID)]): (view, act) for m, p, act, view in routes if p.endswith(_ID)
        }
        # A name may hold anything, also `//` or a slash at its end: nothing is merged or redirected.
        self._map = Map(
            [Rule(path, methods=[method], endpoint=(view, act)) for method, path, act, view in routes],
            strict_slashes=False,
            merge_slashes=False,
            converters={"any_name": _AnyName},
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._counts:
            counted.IN_FLIGHT.add()
        try:
            return self._called(environ, start_response)
        except BaseException as e:
            if self._counts:
                counted.IN_FLIGHT.add(-1)
            if (span := tracing.current()) is not None:
                tracing.leave(span, e)
            raise

    def _called(self, environ: WSGIEnvironment, start_response: StartResponse) -> _Answer:
        began = time.monotonic()
        request_id = enter_request(environ.get("HTTP_X_REQUEST_ID", ""))
        request = Request(environ)
        callers = self.services.admission.callers.config
        if callers.trusted_proxies:
            identity = callers.identify(request.caller)
            request.scheme = identity.scheme(request.scheme)
        else:
            identity = direct(request.address)
        span = traced.enter(request) if tracing.on else None
        response = self._answer(request, identity)
        sender = who(identity, request.address)
        if (request.by_link or request.method not in SAFE) and self.services.audit.on:
            note(self.services.audit, request, response.status_code, request_id, sender)
        response.headers["X-Request-Id"] = request_id
        response.headers.update(request.safety)
        if span is not None:
            self._time(span, request, response)
        if self._browsers.shares:
            self._browsers.share(request, response)
        answer = response(environ, start_response)
        if request.who:
            sender["who"] = request.who
        return _Answer(answer, request, response.status_code, began, sender, self._counts, span)

    def _time(self, span: Span, request: Request, response: Answer | Response) -> None:
        """Tell an administrator, and whoever asks, what took how long."""
        if traced.ASKS in request.environ or (self.services.door.guarded and ADMIN in request.actor.scopes):
            response.headers["Server-Timing"] = traced.server_timing(span)

    @staticmethod
    def answers_at_once(path: str) -> bool:
        """Whether nothing is waited for: such requests are answered by the loop when all workers are busy."""
        return path == "/healthz"

    def check_body(self, address: str, header: Callable[[str], str | None], size: int) -> None:
        """What a caller's own limits say against a body of ``size`` bytes (0: not said), before any of it is read.

        Raises TooLarge, TooMany.
        """
        self.services.admission.check(self._caller(address, header), size)

    def admit_body(
        self, address: str, header: Callable[[str], str | None], size: int
    ) -> AbstractContextManager[None]:
        """Entered by a large body of ``size`` bytes (0: not said) at its header, left at its answer.

        Entering raises TooMany, Busy.
        """
        return self.services.admission.large(self._caller(address, header), size)

    def connected(self, address: str) -> None:
        """A connection is open, until ``disconnected``. Raises TooMany."""
        self.services.admission.callers.connect(address)
        counted.CONNECTIONS.add()

    def disconnected(self, address: str) -> None:
        self.services.admission.callers.disconnect(address)
        counted.CONNECTIONS.add(-1)

    def who(self, address: str, header: Callable[[str], str | None]) -> dict[str, str]:
        """Who sent a request, as the access log says it."""
        caller = Caller(address, header)
        return who(self._callers.identify(caller), address)

    def paces_bodies(self) -> bool:
        """Whether bodies are read no faster than the bandwidth allows."""
        return self.services.bandwidth.capped("in")

    @staticmethod
    def answers_while_draining(path: str) -> bool:
        """Health checks go on until the end: they tell a load balancer to send no more. So do metrics."""
        return path in ("/healthz", "/readyz", "/metrics")

    def close(self) -> None:
        """Let go of every thread and connection; the app answers no more."""
        self.services.close()
        tracing.close()

    @property
    def _callers(self) -> CallersConfig:
        return self.services.admission.callers.config

    def _route(self, method: str, path: str) -> tuple[View, Action, dict[str, str]]:
        """The view of a request, what it does, and its arguments. Raises HTTPException.

        The usual paths are found without werkzeug's map, which would find the same.
        """
        if (found := self._views.get((method, path))) is not None:
            return *found, {}
        folder, _, last = path.rpartition("/")
        if last and (found := self._views_of_ids.get((method, folder))) is not None:
            return *found, {"uuid": last}
        if path.startswith(_UPLOADS) and method == "PUT" and len(path) > len(_UPLOADS):
            return upload.put_raw, Action.UPLOAD, {"name": path[len(_UPLOADS) :]}
        # By the path alone: werkzeug has a mind of its own about hosts.
        (view, action), arguments = self._map.bind("", path_info=path, default_method=method).match()
        return view, action, dict(arguments)

    def _answer(self, request: Request, identity: Identity) -> Answer | Response:
        try:
            if "distfs.writes_views" not in request.environ:  # ours has looked at it
                request.check_host()
            self._browsers.check(request)
            if request.method == "OPTIONS" and (allowed := self._browsers.preflight(request)):
                return allowed
            view, request.action, arguments = self._route(request.method, request.path)
            request.route = _ROUTE_OF[view]
            self._let_in(request, identity)
            if request.method not in SAFE:
                self.services.audit.check()
            response = view(self.services, request, **arguments)
        except Exception as e:  # noqa: BLE001 - the request's outermost edge
            error = as_ours(e) if isinstance(e, MemoryError) else e
            if isinstance(e, TooManyWrong):
                _let_rest(request.environ)
            response = _refusal(request, request.because_given_up(error) or error)
        return response

    def _let_in(self, request: Request, identity: Identity) -> None:
        """Who asks, and whether they may, as far as that can be told before the file is known. Raises Unauthorized,
        Forbidden, TooMany, Unavailable."""
        door = self.services.door
        if request.action in FREE:
            request.actor = NOBODY if door.guarded else ANYBODY
        elif door.guarded:
            request.actor = self._shown_by(request, identity)
        else:
            request.actor = door.enter_freely(request.address)
        if request.actor.token is not None:
            request.who = request.actor.name
            request.__dict__.pop("caller", None)  # another from now on: who has a token has its limits
        if request.action not in LATER:
            door.judge_before(request.actor, request.action)

    def _shown_by(self, request: Request, identity: Identity) -> Actor:
        """Who asks, by a link or a token. A link counts, whatever else a browser sends."""
        door = self.services.door

        def deadline() -> Deadline:
            return self.services.answer_deadline(request.hang_up)

        environ = request.environ
        if environ.get("QUERY_STRING") and (text := request.argument("link")) is not None:
            request.by_link = True
            return door.follow(text, request.action, identity.address, deadline)
        header = environ.get("HTTP_AUTHORIZATION")
        if header and "," in header and shows_several(header):
            raise Refused("Authorization was sent more than once, or has a comma in it: send one token")
        return door.enter(shown_token(header), identity.address, deadline)

    def _caller(self, address: str, header: Callable[[str], str | None]) -> Caller:
        """As far as can be told at a request's head, where nobody is asked."""
        door = self.services.door
        token = door.glance(shown_token(header("Authorization"))) if door.guarded else None
        return Caller(address, header) if token is None else TokenCaller(address, header, token.rule)


def who(identity: Identity, address: str) -> dict[str, str]:
    """The client, and the proxy it came by: an access log's facts."""
    client = identity.shown or address or "-"
    return {"client": client} if client == address else {"client": client, "via": address or "-"}


def _let_rest(environ: WSGIEnvironment) -> None:
    """Of a connection by which too many wrong tokens came nothing is read for a while. One of a proxy's is others',
    too: who says that he comes by one is only answered."""
    rest = environ.get("distfs.rest")  # by our own host
    if rest is not None and environ.keys().isdisjoint(_BY_PROXY):
        rest()


def _refusal(request: Request, error: Exception) -> Answer:
    """An error as an answer: one line, or problem+json (RFC 9457) for who asks for it; never a traceback."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        status, detail = error.code or 500, _in_words(request, error)
        headers = {k: v for k, v in error.get_headers() if k == "Content-Range"}
        if isinstance(error, MethodNotAllowed):
            headers["Allow"] = _allowed(error)
    elif isinstance(error, DistfsError) and error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        status, detail = error.status, error.for_client
        if error.retry_after is not None:
            headers["Retry-After"] = str(error.retry_after)
        if isinstance(error, Encoded):
            headers["Accept-Encoding"] = "identity, gzip, zstd"
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = CHALLENGE + (BAD if isinstance(error, BadToken) else "")
        level = logging.WARNING if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.INFO
        log.log(level, "%s: %s", error.kind, error)
    else:
        status = 500
        detail = f"distfs failed; the reason is in its log under request {current_request_id()}"
        log.error("a request failed for no reason that should occur", exc_info=error)
    request.refused = detail
    request.error_class = getattr(error, "kind", type(error).__name__)
    counted.failed(error)
    kind, body = explained(request.headers.get("Accept", ""), status, detail, current_request_id())
    data = body.encode()
    return Answer(status, {"Content-Type": kind, "Content-Length": str(len(data)), **headers}, [data])


def _in_words(request: Request, error: HTTPException) -> str:
    if isinstance(error, NotFound):
        return "there is nothing at this path: GET / tells what there is"
    if isinstance(error, MethodNotAllowed):
        return f"{request.method[:20]} cannot be used here, only {_allowed(error)}"
    return error.description or phrase(error.code or 500)


def _allowed(error: MethodNotAllowed) -> str:
    return ", ".join(sorted(error.valid_methods or ()))


class _Answer(CountedBytes[bytes]):
    """An answer on its way out: writes the access log's line when it is over."""

    def __init__(
        self,
        body: Iterable[bytes],
        request: Request,
        status: int,
        began: float,
        sender: dict[str, str],
        counts: bool,
        span: Span | None,
    ) -> None:
        self._body, self._chunks = body, iter(body)  # as super's, in one call
        rewind: Callable[[int], None] | None = getattr(body, "rewind", None)
        self.rewind = rewind and self._rewind
        self.sent, self.ended = 0, False
        self._counts, self._span = counts, span
        self._error: DistfsError | None = None
        self._request, self._status, self._began, self._sender = request, status, began, sender

    def whole(self) -> bytes | None:
        """All there is, if that is one piece: for our host, which says when it was sent."""
        if type(self._body) is not list or len(self._body) != 1:
            return None
        data: bytes = self._body[0]
        self.sent = len(data)
        return data

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)  # as super's, in one call
            self.sent += len(chunk)
            return chunk
        except StopIteration:
            self.ended = True
            raise
        except DistfsError as e:
            self._error = e
            if given_up := self._request.because_given_up(e):
                raise given_up from e
            raise  # the host says why, once

    def close(self) -> None:
        try:
            if close := getattr(self._body, "close", None):  # as super's
                close()
        finally:
            seconds = self._log()
            if (span := self._span) is not None:
                traced.leave(span, self._request, self._status, self.sent, current_request_id(), self._error)
                if span.trace.kept and self._counts:
                    counted.exemplify(self._request.route, seconds, span.trace.name)
            leave_request()

    def _log(self) -> float:
        """-> how long it took."""
        request, seconds = self._request, time.monotonic() - self._began
        body: Body | None = request.__dict__.get("body")  # as ``received``, in one call
        received = body.received if body is not None else 0
        if self._counts:
            counted.answered(request.route, request.method, self._status, received, self.sent, seconds)
        facts: dict[str, Any] = {
            "method": request.method,
            "path": request.path,
            "status": self._status,
            "received": received,
            "sent": self.sent,
            "duration": seconds,
            **self._sender,
        }
        if request.changed:
            files = request.route.startswith(("/upload", "/files"))
            facts["file" if files else "changed"] = ",".join(request.changed[:_TOLD])
        if request.error_class:
            facts["error_class"] = request.error_class
        if self.sent and not self.ended:
            facts["outcome"] = "cut"
            if (reason := self._request.given_up) is not None:
                facts["reason"] = reason
        if self._span is not None:
            facts["trace"] = self._span.trace.name
        log_facts(access_log, "request", facts)
        return seconds
