"""``distfs token``, and the first token of ``distfs up``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from uuid import UUID

from distfs import audit
from distfs.access.db import TokenDB
from distfs.access.failures import FORGIVE_S, FREE
from distfs.access.link import Link, seal, text_of, unseal
from distfs.commands.audit import verify
from distfs.deadline import Deadline
from tests.cluster import Cluster
from tests.cluster.harness import clean_environment
from tests.cluster.operating import distfs
from tests.cluster.test_readme_commands import BLOCKS, lines_of
from tests.cluster.test_up import StartUp, curl, data, up
from tests.contract.litter import eventually

__all__ = ["data", "up"]

TOKEN = r"distfs_[0-9A-Za-z]{49}"
ALICE = ("--owner", "alice", "--scopes", "upload,download", "--quota", "1MiB")


def test_tokens_are_made_listed_rotated_and_revoked(by_hand: Cluster) -> None:
    made = distfs(by_hand, "token", "create", *ALICE)
    assert made.code == 0
    assert re.fullmatch(f"{TOKEN}\n", made.out), "the token alone, for scripts"
    assert "of alice: upload, download; quota 1.0 MiB" in made.err
    assert "distfs_" not in made.err
    [entry] = [each for each in distfs(by_hand, "token", "list", "--json").entry if each["owner"] == "alice"]
    assert (entry["scopes"], entry["quota"]) == (["upload", "download"], 1 << 20)
    told = distfs(by_hand, "token", "list")
    assert entry["id"] in told.out
    assert "distfs_" not in told.out
    rotated = distfs(by_hand, "token", "rotate", entry["id"], "--overlap", "1h")
    assert re.fullmatch(f"{TOKEN}\n", rotated.out)
    assert rotated.out != made.out
    assert distfs(by_hand, "token", "revoke", entry["id"]).code == 0
    assert entry["id"] not in distfs(by_hand, "token", "list").out
    assert entry["id"] in distfs(by_hand, "token", "list", "--all").out
    made = distfs(by_hand, "token", "create", *ALICE, "--json")
    assert re.fullmatch(TOKEN, made.entry["token"])


def test_links_are_made_listed_and_revoked(by_hand: Cluster, tmp_path: Path) -> None:
    owner = distfs(by_hand, "token", "create", "--owner", "lender", "--scopes", "admin", "--json").entry
    uuid = by_hand.upload(b"bytes", "a")
    asked = ("--token", owner["id"], "--url", "https://files.example/", "--expires-in", "7d")
    made = distfs(by_hand, "link", "create", uuid, *asked, "--downloads", "5", "--network", "192.0.2.0/24")
    assert re.fullmatch(rf"https://files\.example/download/{uuid}\?link=\S+\n", made.out), (
        "alone, for scripts"
    )
    sealed = unseal(text_of(made.out))
    assert sealed is not None
    id = str(UUID(bytes=sealed.id))
    assert id in made.err
    uploads = distfs(
        by_hand, "link", "create", "--max-size", "1GB", "--json", DISTFS_TOKEN=owner["token"]
    ).entry
    assert (uploads["for"], uploads["max_size"], uploads["uses"]) == ("upload", 10**9, 1)
    assert "/upload?link=" in uploads["url"]
    found = {each["id"]: each for each in distfs(by_hand, "link", "list", "--json").entry}
    assert (found[id]["file"], found[id]["uses"], found[id]["network"]) == (uuid, 5, "192.0.2.0/24")
    assert found[uploads["id"]]["state"] == "good"
    told = distfs(by_hand, "link", "list", "--owner", "lender").out
    assert id in told
    assert "0 of 5" in told
    assert sealed.text not in told
    audited = {"DISTFS_AUDIT_FILE": str(tmp_path / "audit.log")}
    for shown in (id, uploads["url"]):
        told = distfs(by_hand, "link", "revoke", shown, **audited).out
        assert "is revoked; services that run know it within a second" in told
    again = distfs(by_hand, "link", "create", uuid, "--token", owner["id"], "--json", **audited).entry["id"]
    entries = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    told_of = [(each["object"], each.get("change")) for each in entries if "command link" in each["action"]]
    assert told_of == [(id, None), (uploads["id"], None), (uuid, f"link {again}")]
    assert distfs(by_hand, "link", "revoke", again).code == 0
    listed = distfs(by_hand, "link", "list", "--owner", "lender", "--json").entry
    assert {each["state"] for each in listed} == {"revoked"}
    tokens = [each.token for each in TokenDB(by_hand.meta).since(0, Deadline(60))]
    [maker] = [each for each in tokens if str(each.id) == owner["id"]]
    assert len(maker.revoked_links) == 3
    assert distfs(by_hand, "link", "list", "--owner", "nobody").out.startswith("there is no link")


def test_a_link_that_cannot_be_is_one_line(by_hand: Cluster) -> None:
    reader = distfs(by_hand, "token", "create", "--owner", "x", "--scopes", "download", "--json").entry["id"]
    uuid = by_hand.upload(b"bytes", "a")
    nobodys = "?link=" + seal(Link(UUID(reader), 1, UUID(int=1)), bytes(32))
    for words, said in (
        (("create", uuid), "name a good one by --token ID"),
        (("create", uuid, "--token", "x"), "`distfs token list` shows them"),
        (("create", uuid, "--token", str(UUID(int=1))), "name a good one by --token ID"),
        (("create", uuid, "--token", reader), "another owner's file"),
        (("create", "--token", reader), "lacks the scope upload"),
        (("create", "x", "--token", reader), "is not a file's id"),
        (("create", str(UUID(int=1)), "--token", reader), "no file"),
        (("create", uuid, "--token", reader, "--files", "1"), "such a link has no 'files'"),
        (("revoke",), "`distfs link list` shows it"),
        (("revoke", "http://files.example/"), "`distfs link list` shows it"),
        (("revoke", str(UUID(int=1))), "no link of this cluster"),
        (("revoke", nobodys), "no link of this cluster"),
    ):
        told = distfs(by_hand, "link", *words)
        assert (told.code, len(told.err.splitlines())) == (1, 1), told
        assert said in told.err


def test_what_cannot_be_is_one_line(by_hand: Cluster) -> None:
    for words, said in (
        (("create",), "a token needs owner"),
        (("create", "--owner", "x", "--scopes", "all"), "there is no scope 'all'"),
        (("create", "--owner", "x", "--scopes", "list", "--quota", "much"), "quota: 'much' is not a size"),
        (("create", "--owner", "x", "--scopes", "list", "--policies", "gold"), "there is no policy 'gold'"),
        (("create", "--first", "--owner", "x"), "leave out the other flags"),
        (("revoke",), "revoke which token?"),
        (("revoke", "nonsense"), "is not a token's id"),
        (("revoke", "00000000-0000-0000-0000-000000000000"), "no token"),
        (("rotate", "00000000-0000-0000-0000-000000000000"), "no token"),
    ):
        told = distfs(by_hand, "token", *words)
        assert told.code == 1, told
        assert said in told.err
        assert len(told.err.splitlines()) == 1
    distfs(by_hand, "token", "create", "--first")
    again = distfs(by_hand, "token", "create", "--first")
    assert (again.code, again.out) == (1, "")
    assert "there are tokens already" in again.err


def test_up_prints_the_first_token_once_and_no_log_has_it(up: StartUp, data: Path, tmp_path: Path) -> None:
    running = up(DISTFS_AUTH_MODE="on").wait_ready()
    assert running.process.stdout is not None
    told = "".join(iter(running.process.stdout.readline, "")) if running.stop() == 0 else ""
    [token] = re.findall(TOKEN, told)
    assert f"-u :TOKEN {running.url}/download/UUID" in told.replace("-o copy.md ", "")
    again = up(DISTFS_AUTH_MODE="on").wait_ready()
    content = tmp_path / "file"
    content.write_bytes(b"kept")
    uuid = curl("-u", f":{token}", "-T", str(content), f"{again.url}/upload/").decode().strip()
    assert curl("-H", f"Authorization: Bearer {token}", f"{again.url}/download/{uuid}") == b"kept"
    stranger = subprocess.run(
        ["curl", "-s", "-w", "%{http_code}", f"{again.url}/download/{uuid}"], capture_output=True, text=True
    )
    assert stranger.stdout.endswith("401")
    made = json.loads(
        curl(
            "-u",
            f":{token}",
            "-d",
            '{"owner": "bob", "scopes": "download"}',
            "-H",
            "Content-Type: application/json",
            f"{again.url}/tokens",
        )
    )
    assert re.fullmatch(TOKEN, made["token"])
    # In a shell that was not told of auth, which is in the other one's environment alone.
    words = ["token", "create", "--owner", "eve", "--scopes", "list", "--metadb", f"embedded:{data}/metadb"]
    here = clean_environment(DISTFS_LOCAL_DATA=str(data))
    subprocess.run([sys.executable, "-m", "distfs", *words], cwd=tmp_path, env=here, check=True)
    assert again.stop() == 0
    assert again.process.stdout is not None
    assert not re.search(TOKEN, again.process.stdout.read())
    assert not re.search(TOKEN, running.log + again.log)
    kept = [p for p in data.rglob("*") if p.is_file() and "postgres" not in p.parts]
    assert not [p for p in kept if token.encode() in p.read_bytes()]
    logs = sorted(data.glob("audit*.log"))
    assert not [report.wrong for report in verify(logs) if report.wrong]
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    told_of = {(line["action"], line["who"].partition(" ")[0]) for line in lines}
    assert ("command token create", audit.user()) in told_of
    assert {("command up", audit.user()), ("upload", "token"), ("token", "token")} <= told_of


def test_what_the_readme_says_of_tokens_is_so(up: StartUp, tmp_path: Path) -> None:
    running = up(DISTFS_AUTH_MODE="on").wait_ready()
    assert running.process.stdout is not None
    lines = iter(running.process.stdout.readline, "")
    admin = next(found[0] for line in lines if (found := re.search(TOKEN, line)))
    (tmp_path / "a").write_bytes(b"hers")
    (tmp_path / "got").mkdir()
    here = {"ADMIN": admin, "TOKEN": "", "UUID": "", "ID": ""}

    def run(line: str) -> str:
        line = line.replace("http://127.0.0.1:8080", running.url)
        line = line.replace("/UUID", f"/{here['UUID']}").replace("/ID", f"/{here['ID']}")
        folder = tmp_path / "got" if "-OJ" in line else tmp_path
        done = subprocess.run(
            ["bash", "-euc", f"{line} --fail --silent --show-error"],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "ADMIN": here["ADMIN"], "TOKEN": here["TOKEN"]},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done.stdout

    [block] = [each for each in BLOCKS if "-u :$TOKEN -T" in each]
    create, upload, change, download, revoke = [
        line for line in lines_of(block) if not line.startswith("export")
    ]
    made = json.loads(run(create))
    here["TOKEN"], here["ID"] = made["token"], made["id"]
    here["UUID"] = run(upload).strip()
    assert json.loads(run(change))["visibility"] == "link"
    run(download)
    assert (tmp_path / "got" / "a").read_bytes() == b"hers"
    run(revoke)
    assert running.stop() == 0


def test_every_process_of_a_service_knows_that_a_token_was_revoked_and_how_often_it_was_shown(
    up: StartUp,
) -> None:
    running = up(DISTFS_AUTH_MODE="on", DISTFS_HTTP_PROCESSES="3").wait_ready()
    assert running.process.stdout is not None
    admin = next(
        found[0] for line in iter(running.process.stdout.readline, "") if (found := re.search(TOKEN, line))
    )
    made = json.loads(
        curl("-u", f":{admin}", "-d", '{"owner": "x", "scopes": "list"}', f"{running.url}/tokens")
    )

    refused: Counter[str] = Counter()

    def lists(count: int) -> int:
        """How many of so many requests, each on a connection of its own, were let in."""
        ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-u", f":{made['token']}"]
        url = f"{running.url}/files"
        said = [subprocess.run([*ask, url], capture_output=True, text=True).stdout for _ in range(count)]
        assert set(said) <= {"200", "401", "429"}
        refused.update(said)
        return said.count("200")

    assert lists(12) == 12, "each of them knows it at once"
    began = time.monotonic()
    curl("-u", f":{admin}", "-X", "DELETE", f"{running.url}/tokens/{made['id']}")
    eventually(lambda: lists(12) == 0, "none of them lets it in")
    assert lists(30) == 0
    most = FREE + 1 + (time.monotonic() - began) / FORGIVE_S
    assert refused["401"] <= most, "of the whole service so many wrong ones are free, not of each process"
    assert refused["429"] > 0
    assert running.stop() == 0
