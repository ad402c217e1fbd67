"""`distfs tls`: an authority, what it signs, and what is in the way."""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from distfs.cli import main
from distfs.tls.authority import Authority
from distfs.tls.contexts import decoded
from distfs.tls.identity import hosts_of, node_uri, service_uri, uris_of
from tests.certificates import CLUSTER, Certificates, at

NODE = UUID("0d0d0d0d-0000-4000-8000-000000000001")


def distfs(*words: object) -> int:
    return main(["tls", *map(str, words)])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ca() -> Path:
    assert distfs("init", "ca", "--cluster", CLUSTER) == 0
    return Path("ca")


def test_certificates_say_whose_they_are(ca: Path) -> None:
    assert distfs("node", ca, "--node", NODE, "--host", "10.0.0.7", "--host", "node7.example") == 0
    assert distfs("service", ca, "--host", "files.example") == 0
    node, service = decoded(f"{ca}/node-{NODE}.crt"), decoded(f"{ca}/service.crt")
    assert uris_of(node) == (node_uri(CLUSTER, NODE),)
    assert ("IP Address", "10.0.0.7") in node["subjectAltName"]
    assert uris_of(service) == (service_uri(CLUSTER),)
    assert hosts_of(service) == ("files.example",)
    for name, days in (("ca", 3650), ("service", 365)):
        ends = ssl.cert_time_to_seconds(decoded(f"{ca}/{name}.crt")["notAfter"])
        assert abs(ends - datetime.now(UTC).timestamp() - days * 86400) < 3600


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_keys_are_their_owner_s_whatever_the_umask(umask: int) -> None:
    before = os.umask(umask)
    try:
        assert distfs("init", "ca", "--cluster", CLUSTER) == 0
        assert distfs("service", "ca") == 0
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [Path("ca"), *Path("ca").iterdir()]}
    public = dict.fromkeys(("ca.crt", "crl.pem", "service.crt"), 0o644)
    assert modes == {"ca": 0o700, "ca.key": 0o600, "service.key": 0o600} | public


