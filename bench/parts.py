"""distfs as parts that are started by themselves: a PostgreSQL, storage nodes, and services of several kinds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

from bench import processes
from bench.processes import Process
from bench.targets import NODES, first_line, python, reap, set_environment
from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.process import parent_watch
from distfs.storage.disk.home import make_home
from distfs.tls.authority import Authority

_STOP_S = 20.0
_START_S = 60.0


class Parts:
    """One cluster. ``mutual``: TLS between its services and nodes."""

    def __init__(self, folder: Path, *, mutual: bool) -> None:
        self._folder, self._mutual = folder, mutual
        self._postgres = EmbeddedPostgres(folder / "db")
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._services: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @contextmanager
    def running(cls, folder: Path, *, mutual: bool) -> Iterator[Parts]:
        folder.mkdir()
        parts = cls(folder, mutual=mutual)
        try:
            parts._start()
            yield parts
        finally:
            for child in (*parts._services.values(), *parts._nodes):
                child.terminate()
            for child in (*parts._services.values(), *parts._nodes):
                reap(child)
            parts._postgres.stop()

    def _start(self) -> None:
        self._postgres.start()
        with closing(MetaDB(MetaDBConfig(url=self._postgres.url))) as meta:
            meta.migrate()
            self.authority = Authority.make(self._folder / "ca", meta.cluster_id(Deadline(_START_S)))
            self._own = self.authority.sign_service("service", ("localhost", "127.0.0.1"))
            for number in range(NODES):
                self._start_node(self._folder / f"node{number}")
            deadline = Deadline(_START_S)
            while sum(node.writable for node in meta.nodes(deadline)) < NODES:
                deadline.remaining("waiting for the nodes")

    def _start_node(self, data: Path) -> None:
        node: UUID = make_home(data).node
        arguments = ["-m", "distfs.storage_server", "--data", str(data), "--port", "0"]
        with set_environment(self._tls(self.authority.sign_node(node, ()))):
            self._nodes.append(self._run(arguments, data.name))

    def _tls(self, own: Path) -> dict[str, str]:
        """The environment of a part with this certificate."""
        if not self._mutual:
            return {}
        folder = self.authority.folder
        files = {
            "CA": folder / "ca.crt",
            "CRL": folder / "crl.pem",
            "CERT": own,
            "KEY": own.with_suffix(".key"),
        }
        return {f"DISTFS_TLS_{key}": str(file) for key, file in files.items()}

    def _run(self, arguments: list[str], name: str) -> subprocess.Popen[bytes]:
        metadb = ["--metadb", self._postgres.url, parent_watch.FLAG]
        with (self._folder / f"{name}.log").open("wb") as log:
            return python([*arguments, *metadb], self._folder, subprocess.PIPE, log)

    def serve(self, name: str, environ: Mapping[str, str]) -> str:
        """One more service; -> its URL. Raises Unavailable."""
        with set_environment(self._tls(self._own) | dict(environ)):
            child = self._services[name] = self._run(["-m", "distfs", "serve", "--port", "0"], name)
        return first_line(child, f"the service {name}")

    @property
    def metadb(self) -> str:
        return self._postgres.url

    @property
    def ca(self) -> str:
        return str(self.authority.folder / "ca.crt")

    @property
    def https(self) -> dict[str, str]:
        """The environment of a service that speaks HTTPS."""
        pair = f"[{{cert: {self._own}, key: {self._own.with_suffix('.key')}}}]"
        return {"DISTFS_TLS_MODE": "on", "DISTFS_TLS_CERTIFICATES": pair}

    def processes(self, service: str) -> list[Process]:
        pids = {"service": [self._services[service].pid], "node": [node.pid for node in self._nodes]}
        return processes.identify(pids)
