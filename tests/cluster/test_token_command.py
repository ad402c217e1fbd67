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
from distfs.access.link import Link, seal
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


def test_a_link_is_revoked_by_its_url(by_hand: Cluster) -> None:
    whose = ("--owner", "linker", "--scopes", "download")
    made = distfs(by_hand, "token", "create", *whose, "--json").entry
    tokens = TokenDB(by_hand.meta)
    [maker] = [each.token for each in tokens.since(0, Deadline(60)) if str(each.token.id) == made["id"]]
    text = seal(Link(maker.id, int(time.time()) + 60, UUID(int=1)), maker.link_keys[0][0])
    told = distfs(by_hand, "link", "revoke", f"http://files.example/download/{UUID(int=1)}?link={text}")
    assert (told.code, "is revoked; services that run know it within a second" in told.out) == (0, True)
    [maker] = [each.token for each in tokens.since(0, Deadline(60)) if each.token.id == maker.id]
    assert len(maker.revoked_links) == 1
    for wrong in ("http://files.example/", "?link=" + seal(Link(maker.id, 1, UUID(int=1)), bytes(32))):
        told = distfs(by_hand, "link", "revoke", wrong)
        assert (told.code, len(told.err.splitlines())) == (1, 1)


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