def test_show_tells_names_fingerprints_and_ends(ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distfs("service", ca)
    distfs("node", ca, "--node", NODE)
    distfs("revoke", ca, f"node-{NODE}")
    capsys.readouterr()
    assert distfs("show", ca) == 0
    said = capsys.readouterr().out
    [service] = [line for line in said.splitlines() if line.startswith("service.crt")]
    by_openssl = subprocess.run(
        ["openssl", "x509", "-in", f"{ca}/service.crt", "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert by_openssl.strip().partition("=")[2].lower() in service
    assert service_uri(CLUSTER) in service
    assert "CN=service" in service
    assert re.search(rf"node-{NODE}.crt .* revoked ", said)


def test_nothing_is_written_over(ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distfs("service", ca)
    before = {path: path.read_bytes() for path in ca.iterdir()}
    for words in (("init", ca, "--cluster", uuid4()), ("service", ca)):
        assert distfs(*words) != 0
        assert "nothing was changed" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in ca.iterdir()} == before


@pytest.mark.parametrize(
    ("lost", "remedy"),
    [
        (["ca.crt"], "remove ca.key, crl.pem there, and run `distfs tls init ca` again"),
        (["ca.crt", "crl.pem"], "remove ca.key there, and run `distfs tls init ca` again"),
        (["ca.key"], "restore that from your backup"),
        (["ca.crt", "ca.key", "crl.pem"], "make one with `distfs tls init ca`"),
    ],
)
def test_half_of_an_authority_is_told_with_a_remedy(
    ca: Path, lost: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in lost:
        (ca / name).unlink()
    left = {path: path.read_bytes() for path in ca.iterdir()}
    for words in (("service", ca), ("show", ca), ("renew", ca)):
        assert distfs(*words) != 0
        [line] = capsys.readouterr().err.splitlines()
        assert remedy in line
    if left:
        assert distfs("init", ca, "--cluster", CLUSTER) != 0
        assert remedy in capsys.readouterr().err
        assert {path: path.read_bytes() for path in ca.iterdir()} == left


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "crl.pem"])
def test_a_damaged_file_is_named(ca: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (ca / name).write_bytes((ca / name).read_bytes()[:50])
    assert distfs("show", ca) != 0
    [line] = capsys.readouterr().err.splitlines()
    assert f"ca/{name} is no" in line


def test_renew_signs_what_comes_to_its_end_with_its_key_and_names(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "made")
    folder = certificates.folder
    with at(datetime.now(UTC) - timedelta(days=300)):
        old, gone = certificates.service("old", "old.example"), certificates.service("gone")
    young = certificates.service("young")
    certificates.authority.revoke("gone")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert distfs("renew", folder) == 0
    changed = {path.name for path in folder.iterdir() if path.read_bytes() != before.get(path)}
    assert changed == {"old.crt", "replaced.pem"}
    assert hosts_of(decoded(old.cert)) == ("old.example",)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(old.cert, old.key)  # they still belong together
    ends = ssl.cert_time_to_seconds(decoded(old.cert)["notAfter"])
    assert ends > datetime.now(UTC).timestamp() + 360 * 86400
    assert distfs("renew", folder, "--all") == 0
    assert Path(young.cert).read_bytes() != before[Path(young.cert)]
    assert Path(gone.cert).read_bytes() == before[Path(gone.cert)]


def test_what_a_key_had_before_it_was_renewed_is_revoked_with_it(ca: Path) -> None:
    distfs("service", ca)
    distfs("service", ca, "--as", "other")
    before = []
    for _ in range(3):
        before.append((ca / "service.crt").read_bytes())
        assert distfs("renew", ca, "--all") == 0
    other = (ca / "other.crt").read_bytes()
    assert distfs("revoke", ca, "service") == 0
    words = [
        "openssl",
        "verify",
        "-crl_check",
        "-CRLfile",
        str(ca / "crl.pem"),
        "-CAfile",
        str(ca / "ca.crt"),
    ]
    for pem in (*before, (ca / "service.crt").read_bytes()):
        done = subprocess.run([*words, "/dev/stdin"], input=pem, capture_output=True)
        assert b"certificate revoked" in done.stderr + done.stdout
    assert subprocess.run([*words, "/dev/stdin"], input=other, capture_output=True).returncode == 0


def test_what_has_ended_is_kept_no_longer(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "made")
    with at(datetime.now(UTC) - timedelta(days=900)):
        certificates.service("old")
    for days in (600, 300, 0):
        with at(datetime.now(UTC) - timedelta(days=days)):
            certificates.authority.renew(all=True)
    assert (certificates.folder / "replaced.pem").read_text().count("BEGIN CERTIFICATE") == 1


def test_after_it_was_revoked_a_part_gets_another_key(ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distfs("node", ca, "--node", NODE)
    cert, key = ca / f"node-{NODE}.crt", ca / f"node-{NODE}.key"
    before = key.read_bytes()
    assert distfs("node", ca, "--node", NODE) != 0
    assert f"distfs tls revoke ca node-{NODE}" in capsys.readouterr().err
    assert distfs("revoke", ca, f"node-{NODE}") == 0
    assert distfs("node", ca, "--node", NODE) == 0
    assert key.read_bytes() != before
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    assert not any(each.revoked for each in Authority(ca).show())


def test_openssl_agrees_on_what_is_believed_and_what_is_revoked(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "made")
    good, bad = certificates.service("good"), certificates.wrong("revoked")

    def verified(cert: str) -> str:
        lists = ["-crl_check", "-CRLfile", certificates.crl]
        words = ["openssl", "verify", "-x509_strict", "-CAfile", certificates.ca, *lists, cert]
        done = subprocess.run(words, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert verified(good.cert).endswith("OK\n")
    assert "certificate revoked" in verified(bad.cert)


def test_clocks_may_be_five_minutes_apart(tmp_path: Path) -> None:
    with at(datetime.now(UTC) + timedelta(minutes=5)):
        certificates = Certificates(tmp_path / "made")
        pair = certificates.service()
    words = [
        "openssl",
        "verify",
        "-crl_check",
        "-CRLfile",
        certificates.crl,
        "-CAfile",
        certificates.ca,
        pair.cert,
    ]
    assert subprocess.run(words, capture_output=True).returncode == 0


def test_a_folder_of_others_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc").chmod(0o755)
    (tmp_path / "etc" / "hosts").touch()
    assert distfs("init", "etc", "--cluster", CLUSTER) != 0
    assert "name an empty folder" in capsys.readouterr().err
    assert stat.S_IMODE((tmp_path / "etc").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["../x", "ca", "node-x", ".x", ""])
def test_a_service_s_files_are_named_as_files_are(ca: Path, name: str) -> None:
    assert distfs("service", ca, "--as", name) != 0
    assert len(list(ca.iterdir())) == 3


def test_without_the_package_one_line_names_it() -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None; from distfs.cli import main; "
        f"sys.exit(main(['tls', 'init', 'x', '--cluster', '{CLUSTER}']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    [line] = done.stderr.splitlines()
    assert line.endswith("pip install 'distfs[tls]'")
    assert not Path("x").exists()


def test_an_authority_of_no_cluster_and_a_key_of_another_are_refused(tmp_path: Path) -> None:
    one, other = Certificates(tmp_path / "one"), Certificates(tmp_path / "other")
    Path(one.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(Exception, match="ca.key is not the key of ca.crt"):
        Authority(one.folder)


def test_what_makes_or_revokes_a_certificate_is_in_the_audit_log(
    ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "audit.log"
    monkeypatch.setenv("DISTFS_AUDIT_FILE", str(log))
    assert distfs("service", ca) == 0
    assert distfs("show", ca) == 0
    assert distfs("revoke", ca, "service") == 0
    assert distfs("revoke", ca, "nobody") != 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [(line["action"], line["outcome"]) for line in lines if line["action"].startswith("command tls")]
    assert told[:2] == [("command tls service", "allow"), ("command tls revoke", "allow")]
    assert len(told) == 3
    assert told[2][1] != "allow"
