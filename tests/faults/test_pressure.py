"""Too many clients, and slow ones: real processes, counted from outside.

TEST_PRESSURE=64MiB runs the large one with uploads of that size; by default they are of 4 MiB.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from distfs.config.file import parse_bytes
from distfs.process import descriptors
from tests.cluster.harness import Cluster, MakeCluster
from tests.contract.litter import eventually
from tests.faults.slow_clients import CHUNKED_BODY, HEADERS, LARGE_BODY, SMALL_BODY, reader, slow_clients

#: With others that take all of the machine or measure it, one after another.
pytestmark = pytest.mark.xdist_group("heavy")

MIB = 1 << 20
SLOW, UPLOADS = 500, 64
SIZE = parse_bytes(os.environ.get("TEST_PRESSURE", "4MiB"))

BUDGET = 64 * MIB
#: Of the process beside the budget, at the height of it: some 500 threads, one for each slow client that sends or
#: reads much, with what each holds to receive into or could not send yet.
BESIDE = 64 * MIB
CONFIG: dict[str, dict[str, object]] = {
    "storage": {"memory_budget": BUDGET, "window": "8MiB"},
    "log": {"level": "WARNING"},
    "http": {"max_uploads": 600, "client_stall_timeout": "60s"},
}


#: Threads and connections that are kept for reuse: how many of them a burst calls for is chance. A leak would be
#: one for each of hundreds of clients.
KEPT = 40


def address(cluster: Cluster) -> tuple[str, int]:
    place = urlsplit(cluster.url)
    return str(place.hostname), int(place.port or 0)


def held(cluster: Cluster) -> dict[str, int]:
    """Threads and descriptors of the service."""
    process = Path("/proc") / str(cluster.service.pid)
    return {
        "threads": len(list((process / "task").iterdir())),
        "files": len(list((process / "fd").iterdir())),
    }


def memory(cluster: Cluster, field: str) -> int:
    """Bytes, as the system counts them: VmRSS now, VmHWM at its height."""
    text = (Path("/proc") / str(cluster.service.pid) / "status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field))


def status(cluster: Cluster) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(cluster.request("GET", "/status").body)
    return found


def assert_calm(cluster: Cluster, before: dict[str, int]) -> None:
    """Nothing of it is left: no byte, upload or reservation, no thread or descriptor but those kept for reuse."""

    def is_calm() -> bool:
        told = status(cluster)
        busy = any(told["uploads"].values()) or told["memory"]["blocks"] or told["memory"]["spooled"]
        return not busy and all(now <= before[what] + KEPT for what, now in held(cluster).items())

    try:
        eventually(is_calm, "the service is as it was")
    except AssertionError as e:
        raise AssertionError(f"{e}: {before}; it holds {held(cluster)}, {status(cluster)}") from e


class Watch:
    """Asks /healthz all the time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._stop = cluster, threading.Event()
        self.answers: list[int] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                with contextlib.closing(self._cluster.connect(timeout=10)) as connection:
                    connection.request("GET", "/healthz")
                    self.answers.append(connection.getresponse().status)
            except (OSError, http.client.HTTPException):
                self.answers.append(0)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def is_stored(cluster: Cluster, body: bytes) -> bool:
    """Whether it was taken; a busy service may tell a client to come again."""
    answer = cluster.request("PUT", "/upload/warm", body)
    assert answer.status == 201 or (answer.status == 503 and answer.headers["retry-after"]), answer.text
    return answer.status == 201


@contextmanager
def warmed_up(cluster: Cluster) -> Iterator[dict[str, int]]:
    """-> what the service holds at rest, when every thread and connection it keeps has been made once."""
    body = random.Random(1).randbytes(3 * MIB)
    with ThreadPoolExecutor(UPLOADS) as clients:
        list(
            clients.map(lambda _: eventually(lambda: is_stored(cluster, body), "stored"), range(2 * UPLOADS))
        )
    eventually(lambda: not any(status(cluster)["uploads"].values()), "it rests")
    yield held(cluster)


def all_kinds(cluster: Cluster) -> list[bytes]:
    large = cluster.upload(random.Random(2).randbytes(32 * MIB), "large")  # more than sockets hold
    return [HEADERS, SMALL_BODY, LARGE_BODY, CHUNKED_BODY, reader(large)]


