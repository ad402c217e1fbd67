"""A storage node's process with TLS: its own certificate, checked at the start and read anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from distfs.config.settings import Certificate, MetaDBConfig
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.storage.disk.home import make_home
from tests.certificates import Certificates
from tests.contract.litter import eventually


@pytest.fixture
def certificates(metadb_url: str, tmp_path: Path) -> Certificates:
    with closing(MetaDB(MetaDBConfig(url=metadb_url))) as meta:
        return Certificates(tmp_path / "ca", meta.cluster_id(Deadline(60)))


def started(data: Path, url: str, certificates: Certificates, own: Certificate) -> subprocess.Popen[str]:
    files = {"CA": certificates.ca, "CRL": certificates.crl, "CERT": own.cert, "KEY": own.key}
    environ = os.environ | {f"DISTFS_TLS_{key}": file for key, file in files.items()}
    argv = [
        sys.executable,
        "-m",
        "distfs.storage_server",
        "--data",
        str(data),
        "--port",
        "0",
        "--metadb",
        url,
    ]
    with (data / "log").open("w") as log:
        return subprocess.Popen(argv, cwd=data, env=environ, stderr=log, text=True)


def test_a_certificate_of_another_is_refused_at_the_start(
    tmp_path: Path, metadb_url: str, certificates: Certificates
) -> None:
    node = make_home(tmp_path / "node").node
    process = started(tmp_path / "node", metadb_url, certificates, certificates.service())
    assert process.wait(60) == 2
    last = (tmp_path / "node" / "log").read_text().splitlines()[-1]
    assert last.endswith(f"`distfs tls node DIR` signs one, for --node {node}")


def test_sighup_has_a_new_certificate_read_and_ends_nothing(
    tmp_path: Path, metadb_url: str, certificates: Certificates
) -> None:
    own = certificates.node(make_home(tmp_path / "node").node)
    process = started(tmp_path / "node", metadb_url, certificates, own)
    log = tmp_path / "node" / "log"
    try:
        eventually(lambda: "registered as node" in log.read_text(), lambda: f"it is there: {log.read_text()}")
        certificates.authority.renew(all=True)
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "tls.ca, cert, key and crl: read anew" in log.read_text(), "it was read")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
