"""The password of MetaDB where ``metadb.url`` has none: from the configuration, or from a file.

In the order of libpq: a URL's, PGPASSWORD's, a password file's
(https://www.postgresql.org/docs/current/libpq-envars.html). On a command line, `ps` would show it to everybody.
"""

from __future__ import annotations

import functools
import logging
import os
import stat

from distfs.config.settings import MetaDBConfig
from distfs.errors import ConfigError

log = logging.getLogger("distfs.metadb")

_MOST_BYTES = 4096


def password_of(config: MetaDBConfig) -> str:
    """The file is read at each call: it may be another by now. Raises ConfigError, which shows nothing of it."""
    if config.password or not config.password_file:
        return config.password
    return _read(config.password_file)


def _read(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe nobody writes to is not waited for
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"metadb.password_file: {path} is not a file")
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "there is no such name"
        raise ConfigError(f"metadb.password_file: cannot read {path}: {reason}") from e
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = ""
    if len(data) > _MOST_BYTES or not text or not text.isprintable():
        raise ConfigError(f"metadb.password_file: {path} must hold the password, on one line of text")
    if status.st_mode & stat.S_IROTH:
        _warn(path)
    return text


@functools.cache
def _warn(path: str) -> None:
    log.warning("metadb.password_file: everybody may read %s: chmod o-r %s", path, path)
