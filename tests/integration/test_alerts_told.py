"""A service tells by itself what burns: once when it begins, once when it is over, whoever leads meanwhile."""

from __future__ import annotations

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.alerting import tell
from distfs.alerting.beside import Beside
from distfs.alerting.telling import RETRY_S
from distfs.alerting.worker import EVERY_S, Alerts, Clocks, Lead
from distfs.cli import main
from distfs.config.settings import AlertingConfig, MetaDBConfig, Secret, Words
from distfs.meta import MetaDB
from distfs.process.output import USAGE
from distfs.telemetry import metrics
from distfs.telemetry.metrics import Sample
from distfs.upkeep.db import UpkeepDB
from tests.hooks import webhook
from tests.integration.meta_examples import soon
from tests.ports import refusing


class Leader:
    """A service that leads, on a clock of the test; node 3 is up or down."""

    def __init__(self, db: UpkeepDB, config: AlertingConfig) -> None:
        self.db, self.now, self.up = db, 1000.0, 1.0
        self.config = config
        self.begin()

    def begin(self) -> None:
        """As another service does that leads from now on."""
        clocks = Clocks(lambda: self.now, lambda: self.now)
        self.worker = Alerts(self.db, self.config, lambda: [Sample(metrics.NODE_UP, self.up, ("3",))], clocks)

    def looks(self, seconds: float) -> None:
        ends = self.now + seconds
        while self.now < ends:
            self.now += EVERY_S
            self.db.save_worker("alerts", "idle", self.worker.step(soon()).detail, soon())


@pytest.fixture
def db(make_database: Callable[[str], str]) -> Iterator[UpkeepDB]:
    meta = MetaDB(MetaDBConfig(url=make_database("migrated")))
    yield UpkeepDB(meta)
    meta.close()


def of_node(came: list[Any]) -> list[str]:
    alerts = [alert for message in came for alert in message["alerts"]]
    return [each["status"] for each in alerts if each["labels"]["alertname"] == "DistfsNodeDown"]


def test_it_is_told_once_and_once_when_it_is_over(db: UpkeepDB) -> None:
    with webhook() as (url, came):
        leader = Leader(db, AlertingConfig(webhook=Secret(url)))
        leader.looks(120)
        assert of_node(came) == [], "nothing is down"
        leader.up = 0
        leader.looks(45)
        assert of_node(came) == [], "not for long enough"
        leader.looks(300)
        assert of_node(came) == ["firing"]
        [alert] = came[-1]["alerts"]
        assert alert["labels"] == {"alertname": "DistfsNodeDown", "severity": "warning", "node": "3"}
        assert alert["annotations"]["summary"] == "storage node 3 is down"
        assert alert["annotations"]["command"] == "distfs nodes"
        leader.up = 1
        leader.looks(300)
        assert of_node(came) == ["firing", "resolved"]


