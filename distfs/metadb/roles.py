"""The roles of a cluster's parts in MetaDB, made with a password each; what they may is in ``sql/roles.sql``."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from distfs.errors import ConfigError
from distfs.metadb.driver import DatabaseError
from distfs.process import secret_file

ROLES = ("distfs_service", "distfs_node", "distfs_upkeep", "distfs_readonly")
_ITERATIONS = 4096  # PostgreSQL's own: the password is random, so that more would protect nothing


def make_roles(connection: Any, folder: Path) -> list[Path]:
    """Make those that are missing, and give each the password in ``folder``/<role>, made where there is none; ->
    these files. Passwords reach the server as verifiers (RFC 5802), so its log cannot have them.

    Raises ConfigError.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        passwords = {role: _password(folder / role) for role in ROLES}
    except OSError as e:
        raise ConfigError(f"cannot keep the roles' passwords in {folder}: {e.strerror or e}") from e
    try:
        for role, password in passwords.items():
            if not connection.run("SELECT FROM pg_roles WHERE rolname = :role", role=role):
                connection.run(f"CREATE ROLE {role} LOGIN")
            connection.run(f"ALTER ROLE {role} PASSWORD '{_verifier(password)}'")
    except DatabaseError as e:
        if isinstance(e.args[0], dict) and e.args[0].get("C") == "42501":
            raise ConfigError(
                "whom metadb.url names may not make roles: run `distfs migrate --roles` once as an administrator, "
                "or have one run CREATE ROLE for " + ", ".join(ROLES)
            ) from e
        raise
    return [folder / role for role in ROLES]


def _password(file: Path) -> str:
    try:
        fd = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        text = secret_file.read(
            str(file), "migrate --roles", "password"
        )  # as whoever logs in with it reads it
        if not text.strip() or not text.isascii():
            raise ConfigError(f"{file} must hold a password, on one line of ASCII") from None
        return text
    with open(fd, "w") as f:
        text = secrets.token_urlsafe(32)
        f.write(f"{text}\n")
    return text


def _verifier(password: str) -> str:
    """As PostgreSQL keeps it: SCRAM-SHA-256$iterations:salt$stored key:server key."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(each).decode() for each in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"
