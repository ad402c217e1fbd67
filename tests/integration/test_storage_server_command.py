"""`python -m distfs.storage_server` as an operator meets it: a process, its signals and its one line of complaint."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.deadline import Deadline
from distfs.limits.db import ReservationDB
from distfs.meta import MetaDB
from distfs.model import Node
from distfs.peers.client import NodeClient
from tests import nursery
from tests.contract.litter import eventually
from tests.contract.nodes import PEERS
from tests.contract.samples import entry_of, header, put, random_bytes, soon, whole
from tests.ports import free_port
from tests.postgres import run_sql

ROOT = Path(__file__).resolve().parents[2]


def command(folder: Path, url: str, *more: str) -> list[str]:
    options = ["--init", "--data", str(folder), "--metadb", url, "--port", "0", *more]
    return [sys.executable, "-m", "distfs.storage_server", *options]


@contextlib.contextmanager
def process(args: list[str], **environ: str) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        args, cwd=ROOT, env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with started:
        try:
            yield started
        finally:
            started.kill()


def complaint(args: list[str], **environ: str) -> str:
    """The one line of a command that was called in a wrong way."""
    ended = nursery.run(args, ROOT, os.environ | {"PYTHONPATH": str(ROOT)} | environ, 60)
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    lines = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("storage_server: ")
    return lines[0]


def registered(meta: MetaDB, count: int = 1) -> list[Node]:
    eventually(
        lambda: sum(n.alive for n in meta.nodes(Deadline(60))) == count, "the nodes have registered", 30
    )
    return meta.nodes(Deadline(60))


@pytest.fixture
def reserve_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTFS_NODE_RESERVE", "0")


@pytest.mark.usefixtures("reserve_nothing")
def test_a_node_registers_serves_and_ends_at_sigterm(metadb_url: str, meta: MetaDB, tmp_path: Path) -> None:
    data = random_bytes(100_000)
    head = replace(header(), cluster=meta.cluster_id(Deadline(60)))
    addresses = []
    for sign in (signal.SIGTERM, signal.SIGINT):
        with process(command(tmp_path / "n", metadb_url, "--zone", "attic")) as running:
            eventually(lambda: [n for n in registered(meta) if n.address not in addresses], "it is here", 30)
            [node] = meta.nodes(Deadline(60))  # at its second start it is the same node, elsewhere
            addresses.append(node.address)
            assert (node.zone, node.state) == ("attic", "active")
            client = NodeClient(
                node.uuid, node.address, meta.cluster_id(Deadline(60)), PEERS, meta.cluster_keys
            )
            if sign is signal.SIGTERM:
                put(client, head, data)
            assert whole(client, head.id) == data
            client.close()
            running.send_signal(sign)
            assert running.wait(60) == 0
            assert running.stderr is not None
            assert "Traceback" not in running.stderr.read()


def test_a_node_killed_in_the_middle_of_a_put_starts_clean(
    metadb_url: str, meta: MetaDB, tmp_path: Path
) -> None:
    with process(command(tmp_path / "n", metadb_url), DISTFS_NODE_RESERVE="0") as running:
        [node] = registered(meta)
        client = NodeClient(node.uuid, node.address, meta.cluster_id(Deadline(60)), PEERS, meta.cluster_keys)
        head = replace(header(), cluster=meta.cluster_id(Deadline(60)))
        writer = client.put(head, 8 << 20, soon())
        block = random_bytes(4096)
        writer.write_cell(entry_of(block), memoryview(block))
        temp = tmp_path / "n" / "tmp"

        def begun() -> list[Path]:
            return [path for path in temp.iterdir() if not path.name.startswith("probe")]

        eventually(begun, "the put has begun")
        running.kill()
        running.wait(60)
        writer.abort()
        client.close()
    assert begun()
    with process(command(tmp_path / "n", metadb_url), DISTFS_NODE_RESERVE="0"):
        eventually(lambda: not list(temp.iterdir()), "what was left is removed", 30)


def test_two_nodes_on_one_disk_are_known_to_share_it(metadb_url: str, meta: MetaDB, tmp_path: Path) -> None:
    with process(command(tmp_path / "a", metadb_url)), process(command(tmp_path / "b", metadb_url)):
        first, second = registered(meta, 2)
        assert first.disk == second.disk != ""
        [disk] = ReservationDB(meta, uuid4()).state(Deadline(60)).disks
        assert disk.nodes == 2
        assert disk.free <= shutil.disk_usage(tmp_path).total


def test_a_second_node_on_one_folder_is_refused(metadb_url: str, meta: MetaDB, tmp_path: Path) -> None:
    with process(command(tmp_path / "n", metadb_url)):
        registered(meta)
        assert "in use by another storage node" in complaint(command(tmp_path / "n", metadb_url))


def test_the_folder_of_another_cluster_is_refused(metadb_url: str, tmp_path: Path) -> None:
    cluster = str(uuid4())
    identity = {"node": str(uuid4()), "cluster": cluster, "format": 1}
    (tmp_path / "node.json").write_text(json.dumps(identity))
    line = complaint(command(tmp_path, metadb_url))
    assert cluster in line
    assert "--data" in line


def test_a_busy_port_is_one_line(metadb_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        line = complaint(command(tmp_path / "n", metadb_url, "--port", port))
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line


def test_an_address_of_another_machine_is_one_line(metadb_url: str, tmp_path: Path) -> None:
    assert "--host" in complaint(command(tmp_path / "n", metadb_url, "--host", "192.0.2.7"))


def test_listening_everywhere_without_saying_where_is_refused(
    metadb_url: str, meta: MetaDB, tmp_path: Path
) -> None:
    args = command(tmp_path / "n", metadb_url, "--host", "0.0.0.0")
    assert "node.advertise" in complaint(args)
    with process(args, DISTFS_NODE_ADVERTISE="somewhere:9001"):
        [node] = registered(meta)
        assert str(node.address) == "somewhere:9001"


def test_only_its_owner_can_read_a_nodes_secret_and_it_stays(
    metadb_url: str, meta: MetaDB, tmp_path: Path
) -> None:
    def alive() -> bool:
        return any(node.alive for node in meta.nodes(Deadline(60)))

    secrets = []
    for _ in range(2):
        with process(command(tmp_path / "n", metadb_url)) as running:
            eventually(alive, "it is here", 30)
            secrets.append(bytes.fromhex((tmp_path / "n" / "secret").read_text()))
            running.terminate()
            assert running.wait(60) == 0
    assert (tmp_path / "n" / "secret").stat().st_mode & 0o777 == 0o600
    assert secrets[0] == secrets[1]
    [node] = meta.nodes(Deadline(60))
    assert run_sql(metadb_url, "SELECT secret_hash FROM node") == [[hashlib.sha256(secrets[0]).digest()]]
    (tmp_path / "n" / "secret").unlink()  # as by a restore that left it out
    with process(command(tmp_path / "n", metadb_url)) as running:
        assert running.wait(60) == 2
        assert running.stderr is not None
        assert f"`distfs trust {node.id}`" in running.stderr.read().splitlines()[-1]
    trusted = [sys.executable, "-m", "distfs", "trust", str(node.id), "--metadb", metadb_url]
    assert subprocess.run(trusted, cwd=ROOT, capture_output=True).returncode == 0
    with process(command(tmp_path / "n", metadb_url)):
        eventually(alive, "it is back", 30)


@pytest.mark.parametrize(
    "address", ["host:0", "host:99999", "host", "a:b:9001", "::1:9001", "a host:9001", "host:9001\n", ":9001"]
)
def test_an_address_that_cannot_be_is_not_advertised(
    metadb_url: str, meta: MetaDB, tmp_path: Path, address: str
) -> None:
    ended = subprocess.run(
        command(tmp_path / "n", metadb_url),
        cwd=ROOT,
        env=os.environ | {"DISTFS_NODE_ADVERTISE": address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("storage_server: nobody can reach a node at ")
    assert not (tmp_path / "n").exists()
    assert meta.nodes(Deadline(60)) == []


@pytest.mark.parametrize("where", ["a file", "below a file", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_one_line(metadb_url: str, tmp_path: Path, where: str) -> None:
    (tmp_path / "f").write_text("")
    folder = {"a file": tmp_path / "f", "below a file": tmp_path / "f" / "n"}.get(where, Path(where))
    line = complaint(command(folder, metadb_url))
    assert str(folder) in line
    assert "--data" in line


def test_a_damaged_identity_is_one_line(metadb_url: str, tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text("{")
    assert "node.json is damaged" in complaint(command(tmp_path, metadb_url))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--port", "many"], "--port"),
        (["--port", "70000"], "node.port"),
        (["--port"], "--port"),
        (["--nonsense"], "--nonsense"),
        (["surplus"], "surplus"),
        (["--config", "/no/such/file.yml"], "/no/such/file.yml"),
        (["--metadb", "mysql://x"], "metadb.url"),
    ],
)
def test_bad_arguments_are_one_line(args: list[str], words: str) -> None:
    line = complaint([sys.executable, "-m", "distfs.storage_server", *args])
    assert words in line


def scrape(port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_node_tells_prometheus_of_itself(metadb_url: str, meta: MetaDB, tmp_path: Path) -> None:
    port = free_port()
    with process(command(tmp_path / "node", metadb_url), DISTFS_NODE_METRICS_PORT=str(port)) as running:
        [known] = registered(meta)
        client = NodeClient(known.uuid, known.address, meta.cluster_id(soon()), PEERS, meta.cluster_keys)
        with contextlib.closing(client):
            client.info(soon())
        with contextlib.ExitStack() as slow:  # who says nothing takes no place from all, nor for good
            for _ in range(5):
                slow.enter_context(socket.create_connection(("127.0.0.1", port)))
            status, text = scrape(port)
        assert status == 200, text
        assert 'distfs_storage_request_seconds_count{type="INFO"} 1.0' in text
        assert "distfs_disk_trouble 0.0" in text
        assert re.search(r"^distfs_disk_capacity_bytes [1-9]", text, re.MULTILINE)
        assert "distfs_http" not in text
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
