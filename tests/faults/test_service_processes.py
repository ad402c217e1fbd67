"""A service of several processes on one port: one is killed, all are told to stop. Real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests import nursery
from tests.cluster.harness import Cluster, MakeCluster, clean_environment
from tests.contract.litter import eventually
from tests.postgres import run_sql
from tests.processes import has_ended

MIB = 1 << 20
BODY = random.Random(5).randbytes(3 * MIB)
SMALL_BLOCKS = {"block_size": "64KiB", "slice_size": "256KiB", "window": "1MiB", "memory_budget": "16MiB"}
PROCESSES = 3
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    return make_cluster(config=settings())


def settings(**http: object) -> dict[str, dict[str, object]]:
    return {"http": {"processes": PROCESSES, **http}, "storage": dict(SMALL_BLOCKS)}


def children(cluster: Cluster) -> list[int]:
    """Those that serve now."""
    return [p.pid for p in psutil.Process(cluster.service.pid).children() if not has_ended(p)]


def who_has(cluster: Cluster, connection: http.client.HTTPConnection) -> int:
    """Which process accepted a connection: the one that has its other end."""
    assert connection.sock is not None
    ours, theirs = connection.sock.getsockname(), connection.sock.getpeername()
    for pid in children(cluster):
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(pid).net_connections("tcp"):
                if each.raddr and (tuple(each.laddr), tuple(each.raddr)) == (theirs, ours):
                    return pid
    raise AssertionError("nobody has it")


@contextlib.contextmanager
def kept_alive(cluster: Cluster) -> Iterator[http.client.HTTPConnection]:
    """A connection that some process has accepted."""
    with contextlib.closing(cluster.connect()) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        yield connection


@contextlib.contextmanager
def one_of_each(cluster: Cluster) -> Iterator[dict[int, http.client.HTTPConnection]]:
    """A connection to every process."""
    with contextlib.ExitStack() as stack:
        found: dict[int, http.client.HTTPConnection] = {}

        def found_all() -> bool:
            connection = stack.enter_context(kept_alive(cluster))
            found.setdefault(who_has(cluster, connection), connection)
            return len(found) == len(children(cluster)) == PROCESSES

        eventually(found_all, "every process has accepted a connection")
        yield found


def begin_upload(connection: http.client.HTTPConnection, **headers: str) -> None:
    """The first half of BODY, once its process has said that it takes it."""
    connection.putrequest("PUT", "/upload/held")
    connection.putheader("Content-Length", str(len(BODY)))
    for name, value in {"Expect": "100-continue", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.sock is not None
    assert connection.sock.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE
    connection.send(BODY[: len(BODY) // 2])


class Load:
    """Clients that ask all the time, each on a new connection; none may ever be refused one."""

    def __init__(self, cluster: Cluster, path: str, clients: int = 6) -> None:
        self._cluster, self._path = cluster, path
        self.answered = self.cut = 0
        self.refused: list[BaseException] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._cluster.request("GET", self._path)
            except (ConnectionRefusedError, TimeoutError) as e:
                with self._lock:
                    self.refused.append(e)
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.cut += 1  # it was with the one that was killed
            else:
                assert answer.status == 200, answer.text
                with self._lock:
                    self.answered += 1

    def goes_on(self, more: int = 30) -> None:
        before = self.answered
        eventually(lambda: self.answered >= before + more, "others are served")


def test_a_process_that_is_killed_under_load_is_replaced_and_nobody_is_refused(cluster: Cluster) -> None:
    uuid = cluster.upload(BODY)
    before = set(children(cluster))
    assert len(before) == PROCESSES
    with Load(cluster, f"/download/{uuid}") as load:
        load.goes_on()
        for pid in sorted(before)[:2]:
            os.kill(pid, signal.SIGKILL)
            load.goes_on()
        eventually(lambda: len(children(cluster)) == PROCESSES, "they are replaced")
        load.goes_on()
    assert not load.refused
    assert len(before & set(children(cluster))) == PROCESSES - 2
    assert cluster.service.log.read_text().count("was killed by SIGKILL; another is started") == 2
    assert cluster.stop_service() == 0


def test_a_new_connection_does_not_wait_for_a_process_that_stands_still(cluster: Cluster) -> None:
    still = children(cluster)[0]
    os.kill(still, signal.SIGSTOP)
    try:
        for _ in range(4 * PROCESSES):
            assert cluster.request("GET", "/healthz").status == 200
    finally:
        os.kill(still, signal.SIGCONT)


def test_all_are_told_to_stop_and_end_what_runs(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=settings(drain_timeout="1h"))
    with one_of_each(cluster) as connections:
        for connection in connections.values():
            begin_upload(connection)
        os.kill(cluster.service.pid, signal.SIGTERM)
        eventually(lambda: cluster.request("GET", "/readyz").status == 503, "it drains")
        assert cluster.request("GET", "/files").status == 503
        uuids = []
        for connection in connections.values():
            connection.send(BODY[len(BODY) // 2 :])
            response = connection.getresponse()
            assert response.status == 201
            uuids.append(response.read().decode().strip())
            connection.close()
    assert cluster.service.wait() == 0
    cluster.start_service()
    assert all(cluster.download(uuid) == BODY for uuid in uuids)


def test_one_that_is_told_to_stop_takes_no_new_connection_and_is_replaced(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=settings(drain_timeout="1h"))
    with kept_alive(cluster) as connection:
        leaving = who_has(cluster, connection)
        begin_upload(connection)
        os.kill(leaving, signal.SIGTERM)
        eventually(lambda: not _listens(leaving), "it listens no more")
        for _ in range(4 * PROCESSES):
            with kept_alive(cluster) as other:
                assert who_has(cluster, other) != leaving
        connection.send(BODY[len(BODY) // 2 :])
        assert connection.getresponse().status == 201
    eventually(lambda: leaving not in children(cluster), "it has ended")
    eventually(lambda: len(children(cluster)) == PROCESSES, "it is replaced")


def _listens(pid: int) -> bool:
    return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(pid).net_connections("tcp"))


def test_a_second_sigterm_waits_for_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=settings(drain_timeout="1h"))
    with kept_alive(cluster) as connection:
        begin_upload(connection)
        os.kill(cluster.service.pid, signal.SIGTERM)
        eventually(lambda: cluster.request("GET", "/readyz").status == 503, "it drains")
        os.kill(cluster.service.pid, signal.SIGTERM)
        assert connection.getresponse().status == 503
    assert cluster.service.wait() == 0


def test_all_read_the_settings_anew_and_so_does_who_comes_later(cluster: Cluster) -> None:
    file = cluster.folder / "config.yml"
    rule = {"match": "127.0.0.0/8", "max_file_size": 1000}
    file.write_text(json.dumps({**json.loads(file.read_text()), "callers": {"rules": [rule]}}))
    os.kill(cluster.service.pid, signal.SIGHUP)
    log = cluster.service.log
    eventually(lambda: log.read_text().count("callers.rules [] ->") == PROCESSES, "all have read it")
    file.write_text("{")  # what is wrong with it later is nobody's matter until the next SIGHUP
    killed = children(cluster)[0]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in children(cluster), "it has ended")
    eventually(lambda: len(children(cluster)) == PROCESSES, "it is replaced")
    with one_of_each(cluster) as connections:
        for pid, connection in connections.items():
            connection.request("PUT", "/upload/x", BODY)
            assert connection.getresponse().status == 413, pid


def test_all_end_when_their_parent_is_killed(cluster: Cluster) -> None:
    pids = children(cluster)
    cluster.kill_service()
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "they have ended")
    cluster.start_service()
    assert cluster.request("GET", "/healthz").status == 200


def test_the_port_is_free_though_one_still_serves_when_the_parent_was_killed(cluster: Cluster) -> None:
    with kept_alive(cluster) as connection:
        having = psutil.Process(who_has(cluster, connection))
        begin_upload(connection)
        cluster.kill_service()
        eventually(lambda: not _listens(having.pid), "it listens no more")
        cluster.start_service()
        connection.send(BODY[len(BODY) // 2 :])
        response = connection.getresponse()
        assert response.status == 201
        uuid = response.read().decode().strip()
    eventually(lambda: not having.is_running(), "it has ended")
    assert cluster.download(uuid) == BODY


def test_a_setting_that_keeps_it_from_starting_ends_all_with_its_code(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=settings())
    assert cluster.stop_service() == 0
    cluster.settings["http"]["spool_dir"] = str(cluster.folder / "missing")
    cluster.write_settings()
    before = cluster.service.log.read_text()
    cluster.service.start()
    assert cluster.service.wait() == 2
    said = cluster.service.log.read_text()[len(before) :]
    assert said.count("http.spool_dir") == 1, said


def test_a_busy_port_is_said_once(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        cluster.stop_service()
        argv = cluster.service.argv
        argv[argv.index("--port") + 1] = str(other.getsockname()[1])
        before = cluster.service.log.read_text()
        cluster.service.start()
        assert cluster.service.wait() == 2
        assert cluster.service.log.read_text()[len(before) :].count("another program listens there") == 1


def test_one_process_has_no_parent(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={"http": {"processes": 1}})
    assert not children(cluster)


def test_the_gate_is_of_all_and_what_a_killed_one_held_is_given_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=settings(max_uploads=2))
    with one_of_each(cluster) as connections:
        first, second, third = connections.items()
        begin_upload(first[1])
        begin_upload(second[1])
        third[1].request("PUT", "/upload/x", BODY)
        refused = third[1].getresponse()
        assert refused.status == 503
        assert b"no more than 2 large uploads at once (http.max_uploads)" in refused.read()
        eventually(lambda: reservations(cluster) == 2, "room is promised to both")
        os.kill(first[0], signal.SIGKILL)
        run_sql(cluster.metadb_url, "UPDATE reservation SET expires_at = now() + interval '1 h'")
        eventually(lambda: cluster.request("PUT", "/upload/x", BODY).status == 201, "its place is free")
        eventually(lambda: reservations(cluster) == 1, "its room is given back, before that expires")
        second[1].send(BODY[len(BODY) // 2 :])
        assert second[1].getresponse().status == 201


def reservations(cluster: Cluster) -> int:
    """Of uploads that run."""
    return int(run_sql(cluster.metadb_url, "SELECT count(*) FROM reservation WHERE ended_at IS NULL")[0][0])


def test_callers_have_what_they_may_in_all_of_them_together(make_cluster: MakeCluster) -> None:
    rules = [{"match": "X-Team=gold", "max_uploads": 1}]
    cluster = make_cluster(
        config={**settings(), "callers": {"rules": rules, "trusted_proxies": ["127.0.0.0/8"]}}
    )
    with one_of_each(cluster) as connections:
        first, second, _ = connections.values()
        begin_upload(first, **{"X-Team": "gold"})
        second.request("PUT", "/upload/x", BODY, {"X-Team": "gold"})
        refused = second.getresponse()
        assert refused.status == 429
        assert b"may have 1 upload at once (callers.rules)" in refused.read()
        first.send(BODY[len(BODY) // 2 :])
        assert first.getresponse().status == 201


def test_connections_of_one_address_are_counted_in_all_of_them(make_cluster: MakeCluster) -> None:
    config = settings(max_connections=30)
    cluster = make_cluster(config={**config, "callers": {"address_share": 0.5, "exempt": []}})
    with contextlib.ExitStack() as stack:
        for _ in range(15):
            stack.enter_context(kept_alive(cluster))
        assert cluster.request("GET", "/healthz").status == 429
        stack.close()
        eventually(lambda: cluster.request("GET", "/healthz").status == 200, "there is room again")


def test_a_cap_is_one_of_all_of_them_and_weights_hold_between_them(make_cluster: MakeCluster) -> None:
    rules = [{"match": "X-Team=gold", "weight": 4}]
    config = {
        **settings(),
        "bandwidth": {"cap_out": 8_000_000},
        "callers": {"rules": rules, "trusted_proxies": ["127.0.0.0/8"]},
    }
    cluster = make_cluster(config=config)
    uuid = cluster.upload(BODY * 2)
    with one_of_each(cluster) as connections:
        (_, golden), (_, plain), _ = connections.items()
        got = 0
        ended = threading.Event()

        def read_plainly() -> None:
            nonlocal got
            plain.request("GET", f"/download/{uuid}")
            response = plain.getresponse()
            while not ended.is_set() and (piece := response.read1(1 << 14)):
                got += len(piece)

        reader = threading.Thread(target=read_plainly)
        reader.start()
        golden.request("GET", f"/download/{uuid}", headers={"X-Team": "gold"})
        assert golden.getresponse().read() == BODY * 2
        ended.set()
        plain.close()
        reader.join()
    assert got < len(BODY), "each process had a cap of its own"


def test_any_of_them_tells_of_all(cluster: Cluster) -> None:
    with one_of_each(cluster) as connections:
        for connection in list(connections.values())[:2]:
            begin_upload(connection)
        asked = list(connections.values())[2]

        def told() -> dict[str, dict[str, Any]]:
            asked.request("GET", "/status")
            found: dict[str, dict[str, Any]] = json.loads(asked.getresponse().read())
            return found

        assert told()["uploads"]["large_uploads"] == 2
        eventually(lambda: told()["uploads"]["reservations"] == 2, "those of others are known")
        eventually(
            lambda: told()["processes"]["pids"] == sorted(children(cluster)), "all have said who they are"
        )
        assert told()["memory"]["limit"] <= 16 * MIB < told()["memory"]["limit"] + PROCESSES * 64 * 1024
        os.kill(cluster.service.pid, signal.SIGTERM)
        eventually(lambda: cluster.request("GET", "/readyz").status == 503, "it drains")
        assert b"draining" in cluster.request("GET", "/readyz").body
        for connection in list(connections.values())[:2]:
            connection.send(BODY[len(BODY) // 2 :])
            assert connection.getresponse().status == 201
    assert cluster.service.wait() == 0


def test_status_names_them_all(cluster: Cluster) -> None:
    def said() -> str:
        command = [sys.executable, "-m", "distfs", "status", "--service", cluster.url]
        return nursery.run(command, cluster.folder, clean_environment(), 60).stdout

    pids = ", ".join(map(str, sorted(children(cluster))))
    eventually(lambda: f"{PROCESSES} processes ({pids})" in said(), "it knows all of them")


def test_a_scrape_tells_of_all_and_of_those_that_were_killed(cluster: Cluster) -> None:
    def told() -> str:
        return cluster.request("GET", "/metrics").body.decode()

    def healths() -> float:
        found = re.findall(
            r'^distfs_http_requests_total\{.*route="/healthz".*\} ([\d.]+)$', told(), re.MULTILINE
        )
        return sum(map(float, found))

    before = healths()
    with one_of_each(cluster) as connections:
        for connection in connections.values():
            for _ in range(5):
                connection.request("GET", "/healthz")
                assert connection.getresponse().read() == b"ok\n"
        eventually(lambda: healths() >= before + 6 * PROCESSES, "all are told of, whoever is asked")
        count, victim = healths(), next(iter(connections))
        os.kill(victim, signal.SIGKILL)
    eventually(
        lambda: victim not in children(cluster) and len(children(cluster)) == PROCESSES, "it is replaced"
    )
    assert healths() >= count, "a counter went back"
    eventually(
        lambda: "distfs_http_requests_in_flight 1.0" in told(), "what the killed one had in hand is forgotten"
    )
