"""All hops of a cluster under TLS at once: files of all sizes, a lost node, commands, and an end that comes near."""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from distfs.commands.doctor import _findings
from distfs.config.settings import TlsConfig, TlsMode
from distfs.deadline import Deadline
from distfs.local.machine import Finding, is_wrong
from distfs.meta import MetaDB
from distfs.model import Policy
from tests.certificates import Certificates, at
from tests.contract.litter import eventually
from tests.service import TestService, running_service, small_config

DATA = random.Random(1).randbytes(1_300_000)


@dataclass
class Whole:
    service: TestService
    certificates: Certificates

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        context = self.certificates.client()
        to = http.client.HTTPSConnection("localhost", self.service.port, timeout=60, context=context)
        with closing(to) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def connections(self) -> int:
        nodes = self.service.app.services.directory.snapshot()["nodes"].values()
        return sum(node["connections"]["broken"] for node in nodes)


@pytest.fixture(params=["1+1", "2+1"])
def whole(metadb_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Whole]:
    config = small_config(metadb_url)
    with closing(MetaDB(config.metadb)) as meta:
        certificates = Certificates(tmp_path / "ca", meta.cluster_id(Deadline(60)))
    with at(datetime.now(UTC) - timedelta(days=360)):
        own = certificates.service()
    secure = replace(certificates.peers(own), mode=TlsMode("on"), certificates=(own,))
    storage = replace(config.storage, policies={"default": Policy.parse(request.param)})
    config = replace(config, tls=secure, storage=storage)

    def certify(node: object) -> TlsConfig:
        return certificates.peers(certificates.node(node))  # type: ignore[arg-type]

    with running_service(config, tmp_path / "nodes", 3, certify) as service:
        yield Whole(service, certificates)


def test_files_of_all_sizes_come_back_byte_for_byte(whole: Whole) -> None:
    for data in (b"", b"x", DATA[:4096], DATA[: 64 * 1024], DATA[:70_001], DATA):
        status, uuid = whole.ask("PUT", "/upload/x", data)
        assert status == 201
        path = f"/download/{uuid.decode().strip()}"
        assert whole.ask("GET", path) == (200, data)
        if len(data) > 1000:
            assert whole.ask("GET", path, Range="bytes=999-") == (206, data[999:])
        assert whole.ask("DELETE", f"/files/{uuid.decode().strip()}")[0] in (200, 204)
    assert whole.connections() == 0


def test_a_damaged_fragment_is_read_around(whole: Whole) -> None:
    uuid = whole.ask("PUT", "/upload/x", DATA)[1].decode().strip()
    one_of_each = {fragment.stem: fragment for fragment in whole.service.fragments()}
    assert len(one_of_each) < len(whole.service.fragments())
    for fragment in one_of_each.values():
        with fragment.open("r+b") as file:
            file.seek(5000)
            file.write(bytes(100))
    assert whole.ask("GET", f"/download/{uuid}") == (200, DATA)


def test_an_end_that_comes_near_is_told(whole: Whole) -> None:
    eventually(lambda: b"trouble: a certificate ends soon" in whole.ask("GET", "/readyz")[1], "it is told")
    assert b"service.crt ends in 5 days: have it renewed" in whole.ask("GET", "/status")[1]
    whole.certificates.authority.renew()
    eventually(lambda: b"trouble" not in whole.ask("GET", "/readyz")[1], "it is renewed")


@pytest.mark.parametrize("whole", ["1+1"], indirect=True)
def test_a_service_that_no_node_believes_is_not_ready(whole: Whole) -> None:
    assert whole.ask("GET", "/readyz")[0] == 200
    whole.certificates.authority.revoke("service")

    def told() -> bool:
        whole.ask("PUT", "/upload/x", b"x")
        status, text = whole.ask("GET", "/readyz")
        return status == 503 and b"3 up, 0 of them answer this service" in text

    eventually(told, "it is not ready")


def wrong_with_nodes(whole: Whole) -> list[Finding]:
    return [each for each in _findings(whole.service.config) if each.about == "nodes" and is_wrong(each)]


@pytest.mark.parametrize("whole", ["1+1"], indirect=True)
def test_doctor_says_who_is_not_believed_and_how_it_gets_another_certificate(whole: Whole) -> None:
    authority = whole.certificates.authority
    [node, *_] = (each.stem for each in authority.folder.glob("node-*.crt"))
    uuid = node.removeprefix("node-")
    authority.revoke(node)
    [found] = wrong_with_nodes(whole)
    assert "its certificate is not believed: certificate revoked" in found.what
    assert f"have {uuid} signed another (`distfs tls node DIR`)" in found.remedy
    authority.sign_node(UUID(uuid), ())
    eventually(lambda: not wrong_with_nodes(whole), "with another it is believed")
    authority.revoke("service")
    eventually(lambda: len(wrong_with_nodes(whole)) == 3, "no node believes what is used here")
    assert all("certificate revoked" in each.what for each in wrong_with_nodes(whole))
    assert all("distfs tls service DIR" in each.remedy for each in wrong_with_nodes(whole))
