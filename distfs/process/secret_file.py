"""Secrets from files: on a command line `ps` would show them, and what is in the environment every child has."""

from __future__ import annotations

import functools
import logging
import os
import stat
from collections.abc import Mapping

from distfs.errors import ConfigError

log = logging.getLogger("distfs.secrets")

_MOST_BYTES = 4096
#: Variables that may hold a secret, and under which name systemd has it as a credential (systemd.exec(5)). What of
#: them is configured as a file is read at each use; of the others the text is taken once.
_VARIABLES = {
    "DISTFS_METADB_URL": "distfs.metadb.url",
    "DISTFS_METADB_PASSWORD": "distfs.metadb.password",
    "DISTFS_TOKEN": "distfs.token",
}
_READ_LATER = {"DISTFS_METADB_PASSWORD"}
_CREDENTIALS = "CREDENTIALS_DIRECTORY"


def read(path: str, named: str, what: str = "secret") -> str:
    """The one line of a file. ``named``: what names it. Raises ConfigError, which shows nothing of it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe nobody writes to is not waited for
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{named}: {path} is not a file")
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "there is no such name"
        raise ConfigError(f"{named}: cannot read {path}: {reason}") from e
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = ""
    if len(data) > _MOST_BYTES or not text or not text.isprintable():
        raise ConfigError(f"{named}: {path} must hold the {what}, on one line of text")
    if status.st_mode & stat.S_IROTH:
        _warn(named, path)
    return text


def with_files(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with the secrets that it, or systemd, names files for. Raises ConfigError."""
    given = dict(environ)
    credentials = environ.get(_CREDENTIALS, "")
    for name, credential in _VARIABLES.items():
        path = os.path.join(credentials, credential) if credentials else ""  # noqa: PTH118 - as it is given on
        if name not in given and f"{name}_FILE" not in given and path and os.path.exists(path):  # noqa: PTH110
            given[f"{name}_FILE"] = path
        if name in _READ_LATER or f"{name}_FILE" not in given:
            continue
        file = given.pop(f"{name}_FILE")
        if name in given:
            raise ConfigError(f"environment: {name} and {name}_FILE are both set: remove one")
        given[name] = read(file, f"{name}_FILE")
    return given


@functools.cache
def _warn(named: str, path: str) -> None:
    log.warning("%s: everybody may read %s: chmod o-r %s", named, path, path)
