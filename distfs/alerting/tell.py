"""The ways to tell people of alerts. Each raises OSError when nobody could be told."""

from __future__ import annotations

import json
import logging
import smtplib
import ssl
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from http.client import HTTPException
from urllib.parse import unquote, urlsplit

from distfs.config.reach import is_loopback
from distfs.config.settings import AlertingConfig

log = logging.getLogger("distfs.alerts")

_LIMIT_S = 10.0


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
            urllib.request.urlopen(request, timeout=_LIMIT_S).close()  # noqa: S310
        except (HTTPException, ValueError) as e:
            raise OSError("its answer is no HTTP, or its URL is none") from e


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
    server = urlsplit(config.smtp)
    host, port = server.hostname or "", server.port or 0
    believed = ssl.create_default_context()
    secure = server.scheme == "smtps"
    made = smtplib.SMTP_SSL(host, port, timeout=_LIMIT_S, context=believed) if secure else None
    with made or smtplib.SMTP(host, port, timeout=_LIMIT_S) as smtp:
        smtp.ehlo_or_helo_if_needed()
        if not secure and smtp.has_extn("starttls"):
            smtp.starttls(context=believed)
            secure = True
        if server.username:
            if not (secure or is_loopback(host)):
                raise OSError("it has no TLS, and the password is told to nobody in plain text")
            smtp.login(unquote(server.username), unquote(server.password or ""))
        smtp.send_message(message)
