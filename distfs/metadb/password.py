"""The password of MetaDB where ``metadb.url`` has none: from the configuration, or from a file.

In the order of libpq: a URL's, PGPASSWORD's, a password file's
(https://www.postgresql.org/docs/current/libpq-envars.html). On a command line, `ps` would show it to everybody.
"""

from __future__ import annotations

from distfs.config.settings import MetaDBConfig
from distfs.process import secret_file


def password_of(config: MetaDBConfig) -> str:
    """The file is read at each call: it may be another by now. Raises ConfigError, which shows nothing of it."""
    if config.password or not config.password_file:
        return config.password
    return secret_file.read(config.password_file, "metadb.password_file", "password")
