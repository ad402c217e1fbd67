"""A person without a token, at a browser: a link for uploads, over HTTPS with an authority of the cluster's own."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from distfs.host.server import Server
from distfs.tls.contexts import https
from tests import chromium
from tests.certificates import Certificates
from tests.integration.guarded import User, alice, service
from tests.integration.test_links import path_of
from tests.service import TestService

__all__ = ["alice", "service"]


# The only one that is skipped in CI: to install a browser there takes longer than all that it would show.
@pytest.mark.skipif(bool(chromium.MISSING), reason=f"there is no {' and no '.join(chromium.MISSING)}")
def test_who_has_a_link_for_uploads_sends_a_file_from_a_browser(
    service: TestService, alice: User, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path / "ca")
    made = https(certificates.https(certificates.service()))
    server = Server(service.app, replace(service.config.http, port=0), service.app.services.pool, tls=made)
    thread = threading.Thread(target=server.run)
    thread.start()
    data, file = os.urandom(300_000), tmp_path / "übung & <b>.bin"
    file.write_bytes(data)
    path = path_of(alice.ask("POST", "/links", b'{"max_size": "1MB"}').text)
    link = f"https://localhost:{server.address[1]}{path}"
    try:
        with chromium.browsing(tmp_path / "home", tmp_path / "ca" / "ca.crt") as page:
            assert page.open(link) == "", "its authority is believed"
            assert "<title>Send a file</title>" in page.text()
            assert page.complaints == []
            page.choose("input[type=file]", file)
            page.press("button")
            assert page.complaints == []
            said = page.text()
            assert "<h1>Thank you</h1>" in said
            assert "übung &amp; &lt;b&gt;.bin is stored: 293.0 KiB." in said
            assert page.open(link) == ""
            page.choose("input[type=file]", file)
            page.press("button")
            assert "this link was used as often as it may be" in page.text()
    finally:
        server.close()
        thread.join()
    [stored] = json.loads(alice.ask("GET", "/files").body)["files"]
    assert alice.ask("GET", f"/download/{stored['uuid']}").body == data
