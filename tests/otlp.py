"""A collector of traces, as a test has one: it takes OTLP over HTTP, and keeps each span."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.contract.litter import eventually

ROOT = ""
Value = str | int | float | bool


@dataclass(frozen=True)
class Span:
    """As it came."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    facts: dict[str, Value]
    failed: bool
    began: int
    ended: int
    resource: dict[str, Value]
    state: str = ""


#: Has an endpoint do as it likes with a request.
Answer = Callable[[BaseHTTPRequestHandler], None]


def takes_it(asked: BaseHTTPRequestHandler) -> None:
    asked.send_response(200)
    asked.send_header("Content-Type", "application/x-protobuf")
    asked.send_header("Content-Length", "0")
    asked.end_headers()


@dataclass
class Collector:
    """``answer`` may be replaced while it runs."""

    url: str = ""
    answer: Answer = takes_it
    spans: list[Span] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def trace(self, id: str) -> list[Span]:
        return [span for span in list(self.spans) if span.trace == id]

    def awaited(self, id: str, names: set[str]) -> list[Span]:
        """A trace, once spans of all these names are there."""

        def missing() -> set[str]:
            return names - {span.name for span in self.trace(id)}

        eventually(lambda: not missing(), lambda: f"the spans {missing()} of {id} are sent")
        return self.trace(id)


@contextmanager
def collector() -> Iterator[Collector]:
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if kept.answer is takes_it:
                kept.spans += _spans(body)
            kept.paths.append(self.path)
            kept.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:  # who asked has gone
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(body: bytes) -> list[Span]:
    return [
        Span(
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.name,
            span.kind,
            {each.key: _value(each.value) for each in span.attributes},
            span.status.code == span.status.STATUS_CODE_ERROR,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            {each.key: _value(each.value) for each in of.resource.attributes},
            span.trace_state,
        )
        for of in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in of.scope_spans
        for span in scope.spans
    ]


def _value(value: object) -> Value:
    found: Value = getattr(value, value.WhichOneof("value"))  # type: ignore[attr-defined]
    return found


def assert_one_tree(spans: list[Span], above: str = ROOT) -> Span:
    """-> its root, which is a child of ``above``; each other span is below it, and within its time but for what a
    clock may be off."""
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans), "each was sent once"
    [root] = [span for span in spans if span.parent not in by_id]
    assert root.parent == above
    for span in spans:
        at, seen = span, set()
        while at is not root:
            assert at.id not in seen
            seen.add(at.id)
            at = by_id[at.parent]
        assert span.began <= span.ended
    return root


def below(spans: list[Span], name: str) -> set[str]:
    """Names of the children of the spans of this name."""
    ids = {span.id for span in spans if span.name == name}
    return {span.name for span in spans if span.parent in ids}
