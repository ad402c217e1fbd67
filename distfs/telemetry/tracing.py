"""What a request did and how long each part took, as spans of one tree; and the one place that knows OpenTelemetry.

Spans are objects of our own, kept in memory until their request ends. Only then it is known whether they are wanted:
because its trace was drawn by lot, or something in it failed, or it took long. What is wanted is put in a bounded
line, from which a thread sends it. So an endpoint that is dead, slow or lies costs spans, which are counted, and no
request anything.

While nothing is recorded, a hot way pays one test: ``if tracing.on``. What is recorded is only what has a current
span, so other threads record nothing unless they run ``in_context``.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4

from distfs import __version__
from distfs.config.settings import TracingConfig
from distfs.errors import Busy, Cancelled, ConfigError, DistfsError
from distfs.headers.traceparent import TraceParent
from distfs.process.redact import redacted, tokenless, visible
from distfs.process.threads import start
from distfs.telemetry.held_spans import Held
from distfs.telemetry.metrics import SPANS_DROPPED

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from requests import Response

log = logging.getLogger("distfs.tracing")
P = ParamSpec("P")
R = TypeVar("R")

INTERNAL, SERVER, CLIENT = 0, 1, 2  # as OpenTelemetry's SpanKind counts
#: Spans of one trace, of all that are recorded now, and of those that wait to be sent. What is beyond is dropped.
MOST_OF_TRACE, MOST_OPEN, MOST_WAITING = 1000, 50_000, 20_000
#: Spans that are sent at once, and how long is waited for more of them.
_BATCH, _GATHER_S = 500, 0.5
#: For one batch to be sent, with all tries; and for the last ones when a process ends.
_SEND_LIMIT_S, _CLOSE_LIMIT_S = 5.0, 2.0
#: Characters of an attribute; bytes of an endpoint's answer.
_MOST_TEXT, _MOST_ANSWER = 256, 64 << 10
_REDIRECTS, _OUR_FAULT = 300, 500
_PATH = "/v1/traces"
_RATIO_BITS = (1 << 64) - 1  # of a trace's id: all who see it decide alike

#: Whether anything is recorded.
on = False
_drawn, _slow = 0, float("inf")
_exporter: Exporter | None = None
#: Of a node: where spans wait for whether a service wants them.
held: Held[Span] | None = None
#: Of a service: is told the id of a trace that is wanted though it was not drawn.
tell_wanted: Callable[[str], object] | None = None
_lock = threading.Lock()
_open = 0  # spans of traces that are not over; under the lock
_current: ContextVar[Span | None] = ContextVar("span", default=None)


class Trace:
    """What belongs together, of this process: a request, or a step of upkeep."""

    __slots__ = ("failed", "id", "kept", "over", "sampled", "spans", "state", "wall")

    def __init__(self, id: int, sampled: bool, state: str = "") -> None:
        """``state``: its ``tracestate``, as a caller sent it."""
        self.id, self.sampled, self.state = id, sampled, state
        self.failed = self.over = self.kept = False
        self.spans: list[Span] = []
        self.wall = time.time() - time.monotonic()  # a clock that is set meanwhile bends no span

    @property
    def name(self) -> str:
        """Its id, as people see it."""
        return f"{self.id:032x}"


class Span:
    """One part of it. Times are of the monotonic clock; ``facts`` are its attributes.

    As a context manager it is the current one meanwhile, in this thread.
    """

    __slots__ = ("_before", "_id", "began", "ended", "error", "facts", "kind", "name", "parent", "trace")

    _before: Span | None
    error: BaseException | None

    def __init__(self, trace: Trace, name: str, kind: int, parent: int | Span, facts: dict[str, Any]) -> None:
        """``parent``: a span of this process, or the id of another's; 0: none."""
        global _open  # noqa: PLW0603
        self.trace, self.name, self.kind, self.parent, self.facts = trace, name, kind, parent, facts
        self._id, self.ended, self.error = 0, 0.0, None
        self.began = time.monotonic()
        if trace.over:
            return
        with _lock:
            if kept := len(trace.spans) < MOST_OF_TRACE and _open < MOST_OPEN:
                trace.spans.append(self)
                _open += 1
        if not kept:
            SPANS_DROPPED.add()
            self.ended = self.began

    @property
    def id(self) -> int:
        """Made when it is asked for, by its thread or when it is sent: most spans are forgotten before."""
        if not self._id:
            self._id = random.getrandbits(64) or 1
        return self._id

    @property
    def carried(self) -> TraceParent:
        """What another process is told, whose spans are children of this one."""
        return TraceParent(self.trace.id, self.id, self.trace.sampled)

    def __enter__(self) -> Span:
        self._before = _current.get()
        _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.set(self._before)
        self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Once; nothing after that."""
        if not self.ended:
            _end(self, error, time.monotonic())


#: Where nothing is recorded.
_NOTHING = nullcontext()


def set_up(config: TracingConfig, part: str, instance: str = "") -> None:
    """From now on record as ``config`` says. ``part``: what is put behind the service's name; ``instance``: which of
    several. Raises ConfigError for what is not installed."""
    global on, _drawn, _slow, _exporter  # noqa: PLW0603 - a process has one
    close()
    _drawn, _slow = int(config.ratio * (_RATIO_BITS + 1)), float(config.slow)
    if config.endpoint:
        _exporter = Exporter(_sender(config, part, instance or str(uuid4())))
    on = bool(config.endpoint) or config.server_timing
    for handler in logging.getLogger().handlers if on else ():
        handler.addFilter(_name_trace)


def close() -> None:
    """Send what waits, within a bound, and record nothing more."""
    global on, _exporter
    on, exporter, _exporter = False, _exporter, None
    for handler in logging.getLogger().handlers:
        handler.removeFilter(_name_trace)
    if exporter is not None:
        exporter.close()


def _name_trace(record: logging.LogRecord) -> bool:
    """A line of the log says of which trace it is."""
    if (span := _current.get()) is not None:
        record.__dict__["trace"] = span.trace.name
    return True


def current() -> Span | None:
    """The span this thread works for."""
    return _current.get()


def sampled() -> TraceParent | None:
    """Of the current span, where its trace is sent for certain."""
    found = _current.get()
    return found.carried if found is not None and found.trace.sampled else None


def enter(name: str, kind: int, parent: TraceParent | None, facts: dict[str, Any], state: str = "") -> Span:
    """The first span of a trace in this process, which is the current one from now on; ``leave`` ends it. ``state``:
    the ``tracestate`` that came with ``parent``."""
    if parent is None:
        id = random.getrandbits(128) or 1
        trace = Trace(id, (id & _RATIO_BITS) < _drawn)
    else:
        trace = Trace(parent.trace, parent.sampled, state)
    span = Span(trace, name, kind, parent.span if parent else 0, facts)
    _current.set(span)
    return span


def step_out() -> None:
    """This thread works for no span any more: another, which has its context, goes on with it."""
    _current.set(None)


def leave(
    span: Span, error: BaseException | None = None, describe: Callable[[], dict[str, Any]] | None = None
) -> None:
    """It is over, and so is its trace. ``describe``: asked for further facts if the trace is sent."""
    global _open  # noqa: PLW0603
    _current.set(None)
    now = time.monotonic()
    if error is not None:
        _end(span, error, now)
    trace = span.trace
    with _lock:
        span.ended = span.ended or now
        trace.over, recorded = True, trace.spans
        _open -= len(recorded)
        trace.spans = []
        trace.kept = trace.sampled or trace.failed or now - span.began >= _slow
    if _exporter is None or not (trace.kept or held):
        return

    def ready() -> list[Span]:
        if describe is not None:
            span.facts = {**span.facts, **describe()}
        return [each for each in recorded if each.ended]

    if not trace.kept and held is not None:
        held.add(trace.id, len(recorded), ready)
        return
    _exporter.put(ready())
    if tell_wanted is not None and not trace.sampled:
        tell_wanted(trace.name)


def hold() -> None:
    """From now on spans of traces that nobody wants yet are held, of a node."""
    global held  # noqa: PLW0603
    held = Held(lambda spans: _exporter.put(spans) if _exporter is not None else None)


def root(name: str) -> Root | nullcontext[None]:
    """``with``: a trace of its own, such as a step of upkeep."""
    return Root(name) if on else _NOTHING


class Root:
    """Its trace is over when it is left."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Span:
        self._span = enter(self._name, INTERNAL, None, {})
        return self._span

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        leave(self._span, error)