def test_a_look_at_all_that_is_counted_makes_and_keeps_little(db: UpkeepDB) -> None:
    leader = Leader(db, AlertingConfig())
    leader.looks(EVERY_S)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        leader.looks(EVERY_S)
        kept, most = (figure - before for figure in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert kept < 50_000, "there are more than 5,000 series"
    assert most < 600_000


def test_who_leads_next_tells_nothing_again_and_tells_when_it_is_over(db: UpkeepDB) -> None:
    with webhook() as (url, came):
        leader = Leader(db, AlertingConfig(webhook=Secret(url)))
        leader.up = 0
        leader.looks(120)
        leader.begin()
        leader.looks(120)
        assert of_node(came) == ["firing"]
        leader.begin()
        leader.up = 1
        leader.looks(30)
        assert of_node(came) == ["firing"], "it has hardly looked"
        leader.looks(120)
        assert of_node(came) == ["firing", "resolved"]


def test_a_webhook_that_is_dead_is_told_later(db: UpkeepDB, caplog: pytest.LogCaptureFixture) -> None:
    with refusing() as port:
        leader = Leader(db, AlertingConfig(webhook=Secret(f"http://127.0.0.1:{port}/secret-path")))
        leader.up = 0
        leader.looks(600)
    assert "alerts could not be told by webhook" in caplog.text
    assert "secret-path" not in caplog.text
    assert caplog.text.count("storage node 3 is down") == 1, "the log was told once"
    with webhook(status=500) as (url, came):
        leader.config = replace(leader.config, webhook=Secret(url))
        leader.begin()
        leader.looks(RETRY_S)
        assert set(of_node(came)) == {"firing"}, "it was asked, and did not take it"
    with webhook() as (url, came):
        leader.config = replace(leader.config, webhook=Secret(url))
        leader.begin()
        leader.looks(2 * RETRY_S)
        assert of_node(came) == ["firing"]
    assert caplog.text.count("storage node 3 is down") == 1


def test_what_is_ignored_is_not_told(db: UpkeepDB) -> None:
    with webhook() as (url, came):
        leader = Leader(db, AlertingConfig(webhook=Secret(url), ignore=Words(("DistfsNodeDown",))))
        leader.up = 0
        leader.looks(300)
        assert of_node(came) == []


@contextmanager
def mail_server() -> Iterator[tuple[str, list[str]]]:
    """-> its URL, and what was sent to it. Takes one mail."""
    mails: list[str] = []

    def serve() -> None:
        one, _ = listener.accept()
        with one, one.makefile("rwb") as stream:

            def say(line: bytes) -> None:
                stream.write(line + b"\r\n")
                stream.flush()

            say(b"220 here")
            for line in stream:
                if line.upper().startswith(b"DATA"):
                    say(b"354 go on")
                    text = b"".join(iter(stream.readline, b".\r\n"))
                    mails.append(text.decode())
                say(b"221 bye" if line.upper().startswith(b"QUIT") else b"250 ok")
                if line.upper().startswith(b"QUIT"):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"smtp://127.0.0.1:{listener.getsockname()[1]}", mails
        thread.join(10)


def test_it_is_told_by_mail(db: UpkeepDB) -> None:
    with mail_server() as (url, mails):
        leader = Leader(db, AlertingConfig(mail_to="ops@example.org", smtp=Secret(url)))
        leader.up = 0
        leader.looks(120)
    [mail] = mails
    assert "To: ops@example.org" in mail
    assert "Subject: distfs: storage node 3 is down" in mail
    assert "run: distfs nodes" in mail


@contextmanager
def dripping(scheme: str) -> Iterator[tuple[str, list[bytes]]]:
    """-> the URL of a server that begins to answer and goes on, a byte at a time; what it sent."""
    sent: list[bytes] = []
    ends = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            while True:
                one, _ = listener.accept()
                with one, suppress(OSError):
                    one.sendall(b"HTTP/1.1 200 OK\r\nX: " if scheme == "http" else b"220 ")
                    while not ends.wait(0.02):
                        one.sendall(b"x")
                        sent.append(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/", sent
        ends.set()


@pytest.mark.parametrize("scheme", ["http", "smtp"])
def test_who_sends_a_byte_now_and_then_holds_up_nobody(
    db: UpkeepDB, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    monkeypatch.setattr(tell, "_ALL_S", 0.5)
    name = "webhook" if scheme == "http" else "mail"
    with dripping(scheme) as (url, sent):
        to = (
            {"webhook": Secret(url)}
            if name == "webhook"
            else {"mail_to": "ops@example.org", "smtp": Secret(url)}
        )
        leader = Leader(db, AlertingConfig(**to))
        leader.up = 0
        leader.looks(75)
    assert sent, "it dripped"
    assert f"could not be told by {name}" in caplog.text


class Alone:
    """A service, on a clock of the test, with MetaDB or without."""

    def __init__(self, config: AlertingConfig) -> None:
        self.now, self.there, self.lead = 1000.0, True, Lead()
        clocks = Clocks(lambda: self.now, lambda: self.now)
        self.beside = Beside(config, list, lambda: self.there, self.lead, "files:8080", clocks)

    def looks(self, seconds: float) -> None:
        ends = self.now + seconds
        while self.now < ends:
            self.now += EVERY_S
            self.beside.step()


def test_a_service_tells_by_itself_that_metadb_is_away_once_and_that_it_is_back() -> None:
    with webhook() as (url, came):
        service = Alone(AlertingConfig(webhook=Secret(url)))
        service.looks(120)
        service.there = False
        service.looks(600)
        assert [message["status"] for message in came] == ["firing"]
        [alert] = came[0]["alerts"]
        assert alert["labels"] == {
            "alertname": "DistfsMetaDBAway",
            "severity": "critical",
            "service": "files:8080",
        }
        service.there = True
        service.looks(60)
        assert [message["status"] for message in came] == ["firing", "resolved"]


def test_a_service_that_does_not_lead_tells_what_only_it_counts() -> None:
    metrics.share()
    with webhook() as (url, came):
        service = Alone(AlertingConfig(webhook=Secret(url)))
        service.lead.until = float("inf")
        service.looks(60)
        metrics.LOG_DROPPED.add(5)
        service.looks(60)
        assert came == [], "who leads tells it"
        service.lead.until = 0
        service.looks(60)
        metrics.LOG_DROPPED.add(5)
        service.looks(60)
        [alert] = came[0]["alerts"]
        assert (alert["labels"]["alertname"], alert["labels"]["service"]) == ("DistfsLogDrops", "files:8080")
        assert len(came) == 1


def test_a_name_that_is_no_alert_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yml"
    config.write_text("alerting: {ignore: [DistfsNodDown]}")
    assert main(["serve", "--config", str(config)]) == USAGE
    told = capsys.readouterr().err
    assert "DistfsNodDown" in told
    assert "did you mean DistfsNodeDown?" in told
    assert "DistfsBackupOld" in told
