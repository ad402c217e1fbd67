"""HTTP/1 parsers of others, and ours, told what came: h11, which is strict Python, and llhttp, which is Node's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h11
import httptools

from distfs.config.settings import HttpConfig
from distfs.host.head import Head, key
from distfs.host.http1 import Parser
from distfs.host.http1_events import End, Failed, OtherProtocol, Pause, State

#: Of one head, for those that have a limit of their own.
ROOM = 1 << 20
_ENCODED = {octet: f"%{octet:02X}" for octet in range(0x80, 0x100)}


@dataclass
class Message:
    """A request as all of them can tell it."""

    method: str = ""
    target: str = ""
    version: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Told:
    """The whole requests that were in some bytes, and what ended it; empty: nothing was wrong with the rest."""

    messages: list[Message] = field(default_factory=list)
    error: str = ""


def ours(data: bytes, config: HttpConfig) -> Told:
    parser, told, message = Parser(config), Told(), Message()
    parser.receive(data)
    while not isinstance(event := parser.next_event(), Pause):
        if isinstance(event, Head):
            headers = dict(event.headers)
            message = Message(event.method, event.target, event.version, headers)
        elif isinstance(event, memoryview):
            message.body += event
        elif isinstance(event, End):
            told.messages.append(message)
            if parser.state is State.LAST:
                break
            parser.next_request()
        elif isinstance(event, Failed):
            told.error = str(event.error)
            break
        elif isinstance(event, OtherProtocol):
            told.error = f"it is {event.name}"
            break
    return told


def by_h11(data: bytes) -> Told:
    told, message = Told(), Message()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=ROOM)
    connection.receive_data(data)
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                message = _message(event.method, event.target, event.http_version, event.headers.raw_items())
            elif isinstance(event, h11.Data):
                message.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                told.messages.append(message)
                connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    told.error = f"the connection ends with HTTP/{message.version}"
                    break
                connection.start_next_cycle()
            else:
                break
    except h11.RemoteProtocolError as e:
        told.error = str(e)
    return told


class _Callbacks:
    def __init__(self, told: Told) -> None:
        self.told = told
        self.parser: Any = None
        self.url, self.body, self.headers = b"", b"", list[tuple[bytes, bytes]]()
        self.in_head = True

    def on_message_begin(self) -> None:
        self.url, self.body, self.headers, self.in_head = b"", b"", [], True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        version = self.parser.get_http_version().encode()
        message = _message(self.parser.get_method(), self.url, version, self.headers)
        message.body = self.body
        self.told.messages.append(message)


def by_llhttp(data: bytes) -> Told:
    told = Told()
    callbacks = _Callbacks(told)
    callbacks.parser = httptools.HttpRequestParser(callbacks)
    try:
        callbacks.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        told.error = "upgrade"
    except httptools.HttpParserError as e:
        told.error = str(e)
    return told


def _message(method: bytes, target: bytes, version: bytes, headers: list[tuple[bytes, bytes]]) -> Message:
    """In our words: several headers of a name as one, none with an underscore, the host of a whole URL."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if b"_" not in name:
            found.setdefault(key(name.decode("latin-1")), []).append(value.strip(b" \t").decode("latin-1"))
    text = target.decode("latin-1").translate(_ENCODED)
    joined = {name: ", ".join(values) for name, values in found.items()}
    if "://" in text.partition("?")[0] and not text.startswith("/"):
        rest = text.partition("://")[2]
        joined["HTTP_HOST"] = rest.partition("/")[0].partition("?")[0]
    if (length := joined.get("CONTENT_LENGTH", "").partition(",")[0]).isdecimal():
        joined["CONTENT_LENGTH"] = str(int(length))
    return Message(method.decode(), text, version.decode(), joined)
