"""A server that ends while transfers run under TLS: as without TLS."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

import distfs.host.server
from distfs.config.settings import HttpConfig
from distfs.host.server import Server
from distfs.tls.contexts import https
from tests.certificates import Certificates
from tests.contract.litter import eventually
from tests.integration.raw_http import Endless, Held
from tests.integration.test_https import DATA, Secure


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_closing_cuts_a_transfer_under_tls_that_does_not_end(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.host.server, "CLOSE_GRACE", 0.1)
    app = Endless(way)
    certificates = Certificates(tmp_path / "ca")
    server = Server(app, HttpConfig(port=0), tls=https(certificates.https(certificates.service())))
    loop = threading.Thread(target=server.run)
    loop.start()
    with Secure(server.address[1], certificates, None).tls() as sock:  # type: ignore[arg-type]
        sock.sendall(b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2500000\r\n\r\n" + DATA[:-1])
        assert app.called.wait(60)
        server.close()
        loop.join(60)
        assert not loop.is_alive()
        assert app.ended.wait(60)


def listens(server: Server) -> bool:
    try:
        socket.create_connection(server.address).close()
    except ConnectionRefusedError:
        return False
    return True


def test_closing_waits_for_a_transfer_under_tls_that_goes_on(tmp_path: Path) -> None:
    app = Held()
    certificates = Certificates(tmp_path / "ca")
    server = Server(app, HttpConfig(port=0), tls=https(certificates.https(certificates.service())))
    loop = threading.Thread(target=server.run)
    loop.start()
    with closing(Secure(server.address[1], certificates, None).connect()) as client:  # type: ignore[arg-type]
        client.request("PUT", "/", DATA)
        assert app.called.acquire(timeout=60)
        closer = threading.Thread(target=server.close)
        closer.start()
        eventually(lambda: not listens(server), "it takes no others")
        app.go.set()
        answer = client.getresponse()
        assert answer.read() == DATA
        assert answer.headers["Connection"] == "close"
    closer.join(60)
    loop.join(60)
    assert not loop.is_alive()
    assert app.error is None