def test_five_hundred_slow_clients_stop_neither_uploads_nor_health_checks(make_cluster: MakeCluster) -> None:
    """Of every kind. Each that sends or reads much has a thread, and the others find theirs."""
    cluster = make_cluster(config=CONFIG)
    small, large = b"small", random.Random(3).randbytes(20 * MIB)
    kinds = all_kinds(cluster)
    with warmed_up(cluster) as before, Watch(cluster) as health:
        with slow_clients(address(cluster), SLOW, kinds) as slow:
            eventually(lambda: held(cluster)["files"] > before["files"] + SLOW, "all of them are connected")
            for _ in range(5):
                assert cluster.upload(small)
            uuid = cluster.upload(large)
            assert cluster.request("GET", f"/files/{'0' * 36}").status == 400
            assert json.loads(cluster.request("GET", f"/files/{uuid}").body)["size"] == len(large)
            assert cluster.request("DELETE", f"/files/{cluster.upload(small)}").status == 204
            assert slow.ended == 0, "they are still there"
        assert_calm(cluster, before)
        assert cluster.download(uuid) == large
    assert set(health.answers) == {200}


def test_a_thousand_clients_and_more_that_send_a_byte_a_second_cost_little_and_hold_up_nobody(
    make_cluster: MakeCluster,
) -> None:
    """Heads and small bodies that do not end, and as many large ones as may be. The small ones are so many that a
    block of memory for each would be more than there is."""
    descriptors.raise_limit()
    count = 1500
    cluster = make_cluster(
        config={
            **CONFIG,
            "http": {**CONFIG["http"], "max_connections": count + 200, "client_stall_timeout": "10min"},
        }
    )
    kinds = [HEADERS] + [SMALL_BODY] * 8 + [LARGE_BODY]
    large = random.Random(5).randbytes(5 * MIB)
    with warmed_up(cluster) as before, Watch(cluster) as health:
        with slow_clients(address(cluster), count, kinds, pause=1) as slow:
            eventually(lambda: held(cluster)["files"] > before["files"] + count, "all of them are connected")
            for _ in range(3):
                assert cluster.download(cluster.upload(large)) == large
            assert held(cluster)["threads"] < before["threads"] + count // 10 + 2 * KEPT
            assert memory(cluster, "VmRSS") < BUDGET + 2 * BESIDE
            assert slow.ended == 0, "they are still there"
        assert_calm(cluster, before)
    assert set(health.answers) == {200}


def test_slow_clients_are_ended(make_cluster: MakeCluster) -> None:
    """Each kind, by its rate: each does send or is asked a byte now and then."""
    http_settings: dict[str, object] = {"client_stall_timeout": "2s", "client_min_rate": "16KiB/s"}
    cluster = make_cluster(config={**CONFIG, "http": {**CONFIG["http"], **http_settings}})
    kinds = all_kinds(cluster)
    count = SLOW // 2  # each keeps a worker for the time it is given
    with warmed_up(cluster) as before, slow_clients(address(cluster), count, kinds) as slow:
        eventually(lambda: slow.ended == count, "every one of them is ended", 240)
        assert_calm(cluster, before)


def test_many_large_uploads_at_once_stay_within_the_memory_budget(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=CONFIG)
    at_start = memory(cluster, "VmRSS")
    body = random.Random(4).randbytes(SIZE)
    kinds = all_kinds(cluster)
    with warmed_up(cluster) as before, Watch(cluster) as health:
        with slow_clients(address(cluster), SLOW, kinds), ThreadPoolExecutor(UPLOADS) as clients:
            answers = list(clients.map(lambda _: upload(cluster, body), range(UPLOADS)))
            peak, usage = memory(cluster, "VmHWM"), status(cluster)["memory"]
        assert_calm(cluster, before)
        assert usage["most"] <= BUDGET
        told = f"{at_start >> 20} MiB at the start, {peak >> 20} at its height, {usage}"
        print(told)
        assert peak <= at_start + BUDGET + BESIDE, told
        done = [text.strip() for code, _, text in answers if code == 201]
        refused = [(code, after) for code, after, _ in answers if code != 201]
        assert all(code == 503 and int(after or 0) > 0 for code, after in refused), refused
        assert len(done) >= UPLOADS // 2
        for uuid in done[:: len(done) // 4]:
            assert cluster.download(uuid) == body
    assert set(health.answers) == {200}


def upload(cluster: Cluster, body: bytes) -> tuple[int, str | None, str]:
    """-> status, Retry-After, text."""
    with contextlib.closing(cluster.connect(timeout=300)) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("PUT", "/upload/pressure", body)
        response = connection.getresponse()
        return response.status, response.headers["Retry-After"], response.read().decode()
