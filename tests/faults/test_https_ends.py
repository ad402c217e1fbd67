"""A server that ends while transfers run under TLS: as without TLS."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import distfs.host.server
from distfs.config.settings import HttpConfig
from distfs.host.server import Server
from distfs.tls.contexts import https
from tests.certificates import Certificates
from tests.integration.raw_http import Endless
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
