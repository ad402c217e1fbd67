"""Mutual TLS between service and node: whom each believes, and that nothing goes in plain text."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from distfs.config.settings import Certificate, Seconds
from distfs.deadline import Deadline, Scope
from distfs.errors import Cancelled, ClientGone, ConfigError, DistfsError, NodeUnavailable, TooSlow
from distfs.formats.hello import Reason
from distfs.model import Address
from distfs.peers.client import NodeClient
from distfs.storage_server import StorageServer
from distfs.tls import contexts
from distfs.tls.contexts import Peers, is_not_own
from tests.certificates import Certificates
from tests.contract.litter import eventually
from tests.contract.nodes import NODE, PEERS, KillableServer, new_store, running
from tests.contract.samples import CLUSTER, entry_of, header, put, soon, whole
from tests.greetings import known_keys
from tests.recorder import Recorder

WRONG = ["expired", "not yet valid", "wrong host", "wrong CA", "self-signed", "revoked", "wrong cluster"]
SECRET = b"nobody in between is to read this; " * 2000


class Node(KillableServer):
    """One that counts what it serves."""

    served = 0

    def begin_request(self, moves: bool) -> bool:
        self.served += 1
        return super().begin_request(moves)


@contextmanager
def node(folder: Path, tls: Peers | None) -> Iterator[Node]:
    with running(Node("127.0.0.1", 0, new_store(folder), NODE, tls=tls)) as server:
        yield server


@contextmanager
def called(server: StorageServer, tls: Peers | None, uuid: UUID | None = None) -> Iterator[NodeClient]:
    client = NodeClient(uuid or server.store.node, server.address, CLUSTER, PEERS, known_keys, tls)
    try:
        yield client
    finally:
        client.close()


class Cluster:
    """A node and a service with certificates of one authority."""

    def __init__(self, folder: Path) -> None:
        self.certificates = Certificates(folder / "ca", CLUSTER)
        self.folder = folder / "node"
        with closing(new_store(self.folder)) as store:
            self.node = store.node
        self.of_node, self.of_service = self.certificates.node(self.node), self.certificates.service()

    def tls(self, own: Certificate) -> Peers:
        return Peers(self.certificates.peers(own))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_fragments_of_all_sizes_pass_both_ways(cluster: Cluster) -> None:
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        with called(server, cluster.tls(cluster.of_service)) as client:
            for data in (b"x", bytes(5 << 20), random.Random(1).randbytes(2_500_000), SECRET):
                head = header(block_size=1 << 20)
                put(client, head, data)
                assert whole(client, head.id) == data
                assert client.delete(head.id, soon())
            assert client.info(soon()).node == server.store.node
            pool = client.link.pool.snapshot()
            assert (pool.made, pool.broken) == (1, 0)


@pytest.mark.parametrize("what", WRONG)
def test_no_service_believes_a_wrong_node(cluster: Cluster, what: str) -> None:
    wrong = cluster.certificates.wrong(what, cluster.node)
    with node(cluster.folder, cluster.tls(wrong)) as server:
        with (
            called(server, cluster.tls(cluster.of_service)) as client,
            pytest.raises(NodeUnavailable) as caught,
        ):
            client.info(soon())
    assert "certificate" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("what", WRONG)
def test_no_node_believes_a_wrong_service(cluster: Cluster, what: str) -> None:
    wrong = cluster.certificates.wrong(what)
    if what == "wrong host":  # a service is known by its URI; what is wrong there is to be another node
        wrong = cluster.certificates.node(uuid4())
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        with called(server, cluster.tls(wrong)) as client, pytest.raises(NodeUnavailable):
            client.info(soon())
        assert server.served == 0


def test_a_node_is_no_service(cluster: Cluster) -> None:
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        with called(server, cluster.tls(cluster.of_node)) as client, pytest.raises(NodeUnavailable):
            client.info(soon())


def test_another_node_is_not_the_one_that_is_called(cluster: Cluster) -> None:
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        with called(server, cluster.tls(cluster.of_service), uuid4()) as client:
            with pytest.raises(NodeUnavailable, match="its certificate is not node"):
                client.info(soon())


def test_one_with_tls_and_one_without_never_meet(cluster: Cluster) -> None:
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        with called(server, None) as client, pytest.raises(DistfsError):
            client.info(Deadline(10))
        assert server.served == 0
    with node(cluster.folder, None) as server:
        with called(server, cluster.tls(cluster.of_service)) as client:
            with pytest.raises(NodeUnavailable, match="it speaks no TLS"):
                client.info(Deadline(10))
        assert server.served == 0


def test_one_in_between_reads_nothing(cluster: Cluster) -> None:
    with (
        node(cluster.folder, cluster.tls(cluster.of_node)) as server,
        Recorder(server.address.host, server.address.port) as tap,
    ):
        client = NodeClient(
            server.store.node,
            Address(tap.host, tap.port),
            CLUSTER,
            PEERS,
            known_keys,
            cluster.tls(cluster.of_service),
        )
        with closing(client):
            head = header(block_size=1 << 20)
            put(client, head, SECRET)
            assert whole(client, head.id) == SECRET
        assert len(tap.seen) > 2 * len(SECRET)
        assert not tap.read(
            SECRET[:20], CLUSTER.hex.encode(), CLUSTER.bytes, head.id.slice.bytes, b'"cluster"'
        )


def test_what_is_revoked_while_it_is_connected_is_served_no_more(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "LOOK_EVERY_S", 0.05)
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        with called(server, cluster.tls(cluster.of_service)) as client:
            client.info(soon())
            cluster.certificates.authority.revoke("service")

            def refused() -> bool:
                try:
                    client.info(soon())
                except NodeUnavailable:
                    return True
                return False

            eventually(refused, "the service is refused")
            assert refused()


def test_a_new_certificate_is_taken_while_a_fragment_is_on_its_way(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "LOOK_EVERY_S", 0.05)
    tls = cluster.tls(cluster.of_node)
    with node(cluster.folder, tls) as server, called(server, cluster.tls(cluster.of_service)) as client:
        head, block = header(block_size=1 << 20), random.Random(2).randbytes(1 << 20)
        writer = client.put(head, 0, soon())
        writer.write_cell(entry_of(block), memoryview(block))
        before = Path(cluster.of_node.cert).read_bytes()
        cluster.certificates.authority.renew(all=True)
        assert Path(cluster.of_node.cert).read_bytes() != before
        eventually(lambda: server.side is not None and server.side._files.now()[1] > 0, "it is read")
        writer.write_cell(entry_of(block), memoryview(block))
        writer.finish(2 << 20, True)
        writer.commit()
        assert whole(client, head.id) == block * 2

        def anew() -> bool:
            client.info(soon())
            return client.link.pool.snapshot().made > 1

        eventually(anew, "a new connection is made")
        assert client.link.breaker.opened == 0


def test_a_node_that_says_nothing_in_the_handshake_is_too_slow(cluster: Cluster) -> None:
    quick = replace(PEERS, stall_timeout=Seconds(0.3), connect_timeout=Seconds(5))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(*listener.getsockname())
        client = NodeClient(
            cluster.node, address, CLUSTER, quick, known_keys, cluster.tls(cluster.of_service)
        )
        with closing(client), pytest.raises(TooSlow, match="no TLS handshake within"):
            client.info(soon())


def test_a_cancelled_request_does_not_wait_for_a_handshake(cluster: Cluster) -> None:
    scope = Scope()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        address = Address(*listener.getsockname())
        client = NodeClient(
            cluster.node, address, CLUSTER, PEERS, known_keys, cluster.tls(cluster.of_service)
        )
        with closing(client):
            asking = threads.submit(client.info, Deadline(120, scope=scope))
            silent, _ = listener.accept()
            with silent:
                silent.recv(1)
                scope.cancel(ClientGone("the client hung up"))
                with pytest.raises(Cancelled):
                    asking.result(30)


def test_services_that_never_finish_a_handshake_are_ended_and_keep_nobody_out(cluster: Cluster) -> None:
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        server.stall_timeout = Seconds(0.5)
        place = server.address.host, server.address.port
        with ExitStack() as stack:
            half = [stack.enter_context(socket.create_connection(place, 30)) for _ in range(100)]
            for sock in half[::2]:
                sock.sendall(b"\x16\x03\x01\x02\x00")
            with called(server, cluster.tls(cluster.of_service)) as client:
                assert client.info(soon()).node == server.store.node
            for sock in half:
                assert sock.recv(100) == b""


def test_who_comes_to_no_tls_is_one_line_a_minute_that_says_why(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "distfs.node")
    wrong = cluster.certificates.wrong("expired")
    with node(cluster.folder, cluster.tls(cluster.of_node)) as server:
        with called(server, cluster.tls(wrong)) as client, pytest.raises(NodeUnavailable):
            client.info(soon())
        counts = server.strangers.counts
        eventually(lambda: counts[Reason.TLS] == 1, "it is counted")
        for number in range(2, 5):
            with socket.create_connection((server.address.host, server.address.port), 30) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert sock.recv(100) == b""
            eventually(lambda many=number: counts[Reason.TLS] == many, "it is counted")  # type: ignore[misc]
        assert counts.total() == 4
    [line] = caplog.messages
    assert line.startswith("127.0.0.1 is not welcome: no TLS came about: ")
    assert "expired" in line


def test_a_node_is_told_that_its_certificate_is_another_s(cluster: Cluster) -> None:
    config = cluster.certificates.peers(cluster.of_service)
    wrong = is_not_own(config, CLUSTER, cluster.node)
    assert wrong.startswith("tls.cert: ")
    assert str(cluster.node) in wrong
    assert not is_not_own(cluster.certificates.peers(cluster.of_node), CLUSTER, cluster.node)


@pytest.mark.parametrize(
    ("which", "content", "says"),
    [
        ("ca", "", "does not hold certificates of an authority"),
        ("ca", "leaf", "has no certificate of an authority"),
        ("cert", "no certificate", "is not PEM"),
        ("key", "other key", "is not the key of"),
        ("crl", "ca", "is no list of what is revoked"),
        ("key", None, "cannot read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    cluster: Cluster, tmp_path: Path, which: str, content: str | None, says: str
) -> None:
    other = cluster.certificates.service("other")
    sources = {"leaf": other.cert, "other key": other.key, "ca": cluster.certificates.ca}
    path = tmp_path / "wrong"
    if content is not None:
        path.write_text(Path(sources[content]).read_text() if content in sources else content)
    wrong: dict[str, Any] = {which: str(path)}
    config = replace(cluster.certificates.peers(cluster.of_node), **wrong)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        Peers(config)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
