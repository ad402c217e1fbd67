"""A PostgreSQL with TLS: the system's, since the one that tests bring along was made without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distfs.config.settings import Certificate
from distfs.metadb import unprivileged
from tests.certificates import Certificates
from tests.contract.litter import eventually
from tests.ports import free_port
from tests.privileges import do_without

_NOBODY = 65534


def _programs() -> Path:
    """Where a PostgreSQL is that was made with TLS."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        do_without("TLS to MetaDB wants a PostgreSQL of the system (initdb)")
    return folders[-1]


class TlsPostgres:
    """Takes whoever comes under TLS and, ``demands``, has a certificate of the authority; nobody in plain text."""

    def __init__(
        self, folder: Path, certificates: Certificates, own: Certificate, demands: bool = False
    ) -> None:
        self.port, self._folder, self._bin = free_port(), folder, _programs()
        self._data = folder / "data"
        folder.mkdir()
        self._give(folder)
        self._run("initdb", "-D", str(self._data), "-U", "distfs", "--no-sync", "-A", "trust")
        for name, source in (("server.crt", own.cert), ("server.key", own.key), ("ca.crt", certificates.ca)):
            target = self._data / name
            shutil.copy(source, target)
            target.chmod(0o600)
            self._give(target)
        (self._data / "pg_hba.conf").write_text(
            f"hostssl all all 127.0.0.1/32 trust {'clientcert=verify-ca' if demands else ''}\n"
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "ssl": "on",
            "ssl_ca_file": "ca.crt",
            "fsync": "off",
        }
        flags = [f"-c{key}={value}" for key, value in settings.items()]
        log = (folder / "log").open("w")
        with log:
            self._process = subprocess.Popen(
                self._argv("postgres", "-D", str(self._data), *flags), stderr=log
            )
        eventually(lambda: "ready to accept" in (folder / "log").read_text(), "PostgreSQL listens")

    def _give(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, _NOBODY, _NOBODY)

    def _argv(self, program: str, *args: str) -> list[str]:
        command = [str(self._bin / program), *args]
        if os.geteuid() != 0:
            return command
        become = [sys.executable, unprivileged.__file__, str(_NOBODY), str(_NOBODY), "0", str(self._folder)]
        return [*become, "--", *command]

    def _run(self, program: str, *args: str) -> None:
        subprocess.run(self._argv(program, *args), check=True, capture_output=True)

    def url(self, query: str, host: str = "localhost") -> str:
        return f"postgresql://distfs@{host}:{self.port}/postgres?{query}"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def tls_postgres(
    folder: Path, certificates: Certificates, own: Certificate, demands: bool = False
) -> Iterator[TlsPostgres]:
    running = TlsPostgres(folder, certificates, own, demands)
    try:
        yield running
    finally:
        running.close()
