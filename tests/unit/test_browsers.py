"""What pages of others may not do through a browser: rows of Host, Origin and what else browsers send, as they do."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from distfs.config.file import parse
from distfs.config.settings import AllowedHost, Config, HostName, HttpConfig
from distfs.config.settings import Origin as OriginText
from distfs.errors import ConfigError, TooMany
from distfs.headers import host, origin, safety
from distfs.host.turned_away import _answer
from distfs.http_app import HttpApp, create_app
from distfs.routes.browsers import Hosts

LISTED = "https://app.example"
NAMES = (AllowedHost("Files.example"), AllowedHost("*.many.example"), AllowedHost("bücher.example"))
HTTP = HttpConfig(allowed_hosts=NAMES, cors_origins=(OriginText(LISTED),))


@pytest.fixture(scope="module")
def app() -> Iterator[HttpApp]:
    with closing(create_app(Config(http=HTTP))) as app:
        yield app


class Unread(io.BytesIO):
    """A body that nobody may read."""

    def read(self, *_: Any) -> bytes:
        raise AssertionError("the body was read before the request was refused")

    readinto = readline = read  # type: ignore[assignment]


def ask(app: HttpApp, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_LENGTH": "9" if method in ("POST", "PUT", "PATCH") else "",
        "HTTP_HOST": "localhost:8080",
        "wsgi.url_scheme": headers.get("scheme", "http"),
        "wsgi.input": Unread(),
    }
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    got: list[Any] = []

    def start_response(status: str, given: list[tuple[str, str]], exc_info: Any = None) -> Any:
        got[:] = status, given

    answer = app(environ, start_response)
    with closing(answer):  # type: ignore[type-var]
        body = b"".join(answer).decode()
    names = [name.lower() for name, _ in got[1]]
    assert len(names) == len(set(names))
    return int(got[0].split()[0]), dict(got[1]), body


# --- names ---------------------------------------------------------------------------------------

OURS = [
    "localhost",
    "LOCALHOST:8080",
    "localhost.:80",
    "app.localhost",
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.1",
    "0x7f.1",
    "2130706433",
    "[::1]",
    "[::1]:8080",
    "192.168.1.7:8080",
    "203.0.113.5",
    "[2001:db8::1]:80",
    "files.example",
    "FILES.EXAMPLE:443",
    "files.example.",
    "a.many.example",
    "a.b.many.example",
    "xn--bcher-kva.example",
]
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "files.example.evil.example",
    "notfiles.example",
    "many.example",
    "evilmany.example",
    "myserver",
    "1.2.3.4.nip.io",
    "app.localhost.evil",
]


@pytest.mark.parametrize("called", ["", *OURS])
def test_a_request_that_names_us_is_served(app: HttpApp, called: str) -> None:
    assert ask(app, "GET", "/healthz", {"Host": called})[0] == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("called", FOREIGN)
def test_a_request_for_another_name_is_refused(app: HttpApp, called: str, method: str) -> None:
    """A page of that name, resolved anew to an address of here, is our own to its browser, which lets it do all."""
    status, headers, body = ask(app, method, "/upload", {"Host": called, "Origin": f"http://{called}"})
    assert status == 421
    assert method == "HEAD" or "http.allowed_hosts" in body
    assert body.count("\n") <= 1
    assert safety.OURS.items() <= headers.items()


@pytest.mark.parametrize(
    ("listens", "called", "has"),
    [
        ("127.0.0.1", "myserver", False),
        ("0.0.0.0", "myserver:8080", True),  # no public DNS has it
        ("0.0.0.0", socket.gethostname(), True),
        ("::", f"{socket.gethostname().partition('.')[0]}.local", True),
        ("", "myserver", True),
        ("0.0.0.0", "files.corp.example", False),
        ("files.corp.example", "files.corp.example:8080", True),
        ("192.168.1.7", "evil.example", False),
        ("::1", "myserver", False),
        ("localhost", "myserver", False),
    ],
)
def test_off_loopback_names_that_are_in_no_public_dns_are_ours(listens: str, called: str, has: bool) -> None:
    assert Hosts(HttpConfig(host=HostName(listens))).has(called) is has


def test_any_name_is_ours_where_a_proxy_looks_at_it() -> None:
    assert Hosts(HttpConfig(allowed_hosts=(AllowedHost("*"),))).has("evil.example")


@pytest.mark.parametrize("name", ["127.0.0.1", "127.1", "0x7f.1", "1", "a.1", "a.0x", "::1", "fe80::1"])
def test_what_browsers_take_for_an_address_is_one(name: str) -> None:
    assert host.is_address(name)


@pytest.mark.parametrize("name", ["a", "1.a", "1.2.3.4.a1", "0x7f.a", "0xg", "", "a.٣"])
def test_what_browsers_look_up_is_a_name(name: str) -> None:
    assert not host.is_address(name)


# --- pages ---------------------------------------------------------------------------------------

#: As browsers send them, without what does not matter here (Accept, User-Agent, Sec-CH-UA ...).
BROWSERS: list[tuple[str, str, dict[str, str], bool]] = [
    (
        "Chrome: a form of another site",
        "POST",
        {
            "Origin": "https://evil.example",
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-User": "?1",
            "Sec-Fetch-Dest": "document",
            "Referer": "https://evil.example/",
            "Upgrade-Insecure-Requests": "1",
        },
        False,
    ),
    (
        "Chrome: fetch, no-cors",
        "POST",
        {
            "Origin": "https://evil.example",
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "no-cors",
            "Sec-Fetch-Dest": "empty",
        },
        False,
    ),
    (
        "Chrome: another port of this machine",
        "POST",
        {
            "Origin": "http://localhost:3000",
            "Sec-Fetch-Site": "same-site",
            "Sec-Fetch-Mode": "cors",
            "Sec-Fetch-Dest": "empty",
        },
        False,
    ),
    (
        "Chrome: a frame with sandbox, a data: URL, a file",
        "POST",
        {
            "Origin": "null",
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "iframe",
        },
        False,
    ),
    (
        "Safari before 16.4, an old Firefox: a form of another site",
        "POST",
        {"Origin": "https://evil.example"},
        False,
    ),
    ("Firefox: sendBeacon", "POST", {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, False),
    (
        "an extension",
        "PUT",
        {"Origin": "chrome-extension://abcdefghijklmnop", "Sec-Fetch-Site": "none"},
        False,
    ),
    ("no Origin, but another site", "DELETE", {"Sec-Fetch-Site": "cross-site"}, False),
    ("no Origin, but a neighbour", "DELETE", {"Sec-Fetch-Site": "same-site"}, False),
    (
        "own, it says, and of another site",
        "PUT",
        {"Origin": "http://localhost:8080", "Sec-Fetch-Site": "cross-site"},
        False,
    ),
    ("our name, another port", "PUT", {"Origin": "http://localhost"}, False),
    ("our name in another", "PUT", {"Origin": "http://localhost:8080.evil.example"}, False),
    ("our name behind an @", "PUT", {"Origin": "http://localhost:8080@evil.example"}, False),
    ("two", "PUT", {"Origin": "http://localhost:8080, http://evil.example"}, False),
    ("nothing", "PUT", {"Origin": ""}, False),
    ("a listed one, and more", "PUT", {"Origin": LISTED + ".evil.example"}, False),
    ("a listed one, plain", "PUT", {"Origin": LISTED.replace("https", "http")}, False),
    ("HTTPS here, plain HTTP there", "PUT", {"Origin": "http://localhost:8080", "scheme": "https"}, False),
    (
        "Chrome: our own page",
        "PUT",
        {"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
        True,
    ),
    ("Safari: our own page", "PUT", {"Origin": "http://localhost:8080"}, True),
    (
        "our own page, HTTPS at a proxy",
        "PUT",
        {"Host": "files.example", "Origin": "https://files.example"},
        True,
    ),
    (
        "the same, whose proxy adds a port",
        "PUT",
        {"Host": "files.example:443", "Origin": "https://files.example"},
        True,
    ),
    (
        "Chrome: a page that is listed",
        "PUT",
        {
            "Origin": LISTED,
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "cors",
            "Sec-Fetch-Dest": "empty",
        },
        True,
    ),
    ("typed by the user", "DELETE", {"Sec-Fetch-Site": "none"}, True),
    ("curl", "PUT", {}, True),
]


@pytest.mark.parametrize(
    ("method", "sent", "may"), [row[1:] for row in BROWSERS], ids=[row[0] for row in BROWSERS]
)
def test_a_page_of_others_changes_nothing_and_its_body_is_not_read(
    app: HttpApp, method: str, sent: dict[str, str], may: bool
) -> None:
    """What may go on comes to nothing here, at a path that is none."""
    status, headers, body = ask(app, method, "/nothing" if may else "/upload", sent)
    assert status == (404 if may else 403)
    assert may or "may not change anything" in body
    assert body.count("\n") == 1
    assert safety.OURS.items() <= headers.items()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "MKCOL"])
def test_nothing_but_reading_is_for_pages_of_others(app: HttpApp, method: str) -> None:
    assert ask(app, method, "/files", {"Origin": "null"})[0] == 403


KEPT = {"Authorization": "Basic OnRva2Vu"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (
            KEPT | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
            403,
        ),
        (KEPT | {"Sec-Fetch-Site": "same-site"}, 403),
        (KEPT | {"Origin": "https://evil.example"}, 403),
        (KEPT | {"Origin": "null"}, 403),
        ({"Authorization": "basic OnRva2Vu", "Origin": "null"}, 403),
        (KEPT | LINK | {"Sec-Fetch-Dest": "iframe"}, 403),
        (KEPT | LINK | {"Origin": "https://evil.example"}, 403),
        (KEPT | LINK, 200),
        (KEPT | {"Sec-Fetch-Site": "same-origin"}, 200),
        (KEPT | {"Sec-Fetch-Site": "none"}, 200),
        (KEPT | {"Origin": LISTED, "Sec-Fetch-Site": "cross-site"}, 200),
        (KEPT, 200),
        (
            {"Authorization": "Bearer x", "Origin": "https://evil.example"},
            200,
        ),  # no browser keeps that for anybody
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 200),
    ],
)
def test_a_page_of_others_reads_nothing_with_a_password_that_the_browser_keeps(
    app: HttpApp, sent: dict[str, str], status: int
) -> None:
    assert ask(app, "GET", "/healthz", sent)[0] == status


# --- CORS ----------------------------------------------------------------------------------------

PREFLIGHT = {
    "Access-Control-Request-Method": "PUT",
    "Access-Control-Request-Headers": "authorization,content-type",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Dest": "empty",
}


def test_a_page_that_is_listed_learns_what_it_may_send(app: HttpApp) -> None:
    status, headers, body = ask(app, "OPTIONS", "/upload/x", PREFLIGHT | {"Origin": LISTED})
    assert (status, body) == (204, "")
    assert headers["Access-Control-Allow-Origin"] == LISTED
    assert {"PUT", "DELETE"} <= set(headers["Access-Control-Allow-Methods"].split(", "))
    assert {"Authorization", "Content-Type", "Range"} <= set(
        headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize("path", ["/healthz", "/nothing"])
def test_a_page_that_is_listed_reads_answers_and_errors(app: HttpApp, path: str) -> None:
    _, headers, _ = ask(app, "GET", path, {"Origin": LISTED})
    assert headers["Access-Control-Allow-Origin"] == LISTED
    readable = {"X-Request-Id", "Repr-Digest", "ETag", "Content-Range", "Accept-Ranges", "Location"}
    assert readable <= set(headers["Access-Control-Expose-Headers"].split(", "))
    assert headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "page", [None, "null", "https://evil.example", LISTED + ":8443", "http://localhost:8080"]
)
def test_others_learn_nothing(app: HttpApp, page: str | None) -> None:
    sent = {} if page is None else {"Origin": page}
    _, headers, _ = ask(app, "GET", "/healthz", sent)
    assert not [name for name in headers if name.startswith("Access-Control")]
    assert headers["Vary"] == "Origin"  # or a cache would give them what it has for one that is listed
    if page is not None:
        assert ask(app, "OPTIONS", "/upload/x", sent | PREFLIGHT)[0] == 403


def test_nothing_is_shared_unless_it_is_configured() -> None:
    with closing(create_app(Config(http=replace(HTTP, cors_origins=())))) as app:
        status, headers, _ = ask(app, "OPTIONS", "/upload/x", PREFLIGHT | {"Origin": LISTED})
        assert status == 403
        assert not [name for name in headers if name.startswith(("Access-Control", "Vary"))]
        assert ask(app, "OPTIONS", "/upload", {})[0] == 405


# --- every answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["//evil.example/upload", "/download//evil.example", "/\\evil.example", "/upload/"]
)
def test_nobody_is_sent_elsewhere(app: HttpApp, path: str) -> None:
    status, headers, _ = ask(app, "GET", path, {})
    assert not 300 <= status < 400
    assert "Location" not in headers


def test_the_table_says_what_it_must() -> None:
    for row in (safety.OURS, safety.STORED, safety.PUBLIC):
        assert row["X-Content-Type-Options"] == "nosniff"
        assert row["Referrer-Policy"] == "no-referrer"
        assert row["X-Frame-Options"] == "DENY"
        assert row["Cross-Origin-Resource-Policy"] == (
            "cross-origin" if row is safety.PUBLIC else "same-origin"
        )
        policy = {part.split()[0]: part.split()[1:] for part in row["Content-Security-Policy"].split("; ")}
        assert policy["sandbox"] == []
        assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"]
        assert not {"script-src", "object-src", "connect-src", "form-action", "base-uri"} & policy.keys()


def test_whoever_is_turned_away_at_the_door_has_it_too() -> None:
    head = _answer(TooMany("too many")).partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert {f"{name}: {value}" for name, value in safety.OURS.items()} <= set(head)


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "given", "read"),
    [
        ("allowed_hosts", ["Files.example", "*.x.example", "*"], ("Files.example", "*.x.example", "*")),
        (
            "cors_origins",
            ["https://App.example:443", "http://localhost:3000"],
            (LISTED, "http://localhost:3000"),
        ),
        ("cors_origins", ["chrome-extension://abc"], ("chrome-extension://abc",)),
        ("cors_origins", "", ()),
    ],
)
def test_names_and_origins_are_read(key: str, given: object, read: tuple[str, ...]) -> None:
    assert getattr(parse({"http": {key: given}}).http, key) == read


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("allowed_hosts", ["files.example:8080"]),
        ("allowed_hosts", ["https://files.example"]),
        ("allowed_hosts", ["a*.example"]),
        ("allowed_hosts", "files.example"),
        ("cors_origins", ["*"]),
        ("cors_origins", ["null"]),
        ("cors_origins", ["https://app.example/"]),
        ("cors_origins", ["app.example"]),
        ("cors_origins", ["https://user@app.example"]),
    ],
)
def test_what_is_no_name_or_origin_is_refused(key: str, given: object) -> None:
    with pytest.raises(ConfigError, match=f"http.{key}"):
        parse({"http": {key: given}})


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("HTTPS://App.Example:443", "https://app.example"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://a:81", "http://a:81"),
        ("null", None),
        ("http://", None),
        ("http://a/b", None),
        ("http://a b", None),
        ("http://a:99999", None),
        ("://a", None),
    ],
)
def test_an_origin_is_spelt_as_browsers_do(text: str, read: str | None) -> None:
    assert origin.normal(text) == read
