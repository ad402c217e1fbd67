"""Requests one after another over kept connections, and how long each took."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from distfs.errors import Corrupt, Unavailable

_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds, of so many requests."""

    count: int
    rate: float  # requests a second
    p50_ms: float
    p99_ms: float
    max_ms: float

    def row(self) -> list[str]:
        return [f"{self.rate:.0f}", f"{self.p50_ms:.2f}", f"{self.p99_ms:.2f}", f"{self.max_ms:.1f}"]


HEADINGS = ["requests/s", "median ms", "99 % ms", "longest ms"]


def put(url: str, contents: Sequence[bytes], clients: int) -> tuple[list[str], Latencies]:
    """Upload each -> their UUIDs, and how it went."""
    return _all(url, [("PUT", "/upload/x", content) for content in contents], clients)


def get(url: str, wanted: Sequence[tuple[str, bytes]], clients: int) -> Latencies:
    """Download each UUID. Raises Corrupt when one is not the bytes it stands for."""
    bodies, latencies = _all(url, [("GET", f"/download/{uuid}", b"") for uuid, _ in wanted], clients, True)
    for (uuid, content), body in zip(wanted, bodies, strict=True):
        if body != content.hex():
            raise Corrupt(f"{uuid} did not come back as it was sent")
    return latencies


def _all(
    url: str, requests: Sequence[tuple[str, str, bytes]], clients: int, binary: bool = False
) -> tuple[list[str], Latencies]:
    answers = [""] * len(requests)
    seconds = [0.0] * len(requests)
    errors: list[Unavailable] = []

    def work(first: int) -> None:
        try:
            with closing(_connection(url)) as connection:
                for number in range(first, len(requests), clients):
                    began = time.perf_counter()
                    body = ask(connection, *requests[number])
                    seconds[number] = time.perf_counter() - began
                    answers[number] = body.hex() if binary else body.decode().strip()
        except Unavailable as e:
            errors.append(e)

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise Unavailable(f"{url}: {errors[0]}")
    return answers, _latencies(seconds, time.perf_counter() - began)


def _latencies(seconds: Sequence[float], elapsed: float) -> Latencies:
    ranked = sorted(each * 1e3 for each in seconds)
    p99 = ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]
    return Latencies(len(ranked), len(ranked) / elapsed, statistics.median(ranked), p99, ranked[-1])


def _connection(url: str) -> http.client.HTTPConnection:
    place = urlsplit(url)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=_PATIENCE_S)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"") -> bytes:
    """-> the body of a good answer. Raises Unavailable."""
    try:
        connection.request(method, path, body or None)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as e:
        raise Unavailable(f"{method} {path}: {e!r}") from e
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise Unavailable(f"{method} {path}: {response.status} {answer.decode(errors='replace').strip()}")
    return answer
