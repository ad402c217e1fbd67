"""What each service says of itself: its connections to every node, how quick those are, and what it holds."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from distfs.access.token import hash_of
from distfs.commands.display import counted, size, table
from distfs.config.settings import Config
from distfs.errors import Unavailable
from distfs.model import url_here
from distfs.process.redact import visible
from distfs.process.secret_file import with_files

#: A service that says nothing for so long is not waited for.
SERVICE_WITHIN_S = 2.0
_MOST_BYTES = 1 << 22
#: The same of one that looks through much before it says something.
LINES_WITHIN_S, _PIECE = 630.0, 64 << 10
#: Where the token is that commands show a service, or act by.
TOKEN = "DISTFS_TOKEN"  # noqa: S105 - where it is

_COUNTS = ["lent", "idle", "waiting", "made", "reused", "stale", "broken"]
_HEADS = ["NODE", "ADDRESS", *map(str.upper, _COUNTS), "LATENCY", "P95", "BREAKER"]


_SCHEMES = ("http", "https")
_PLACE = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")


def service_url(text: str) -> str:
    """A flag's text as the URL of a service. Raises argparse.ArgumentTypeError."""
    try:
        place = urlsplit(text)
        well = place.scheme in _SCHEMES and place.hostname and (place.port is None or place.port > 0)
        well = well and "@" not in place.netloc  # a login, which a service has not, and `status` would show
    except ValueError:
        well = False
    if not well:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no URL such as http://127.0.0.1:8080 or http://[::1]:8080"
        )
    return text


def service_place(text: str) -> str:
    """The same, or HOST:PORT as an alert names a service. Raises argparse.ArgumentTypeError."""
    if "://" not in text and _PLACE.fullmatch(text):
        service_url(f"http://{text}")
        return text
    return service_url(text)


def as_url(place: str, config: Config) -> str:
    """What ``service_place`` took; one without a scheme has that of our own service, so that no token goes in plain
    text where that does not."""
    return place if "://" in place else f"{'https' if config.tls.mode == 'on' else 'http'}://{place}"


def configured_url(config: Config) -> str:
    """Of the service that this configuration is of, as this machine reaches it."""
    return url_here(config.http.host, config.http.port, "https" if config.tls.mode == "on" else "http")


def _connect(url: str, ca: str, within: float) -> HTTPConnection:
    """Raises OSError for a file of an authority that cannot be read."""
    place = urlsplit(url)
    if place.scheme == "http":
        return HTTPConnection(place.netloc, timeout=within)
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(ca)
    return HTTPSConnection(place.netloc, timeout=within, context=context)


def ask_service(url: str, ca: str = "", within: float = SERVICE_WITHIN_S) -> dict[str, Any]:
    """What ``GET /status`` answers, with ``url``; or ``url`` and ``error``, why nothing did. Never raises.

    ``ca``: a file of an authority that is believed beside the system's. ``within``: of silence.
    """
    try:
        told = json.loads(_ask(url, "/status", ca, within))
    except (OSError, HTTPException, ValueError, _Refused) as e:
        return {"url": url, "error": _why(e)}
    if isinstance(told, dict) and {"memory", "uploads", "nodes"} <= told.keys():
        return {"url": url} | told
    return {"url": url, "error": "it answers 200, as no distfs service does"}


def ask_text(url: str, path: str, ca: str = "", within: float = SERVICE_WITHIN_S) -> str:
    """What ``GET path`` answers; or why nothing did. Never raises. ``ca``, ``within``: as ``ask_service``."""
    try:
        return _ask(url, path, ca, within).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError, _Refused) as e:
        return f"service {url} tells nothing: {_why(e)}\n"


def ask_lines(url: str, path: str, ca: str = "") -> Iterator[bytes]:
    """The lines that ``GET path`` answers, as they come. Raises Unavailable."""
    told, more = "tells nothing", "; start it, or correct its --service"
    try:
        with _answer(url, path, ca, LINES_WITHIN_S, asks=True) as response:
            told, more, rest = "does not tell all", "; ask it again", b""
            while piece := response.read1(_PIECE):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
    except (OSError, HTTPException, ValueError, _Refused) as e:
        remedy = "" if isinstance(e, (_Refused, ssl.SSLCertVerificationError)) else more
        raise Unavailable(f"service {url} {told}: {_why(e)}{remedy}") from e


class _Refused(Exception):
    """Why a service did not tell."""


def _ask(url: str, path: str, ca: str, within: float) -> bytes:
    """Raises OSError, HTTPException, ValueError, _Refused."""
    with _answer(url, path, ca, within) as response:
        return response.read(_MOST_BYTES)


@contextlib.contextmanager
def _answer(url: str, path: str, ca: str, within: float, *, asks: bool = False) -> Iterator[HTTPResponse]:
    """Raises OSError, HTTPException, ValueError, _Refused. ``within``: of silence; ``asks``: what it is asked may be
    refused, in words."""
    place = urlsplit(url)
    with contextlib.closing(_connect(url, ca, within)) as connection:
        connection.request("GET", f"{place.path.rstrip('/')}{path}", headers=_login())
        response = connection.getresponse()
        if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise _Refused(f"it tells administrators: set {TOKEN} to the token of one")
        if asks and response.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE):
            raise _Refused(visible(response.read(_PIECE).decode("utf-8", "replace").strip()))
        if response.status != HTTPStatus.OK:
            raise _Refused(f"it answers {response.status}, as no distfs service does")
        yield response


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message}: set SSL_CERT_FILE to whose certificates are believed"
    return str(error) or type(error).__name__


def own_token() -> str:
    """Of whoever gives the command; empty: none. Raises ConfigError."""
    return with_files(os.environ).get(TOKEN, "").strip()


def _login() -> dict[str, str]:
    """Raises ValueError."""
    token = own_token()
    if token and not hash_of(token):
        raise ValueError(f"{TOKEN} is no token")  # and is shown to nobody
    return {"Authorization": f"Bearer {token}"} if token else {}


def in_words(told: Mapping[str, Any]) -> str:
    """An answer of ``ask_service`` for people."""
    head = f"service {told['url']}"
    if "error" in told:
        return f"{head} tells nothing: {told['error']} (--service URL asks another)"
    memory, waiting = told["memory"], told.get("waiting_for_bandwidth", {})
    hedging = told["nodes"]["hedging"]
    said = [
        f"{counted(told['uploads']['large_uploads'], 'large upload')} in flight",
        f"{size(memory['blocks'] + memory['spooled'])} of {size(memory['limit'])} of its memory in use",
        f"{hedging['hedged']} of {hedging['reads']} reads asked twice",
    ]
    if any(waiting.values()):
        said.append(f"{waiting['in']} uploads and {waiting['out']} downloads wait for bandwidth")
    if len(pids := told.get("processes", {}).get("pids", [])) > 1:
        said.append(f"{len(pids)} processes ({', '.join(map(str, pids))})")
    if told.get("draining"):
        said.append("it is stopping")
    rows = [
        (
            name,
            node["address"],
            *(str(node["connections"][count]) for count in _COUNTS),
            f"{node['latency_ms']} ms",
            f"{node['latency_p95_ms']} ms",
            node["breaker"],
        )
        for name, node in told["nodes"]["nodes"].items()
    ]
    lines = [f"{head}: {', '.join(said)}"]
    return "\n".join([*lines, table(_HEADS, rows)] if rows else lines)
