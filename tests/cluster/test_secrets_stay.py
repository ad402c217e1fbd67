"""A secret is planted in every place that one may be given in, and looked for in all that distfs says and shows."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from distfs.config import file as configuration
from distfs.errors import ConfigError
from tests.cluster.harness import Cluster, MakeCluster, clean_environment
from tests.contract.litter import eventually
from tests.integration.meta_examples import soon
from tests.postgres import run_sql

ROOT = Path(__file__).resolve().parents[2]
PASSWORD, OTHER, TOKEN = "planted-in-a-URL", "planted-in-a-file", "distfs_planted-as-a-token"


def shapes(secret: bytes) -> list[bytes]:
    """As it might be seen."""
    return [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), repr(secret)[2:-1].encode()]


def say(cluster: Cluster, *words: str, **environ: str) -> str:
    """All that a command writes, and what `ps` shows of it meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-m", "distfs", *words],
        cwd=cluster.folder,
        env=clean_environment(PYTHONPATH=str(ROOT), **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        try:
            shown = " ".join(psutil.Process(command.pid).cmdline())
            return shown + command.communicate(timeout=60)[0]
        finally:
            command.kill()


def test_no_secret_is_in_anything_that_distfs_says_or_shows(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(nodes=2, config={"log": {"level": "DEBUG"}})
    for process in (*cluster.nodes, cluster.service):
        process.stop()
    url = cluster.metadb_url.replace("//distfs@", f"//distfs:{PASSWORD}@")
    password, where = tmp_path / "password", tmp_path / "url"
    password.write_text(OTHER)
    where.write_text(url)
    for each in (password, where):
        each.chmod(0o600)
    cluster.settings = {"log": {"level": "DEBUG"}, "metadb": {"url": url, "password_file": str(password)}}
    cluster.write_settings()
    for process in (*cluster.nodes, cluster.service):
        process.start()
    cluster._learn_url()
    cluster.wait_ready()
    uuid = cluster.upload(b"x" * 100_000)
    said = [cluster.request("GET", path).body.decode() for path in ("/status", "/readyz", f"/files/{uuid}")]
    files = {"DISTFS_METADB_URL_FILE": str(where), "DISTFS_METADB_PASSWORD_FILE": str(password)}
    wrong = url.replace("host=", "hots=")
    nobody = f"postgresql://distfs:{quote(PASSWORD)}@127.0.0.1:1/x"
    right = (
        *(["nodes"], ["status", "--json"], ["fsck"], ["migrate"], ["settings"]),
        *(["cluster-key", "show-id"], ["cluster-key", "rotate"]),
    )
    said += [say(cluster, *words, DISTFS_TOKEN=TOKEN, **files) for words in right]
    said.append(say(cluster, "nodes", DISTFS_METADB_URL=nobody))
    for bad in (wrong, f"postgresql://distfs:{PASSWORD}:@/?@", f"{PASSWORD}@//"):
        tries = (["nodes"], ["migrate"], ["serve"], ["backup", "saved.sql"])
        said += [say(cluster, *words, DISTFS_METADB_URL=bad) for words in tries]
    said.append(say(cluster, "status", DISTFS_TOKEN=f"{TOKEN}\x01", **files))
    keys = [key.secret for key in cluster.meta.cluster_keys(soon())]
    run_sql(
        cluster.metadb_url, "ALTER TABLE file RENAME TO away"
    )  # an error of MetaDB's own, and a bug of ours
    cluster.request("GET", f"/download/{uuid}")
    cluster.request("PUT", "/upload/x", b"y" * 100_000)
    run_sql(cluster.metadb_url, "ALTER TABLE away RENAME TO file")
    log = cluster.service.log
    eventually(lambda: 'relation "file" does not exist' in log.read_text(), "it is logged")
    everything = [psutil.Process(p.pid) for p in (*cluster.nodes, cluster.service)]
    said += [" ".join(each.cmdline()) for each in everything]
    said += [p.log.read_text() for p in (*cluster.nodes, cluster.service)]
    assert_told_nowhere(cluster, said, keys)


def assert_told_nowhere(cluster: Cluster, said: list[str], keys: list[bytes]) -> None:
    secrets = [PASSWORD.encode(), OTHER.encode(), TOKEN.encode(), *keys]
    secrets += [bytes.fromhex((cluster.node_folder(i) / "secret").read_text()) for i in range(2)]
    for text in said:
        for secret in secrets:
            for shape in shapes(secret):
                assert shape not in text.encode(), text


@pytest.mark.parametrize("by", ["variable", "credential"])
def test_every_secret_may_be_in_a_file(tmp_path: Path, by: str) -> None:
    texts = {"DISTFS_METADB_URL": "postgresql://me:it@db/x", "DISTFS_METADB_PASSWORD": OTHER}
    environ = {}
    for name, text in texts.items():
        file = tmp_path / name.lower().replace("_", ".")
        file.write_text(f"{text}\n")
        file.chmod(0o600)
        environ[f"{name}_FILE"] = str(file)
    if by == "credential":
        environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    metadb = configuration.load(None, environ=environ).metadb
    assert metadb.url == texts["DISTFS_METADB_URL"]
    assert Path(metadb.password_file).read_text().strip() == OTHER


def test_two_places_for_one_secret_are_refused_and_a_credential_gives_way(tmp_path: Path) -> None:
    file = tmp_path / "distfs.metadb.url"
    file.write_text("postgresql://of-a-file@db/x")
    given = {"DISTFS_METADB_URL": "postgresql://given@db/x"}
    with pytest.raises(ConfigError, match="DISTFS_METADB_URL and DISTFS_METADB_URL_FILE are both set"):
        configuration.load(None, environ=given | {"DISTFS_METADB_URL_FILE": str(file)})
    beside = given | {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert configuration.load(None, environ=beside).metadb.url == given["DISTFS_METADB_URL"]
    with pytest.raises(ConfigError, match=r"DISTFS_METADB_URL_FILE: cannot read .*: No such file"):
        configuration.load(None, environ={"DISTFS_METADB_URL_FILE": str(tmp_path / "none")})
    assert os.environ.get("DISTFS_METADB_URL") is None
