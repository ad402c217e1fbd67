"""The ways to tell people of alerts. Each raises OSError when nobody could be told."""

from __future__ import annotations

import json
import logging
import smtplib
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import unquote, urlsplit

from distfs.config.reach import is_loopback
from distfs.config.settings import AlertingConfig

log = logging.getLogger("distfs.alerts")

#: Of silence, and of all it takes to tell somebody: who sends a byte now and then must not hold up the others.
_LIMIT_S, _ALL_S = 10.0, 30.0


@dataclass(frozen=True, slots=True)
class Told:
    """An alert as it was told."""

    alert: str  # its name, and what it is about
    severity: str
    summary: str
    command: str
    runbook: str
    since: float  # seconds since 1970


#: What is new, and what is over.
Way = Callable[[Sequence[Told], Sequence[Told]], None]


def ways(config: AlertingConfig) -> Mapping[str, Way]:
    """Those that are configured, and the log."""
    found: dict[str, Way] = {"log": _log}
    if config.webhook:
        found["webhook"] = lambda fresh, over: _post(config.webhook, fresh, over)
    if config.mail_to:
        found["mail"] = lambda fresh, over: _mail(config, fresh, over)
    return found


def _log(fresh: Sequence[Told], over: Sequence[Told]) -> None:
    for each in fresh:
        log.warning("alert %s: %s; run `%s`, see %s", each.alert, each.summary, each.command, each.runbook)
    for each in over:
        log.info("alert %s is over", each.alert)


def _post(url: str, fresh: Sequence[Told], over: Sequence[Told]) -> None:
    """As Alertmanager does, so that what takes its messages takes these."""
    for status, alerts in (("firing", fresh), ("resolved", over)):
        if not alerts:
            continue
        message = {
            "version": "4",
            "status": status,
            "receiver": "distfs",
            "groupKey": "{}",
            "truncatedAlerts": 0,
            "groupLabels": {},
            "commonLabels": {},
            "commonAnnotations": {},
            "externalURL": "",
            "alerts": [_entry(status, each) for each in alerts],
        }
        head = {"Content-Type": "application/json", "User-Agent": "distfs"}
        try:
            request = urllib.request.Request(url, json.dumps(message).encode(), head)  # noqa: S310 - checked: http
            with _cut_in_time() as dialled:
                _opener(dialled).open(request, timeout=_LIMIT_S).close()
        except (HTTPException, ValueError) as e:
            raise OSError("its answer is no HTTP, or its URL is none") from e


@contextmanager
def _cut_in_time() -> Iterator[Callable[[socket.socket], None]]:
    """-> to be given each socket: after ``_ALL_S`` seconds nothing more comes from it."""
    dialled: list[socket.socket] = []
    over = threading.Event()

    def add(sock: socket.socket) -> None:
        dialled.append(sock)
        if over.is_set():
            _cut(sock)

    def cut() -> None:
        over.set()
        for sock in dialled:
            _cut(sock)

    timer = threading.Timer(_ALL_S, cut)
    timer.daemon = True
    timer.start()
    try:
        yield add
    finally:
        timer.cancel()
    if over.is_set():  # what ends in the middle may look like an answer
        raise TimeoutError("it took too long")


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):  # by an SSLSocket's own, who reads would go on without TLS
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _opener(dialled: Callable[[socket.socket], None]) -> urllib.request.OpenerDirector:
    """As urllib's own, proxies and all; ``dialled`` is given each socket."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            dialled(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            dialled(self.sock)

    class OfPlain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> HTTPResponse:
            return self.do_open(Plain, req)

    class OfSecure(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> HTTPResponse:
            return self.do_open(Secure, req, context=ssl.create_default_context())

    return urllib.request.build_opener(OfPlain, OfSecure)


def _entry(status: str, told: Told) -> dict[str, object]:
    name, *labels = told.alert.split(" ")
    ends = datetime.now(UTC).isoformat() if status == "resolved" else "0001-01-01T00:00:00Z"
    return {
        "status": status,
        "labels": {
            "alertname": name,
            "severity": told.severity,
            **dict(label.split("=", 1) for label in labels),
        },
        "annotations": {"summary": told.summary, "command": told.command, "runbook_url": told.runbook},
        "startsAt": datetime.fromtimestamp(told.since, UTC).isoformat(),
        "endsAt": ends,
        "generatorURL": "",
        "fingerprint": told.alert,
    }


def _mail(config: AlertingConfig, fresh: Sequence[Told], over: Sequence[Told]) -> None:
    message = EmailMessage()
    message["From"], message["To"] = config.mail_from, config.mail_to
    first = (fresh or over)[0]
    message["Subject"] = f"distfs: {first.summary}" if fresh else f"distfs: over: {first.summary}"
    lines = [
        f"{each.alert}: {each.summary}\n  run: {each.command}\n  see: {each.runbook}\n" for each in fresh
    ]
    lines += [f"{each.alert} is over: {each.summary}\n" for each in over]
    message.set_content("\n".join(lines))
    with _cut_in_time() as dialled, _mail_server(config.smtp, dialled) as smtp:
        smtp.send_message(message)


def _mail_server(url: str, dialled: Callable[[socket.socket], None]) -> smtplib.SMTP:
    """Connected, and logged in to where the URL has a password. Raises OSError."""

    class Plain(smtplib.SMTP):
        def _get_socket(self, *place: Any) -> socket.socket:
            sock: socket.socket = super()._get_socket(*place)  # type: ignore[misc]
            dialled(sock)
            return sock

    class Secure(smtplib.SMTP_SSL):
        def _get_socket(self, *place: Any) -> socket.socket:
            sock: socket.socket = super()._get_socket(*place)  # type: ignore[misc]
            dialled(sock)
            return sock

    server, believed = urlsplit(url), ssl.create_default_context()
    host, port, secure = server.hostname or "", server.port or 0, server.scheme == "smtps"
    made = Secure(host, port, timeout=_LIMIT_S, context=believed) if secure else None
    with ExitStack() as stack:
        smtp = made or Plain(host, port, timeout=_LIMIT_S)
        stack.callback(smtp.close)
        smtp.ehlo_or_helo_if_needed()
        if not secure and smtp.has_extn("starttls"):
            smtp.starttls(context=believed)
            secure = True
            if smtp.sock is not None:
                dialled(smtp.sock)
        if server.username:
            if not (secure or is_loopback(host)):
                raise OSError("it has no TLS, and the password is told to nobody in plain text")
            smtp.login(unquote(server.username), unquote(server.password or ""))
        stack.pop_all()
        return smtp
