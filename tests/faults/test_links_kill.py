"""A link for so many downloads, at two services that are killed: it gives so many, and never one more."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from distfs.access.db import TokenDB
from distfs.access.link import unseal
from distfs.access.terms import read_terms
from distfs.deadline import Deadline
from tests.cluster.harness import Cluster, MakeCluster, Process
from tests.cluster.operating import QUICK
from tests.contract.litter import eventually

DATA = os.urandom(200_000)


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    return make_cluster(config={**QUICK, "auth": {"mode": "on"}, "http": {"processes": 2}})


@pytest.fixture
def other(cluster: Cluster) -> Iterator[str]:
    """The address of another service of the same cluster."""
    argv = [sys.executable, "-m", "distfs", "serve", "--port", "0"]
    process = Process("other", argv, cluster.folder, cluster.folder / "other.log")
    process.start()
    try:
        yield urlsplit(process.stdout.readline().strip()).netloc
    finally:
        process.stop()


def get(place: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(place, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def a_link(cluster: Cluster, **asked: object) -> str:
    """To a file of DATA, as a path."""
    terms = read_terms({"owner": "alice", "scopes": ["upload", "download"]})
    _, token = TokenDB(cluster.meta).create(terms, Deadline(60))
    headers = {"Authorization": f"Bearer {token}"}
    uuid = cluster.request("PUT", "/upload/a", DATA, headers).text.strip()
    made = cluster.request("POST", f"/files/{uuid}/links", json.dumps(asked).encode(), headers)
    assert made.status == 201, made.text
    parts = urlsplit(made.text.strip())
    return f"{parts.path}?{parts.query}"


def taken(cluster: Cluster) -> int:
    """Uses of all links, by MetaDB."""
    link = cluster.meta.connect(Deadline(60))
    try:
        rows = link.raw.run("SELECT coalesce(sum(cardinality(uses)), 0) FROM link")
    finally:
        link.close()
    return int(rows[0][0])


def test_twenty_clients_of_two_services_download_five_times_exactly(cluster: Cluster, other: str) -> None:
    path = a_link(cluster, downloads=5)
    both = (urlsplit(cluster.url).netloc, other)
    start = threading.Barrier(20)

    def download(number: int) -> tuple[int, bytes]:
        start.wait()
        return get(both[number % 2], path)

    with ThreadPoolExecutor(20) as together:
        answers = list(together.map(download, range(20)))
    assert sorted(status for status, _ in answers) == [200] * 5 + [403] * 15
    assert [data for status, data in answers if status == 200] == [DATA] * 5
    assert {data for status, data in answers if status == 403} == {
        b"this link was used as often as it may be: ask for a new one\n"
    }


def test_killed_between_the_count_and_the_bytes_a_download_counts(cluster: Cluster) -> None:
    path, before = a_link(cluster, downloads=3), taken(cluster)
    for i in range(3):
        cluster.pause_node(i)  # so that no byte comes
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(get, urlsplit(cluster.url).netloc, path)
        eventually(lambda: taken(cluster) == before + 1, "the download is counted")
        assert not asked.done()
        cluster.kill_service()
        with pytest.raises((OSError, http.client.HTTPException)):
            asked.result()
    for i in range(3):
        cluster.resume_node(i)
    cluster.start_service()
    place = urlsplit(cluster.url).netloc
    assert [get(place, path)[0] for _ in range(4)] == [200, 200, 403, 403]


def test_who_hangs_up_before_a_byte_was_sent_has_used_nothing(cluster: Cluster) -> None:
    path = a_link(cluster, downloads=1)
    place = urlsplit(cluster.url).netloc
    for i in range(3):
        cluster.pause_node(i)
    connection = http.client.HTTPConnection(place, timeout=60)
    connection.request("GET", path)
    eventually(lambda: taken(cluster) == 1, "the download is counted")
    connection.close()
    eventually(lambda: taken(cluster) == 0, "it is given back")
    for i in range(3):
        cluster.resume_node(i)
    cluster.wait_ready()
    assert [get(place, path)[0] for _ in range(2)] == [200, 403]


def test_the_text_names_the_token_and_holds_nothing_else_to_go_by(cluster: Cluster) -> None:
    path = a_link(cluster)
    sealed = unseal(path.partition("?link=")[2])
    assert sealed is not None
    logs = cluster.logs() + "".join(each.read_text() for each in cluster.folder.glob("*.log"))
    assert get(urlsplit(cluster.url).netloc, path) == (200, DATA)
    assert path.partition("?link=")[2] not in logs
