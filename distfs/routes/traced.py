"""A request as the first span of its trace, by OpenTelemetry's conventions for HTTP; and ``Server-Timing``.

Who calls asks whether anything is recorded (``tracing.on``) before it comes here.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distfs.body.source import Source
from distfs.headers.traceparent import parse, read_state
from distfs.routes.messages import Request
from distfs.telemetry import tracing
from distfs.telemetry.tracing import Span

_OUR_FAULT = 500
#: A wait for a thread that is longer is told.
_NOTABLE_S = 0.0005
#: Who is no administrator asks for ``Server-Timing`` by this header, whatever is in it.
ASKS = "HTTP_X_DISTFS_TIMING"


def enter(request: Request) -> Span:
    """From its head on, also while it waited for a thread."""
    header, ready = request.environ.get("HTTP_TRACEPARENT"), request.environ.get("distfs.ready")
    parent = parse(header) if header else None
    state = read_state(request.environ.get("HTTP_TRACESTATE", "")) if parent else ""
    span = tracing.enter(request.method, tracing.SERVER, parent, {}, state)
    if ready and ready < span.began - _NOTABLE_S:
        span.began = ready
        tracing.past("receive", ready, {})
    return span


def leave(
    span: Span, request: Request, status: int, sent: int, request_id: str, error: BaseException | None
) -> None:
    """Its answer is over. ``error``: what cut it short."""
    span.name = f"{request.method} {request.route}"
    if status >= _OUR_FAULT:
        span.trace.failed = True

    def facts() -> dict[str, Any]:
        return {
            "http.request.method": request.method,
            "url.path": request.path,
            "url.scheme": request.scheme,
            "network.protocol.version": request.environ.get("SERVER_PROTOCOL", "").removeprefix("HTTP/"),
            "client.address": request.address,
            "http.route": request.route,
            "http.response.status_code": status,
            "http.request.body.size": request.received,
            "http.response.body.size": sent,
            "distfs.request_id": request_id,
            "error.type": str(status) if status >= _OUR_FAULT else None,
        }

    tracing.leave(span, error, facts)


def receiving(source: Source) -> AbstractContextManager[Source]:
    """The body of an upload, while it is read."""
    return _Received(source) if tracing.on else nullcontext(source)


class _Received:
    """A source, and how long it was waited for: that is the client's doing."""

    def __init__(self, source: Source) -> None:
        self._source, self._began = source, time.monotonic()
        self._waited, self._bytes = 0.0, 0

    def readinto(self, view: memoryview) -> int:
        began = time.monotonic()
        count = self._source.readinto(view)
        self._waited += time.monotonic() - began
        self._bytes += count
        return count

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        facts = {"distfs.bytes": self._bytes, "distfs.waited_seconds": round(self._waited, 6)}
        tracing.past("receive body", self._began, facts)


def server_timing(span: Span) -> str:
    """How long it waited for its turn, for MetaDB and for nodes, until now, in milliseconds."""
    spans, now = list(span.trace.spans), time.monotonic()
    kinds = {
        "queue": [s for s in spans if s.name == "receive"],
        "metadata": [s for s in spans if "db.system.name" in s.facts],
        "nodes": [s for s in spans if "distfs.node" in s.facts],
    }
    told = [f"{name};dur={_covered(those, now) * 1000:.3f}" for name, those in kinds.items()]
    return ", ".join([*told, f"total;dur={(now - span.began) * 1000:.3f}"])


def _covered(spans: list[Span], now: float) -> float:
    """Seconds in which at least one of them ran."""
    covered, end = 0.0, 0.0
    for each in sorted(spans, key=lambda s: s.began):
        ends = each.ended or now
        covered += max(0.0, ends - max(each.began, end))
        end = max(end, ends)
    return covered
