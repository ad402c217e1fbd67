"""Who may what is the same under stock waitress, gunicorn and cheroot as under our own server."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.contract.litter import eventually
from tests.forms import FORM, file_part, form
from tests.integration.guarded import User, admin, alice, bob, service, soon, tokens_of, user
from tests.integration.test_wsgi_hosts import HOSTS, hosted
from tests.service import HttpAddress, TestService

__all__ = ["admin", "alice", "bob", "service"]


def bearer(who: User) -> dict[str, str]:
    return {"Authorization": f"Bearer {who.token}"}


@pytest.mark.parametrize("name", HOSTS)
def test_tokens_links_and_refusals(
    name: str, service: TestService, alice: User, bob: User, admin: User, tmp_path: Path
) -> None:
    with hosted(name, service.config, tmp_path) as host:
        answer = host.ask("PUT", "/upload/a", b"hers", bearer(alice))
        assert answer.status == 201, answer.text
        uuid = answer.text.strip()
        by_form = host.ask("POST", "/upload", form(file_part("b", b"too")), {**FORM, **bearer(alice)})
        assert by_form.status == 201, by_form.text
        path = f"/download/{uuid}"
        assert host.ask("GET", path, headers=bearer(alice)).body == b"hers"
        assert host.ask("GET", path, headers=bearer(admin)).status == 200
        assert host.ask("GET", path, headers=bearer(bob)).status == 404
        _strangers(host, path)
        _a_link(host, alice, uuid)
        assert host.ask("GET", "/tokens", headers=bearer(alice)).status == 403
        assert host.ask("GET", "/tokens", headers=bearer(admin)).status == 200
        gone = user(service, "gone")
        assert host.ask("GET", "/files", headers=bearer(gone)).status == 200
        tokens_of(service).revoke(gone.id, soon())
        eventually(lambda: host.ask("GET", "/files", headers=bearer(gone)).status == 401, "it is revoked")


def _strangers(host: HttpAddress, path: str) -> None:
    for method, at in (("GET", path), ("PUT", "/upload/a"), ("DELETE", path.replace("download", "files"))):
        answer = host.ask(method, at, b"x" if method == "PUT" else None)
        assert (answer.status, "a token is needed" in answer.text) == (401, True)
        assert "Bearer" in answer.headers["WWW-Authenticate"]
    assert host.ask("GET", "/healthz").status == 200


def _a_link(host: HttpAddress, alice: User, uuid: str) -> None:
    made = host.ask("POST", f"/files/{uuid}/links", json.dumps({"downloads": 1}).encode(), bearer(alice))
    assert made.status == 201, made.text
    link = urlsplit(made.text.strip())
    assert host.ask("GET", f"{link.path}?{link.query}").body == b"hers"
    assert host.ask("GET", f"{link.path}?{link.query}").status == 403