def begin(name: str, kind: int, facts: dict[str, Any]) -> Span | None:
    """A child of the current span, without being that; who has it ends it. None: nothing is recorded here."""
    above = _current.get()
    return Span(above.trace, name, kind, above, facts) if above is not None else None


def span(name: str) -> Span | nullcontext[None]:
    """``with``: a child of the current span, which is the current one meanwhile."""
    above = _current.get() if on else None
    return Span(above.trace, name, INTERNAL, above, {}) if above is not None else _NOTHING


def traced(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """``function`` as a ``span`` of this name. It is one more call: for what is not hot."""

    def wrapped(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if not on:
                return function(*args, **kwargs)
            with span(name):
                return function(*args, **kwargs)

        return run

    return wrapped


def past(
    name: str,
    began: float,
    facts: dict[str, Any],
    kind: int = INTERNAL,
    error: BaseException | None = None,
) -> None:
    """What has just ended, and has no children."""
    if (found := begin(name, kind, facts)) is not None:
        found.began = began
        found.end(error)


def _end(span: Span, error: BaseException | None, now: float) -> None:
    trace = span.trace
    with _lock:
        span.ended = now
        if error is not None:
            span.error = error
            trace.failed = trace.failed or _is_failure(error)
        late = trace.over and trace.kept
    if late and _exporter is not None:
        _exporter.put([span])


def _is_failure(error: BaseException) -> bool:
    """Not what a client did wrong, nor what nobody waits for any more."""
    if isinstance(error, Cancelled):
        return False
    return not isinstance(error, DistfsError) or error.status >= _OUR_FAULT


class Exporter:
    """Spans that wait to be sent, and the thread that sends them. Thread-safe."""

    def __init__(self, send: Callable[[Sequence[Span]], str]) -> None:
        """``send``: -> why they did not arrive; empty: they did."""
        self._send = send
        self._changed = threading.Condition()
        self._waiting: deque[Span] = deque()
        self._sending = self._closed = False
        self._thread: threading.Thread | None = None
        self._trouble = ""
        os.register_at_fork(after_in_child=self._forked)

    def put(self, spans: Sequence[Span]) -> None:
        """Never waits for anybody who sends."""
        with self._changed:
            fits = spans if len(self._waiting) + len(spans) <= MOST_WAITING and not self._closed else ()
            first = not self._waiting
            self._waiting.extend(fits)
            begins = bool(fits) and (self._thread is None or not self._thread.is_alive())
            if begins:
                self._thread = threading.current_thread()  # one begins it
            if first or len(self._waiting) >= _BATCH:
                self._changed.notify_all()
        if dropped := len(spans) - len(fits):
            SPANS_DROPPED.add(dropped)
        if begins:
            try:
                self._thread = start(self._run, "tracing")
            except Busy:
                self._thread = None

    def close(self) -> None:
        """Send what waits, within a bound; what does not go out then is dropped."""
        ends = time.monotonic() + _CLOSE_LIMIT_S
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while (self._waiting or self._sending) and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
            SPANS_DROPPED.add(len(self._waiting))
            self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if len(self._waiting) < _BATCH and not self._closed:
                    self._changed.wait(_GATHER_S)
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                if not batch and self._closed:
                    return
                self._sending = True
            try:
                trouble = self._send(batch) if batch else self._trouble
            except Exception as e:  # noqa: BLE001 - the thread's outermost edge: others are sent after it
                trouble = f"a bug: {e!r}"
            with self._changed:
                self._sending = False
                self._changed.notify_all()
            if batch and trouble:
                SPANS_DROPPED.add(len(batch))
            self._tell(trouble)

    def _tell(self, trouble: str) -> None:
        if bool(trouble) != bool(self._trouble):
            if trouble:
                log.warning("spans are lost: %s", redacted(trouble))
            else:
                log.info("spans are sent again")
        self._trouble = trouble

    def _forked(self) -> None:
        """The thread stayed with the parent, and so did what it is to send."""
        self._changed, self._thread, self._sending = threading.Condition(), None, False
        self._waiting.clear()


def _sender(config: TracingConfig, part: str, instance: str) -> Callable[[Sequence[Span]], str]:
    """By OTLP over HTTP. Raises ConfigError."""
    try:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import SpanExportResult
    except ImportError as e:
        raise ConfigError("tracing.endpoint needs an extra: pip install 'distfs[tracing]'") from e

    class Session(requests.Session):
        """Takes no more of an answer than anybody would read, and knows what became of the last try."""

        trouble = ""

        def request(self, *args: Any, **kwargs: Any) -> Response:
            self.trouble = "no answer in time"
            try:
                answer = super().request(*args, **{**kwargs, "stream": True})
                answer._content = answer.raw.read(_MOST_ANSWER, decode_content=True)
            except Exception as e:
                self.trouble = _innermost(e)
                raise
            answer.close()
            taken = answer.status_code < _REDIRECTS  # to the library, more is as good
            self.trouble = "" if taken else f"it answers {answer.status_code} {answer.reason}"
            return answer

    for name in ("opentelemetry", "urllib3"):  # it tries again, and would say each time that it did
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    session = Session()
    endpoint = config.endpoint.rstrip("/")
    exporter = OTLPSpanExporter(
        endpoint if endpoint.endswith(_PATH) else endpoint + _PATH, timeout=_SEND_LIMIT_S, session=session
    )
    name = config.service_name + part
    resource = Resource(
        {"service.name": name, "service.version": __version__, "service.instance.id": instance}
    )

    def send(spans: Sequence[Span]) -> str:
        taken = exporter.export([_readable(span, resource) for span in spans]) is SpanExportResult.SUCCESS
        if taken and not session.trouble:
            return ""
        return visible(f"{config.endpoint}: {session.trouble or 'it takes none'}"[: 2 * _MOST_TEXT])

    return send


def _innermost(error: BaseException) -> str:
    """What happened, without what each layer calls it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error)


def _readable(span: Span, resource: Any) -> ReadableSpan:
    """As OpenTelemetry has it."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

    trace, wall = span.trace, span.trace.wall
    flags = TraceFlags(trace.sampled)
    state = TraceState.from_header([trace.state]) if trace.state else None
    above = span.parent.id if isinstance(span.parent, Span) else span.parent
    parent = SpanContext(trace.id, above, is_remote=above is span.parent) if above else None
    facts = {key: text(value) for key, value in span.facts.items() if value is not None}
    if "db.system.name" in facts:
        facts["db.operation.name"] = span.name
    status = Status(StatusCode.UNSET)
    if span.error is not None:
        facts.setdefault("error.type", getattr(span.error, "kind", type(span.error).__name__))
        status = Status(StatusCode.ERROR, str(text(str(span.error))))
    return ReadableSpan(
        span.name,
        SpanContext(trace.id, span.id, is_remote=False, trace_flags=flags, trace_state=state),
        parent,
        resource,
        facts,
        kind=SpanKind(span.kind),
        status=status,
        start_time=int((span.began + wall) * 1e9),
        end_time=int((span.ended + wall) * 1e9),
        instrumentation_scope=InstrumentationScope("distfs", __version__),
    )


def text(value: object) -> str | int | float:
    """An attribute: a number, or text of one line without tokens, cut."""
    if isinstance(value, bool | int | float):
        return value
    return tokenless(visible(str(value)))[:_MOST_TEXT]
