"""Who shows wrong tokens on a connection again and again is read less and less; who shows a right one is let in."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest

from distfs.access.token import new_token
from distfs.host import connection
from distfs.host.server import Server
from tests.contract.litter import eventually
from tests.integration.guarded import User, alice, service
from tests.integration.raw_http import Environ, RawClient, request, serving
from tests.service import TestService

__all__ = ["alice", "service"]

FOR_EVER, SOON = 3600.0, 0.02


def drowsy(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """Wants a rest after /rest."""
    if environ["PATH_INFO"] == "/rest":
        environ["distfs.rest"]()
    path = environ["PATH_INFO"].encode()
    start_response("200 OK", [("Content-Length", str(len(path)))])
    return [path]


def rests(monkeypatch: pytest.MonkeyPatch, first: float, most: float = FOR_EVER) -> None:
    monkeypatch.setattr(connection, "REST_FIRST_S", first)
    monkeypatch.setattr(connection, "REST_MOST_S", most)


def has_something(client: RawClient) -> bool:
    return bool(select.select([client.socket], [], [], 0)[0])


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(drowsy) as server:
        yield server


@pytest.mark.parametrize("together", [True, False])
def test_who_rests_is_not_read_and_others_are_answered(
    server: Server, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests(monkeypatch, FOR_EVER)
    with RawClient(server) as resting, RawClient(server) as other:
        after = request(path="/more")
        resting.send(request(path="/rest") + (after if together else b""))
        assert resting.answer().body == b"/rest"
        resting.send(b"" if together else after)
        for _ in range(50):
            other.send(request(path="/other"))
            assert other.answer().body == b"/other"
        assert not has_something(resting)
        eventually(lambda: not server._loop.workers.busy(), "nobody waits with it")


@pytest.mark.parametrize("together", [True, False])
def test_who_has_rested_goes_on(server: Server, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rests(monkeypatch, SOON, SOON)
    requests = [request(path=path) for path in ("/rest", "/rest", "/more", "/rest", "/end")]
    with RawClient(server) as client:
        if together:
            client.send(*requests)
        for each in requests:
            client.send(b"" if together else each)
            assert client.answer().body == each.split()[1]


def test_each_rest_is_longer_until_one_request_needs_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests(monkeypatch, SOON, 5 * SOON)
    with RawClient(server) as client:

        def rested_after(path: str, seconds: float) -> None:
            client.send(request(path=path))
            assert client.answer().body == path.encode()
            [ours] = server._loop.connections.values()
            eventually(lambda: (ours.rests, ours._rested) == (0, seconds), f"it has rested {seconds} s")

        rested_after("/", 0)
        for seconds in (SOON, 2 * SOON, 4 * SOON, 5 * SOON, 5 * SOON):
            rested_after("/rest", seconds)
        rested_after("/", 0)
        rested_after("/rest", SOON)


def test_who_leaves_meanwhile_is_forgotten(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    rests(monkeypatch, SOON)
    with RawClient(server) as client:
        client.send(request(path="/rest"))
        client.answer()
    eventually(lambda: not server._loop.connections, "it is closed")
    assert server._loop._resting.first() == float("inf")


# --- what the service makes of it -----------------------------------------------------------------


def asked(on: HTTPConnection, token: str, **headers: str) -> int:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    on.request("GET", "/files", headers={"Authorization": f"Bearer {token}", **given})
    answer = on.getresponse()
    answer.read()
    return answer.status


def test_a_connection_by_which_too_many_wrong_tokens_came_is_read_no_more_and_others_are(
    service: TestService, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests(monkeypatch, FOR_EVER)
    with closing(service.connect()) as wrong, closing(service.connect()) as right:
        while asked(wrong, new_token()) == 401:
            pass
        wrong.request("GET", "/files", headers={"Authorization": f"Bearer {new_token()}"})
        for _ in range(20):
            assert asked(right, alice.token) == 200, "from the same address"
        assert not select.select([wrong.sock], [], [], 0)[0]


def test_a_proxy_s_connection_is_never_put_to_rest(
    service: TestService, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other people's requests come by it."""
    rests(monkeypatch, FOR_EVER)
    with closing(service.connect()) as shared:
        for said in ("X_Forwarded_For", "Forwarded", "Via"):
            by = {said: "192.0.2.1"}
            eventually(lambda by=by: asked(shared, new_token(), **by) == 429, "too many")  # type: ignore[misc]
            assert asked(shared, new_token(), **by) == 429
            assert asked(shared, alice.token, **by) == 200
