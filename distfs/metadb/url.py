"""Where MetaDB is: ``postgresql://user:password@host1:5432,host2/database?sslmode=require`` as a value.

The form is libpq's (https://www.postgresql.org/docs/current/libpq-connect.html, "Connection URIs") as far as
it concerns distfs; a parameter that would have to be ignored is refused instead.
"""

from __future__ import annotations

import functools
import re
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from distfs.config.settings import MetaDBConfig
from distfs.errors import ConfigError
from distfs.metadb.password import password_of
from distfs.tls.contexts import FromFiles, believe, heed, load_pair

_SCHEMES = ("postgresql://", "postgres://")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_PARAMETERS = ("host", "port", "user", "password", "sslmode", *_FILES)
_SSL_MODES = ("disable", "require", "verify-full")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FORM = "postgresql://user:password@host:port/database"


@dataclass(frozen=True, slots=True)
class Host:
    """One PostgreSQL server: a name and port, or the folder of its Unix socket."""

    name: str
    port: int

    @property
    def socket_path(self) -> str | None:
        """The Unix socket's path; None: it is reached over TCP."""
        return f"{self.name}/.s.PGSQL.{self.port}" if self.name.startswith("/") else None

    def __str__(self) -> str:
        return self.socket_path or f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class MetaURL:
    """Whom to connect to, as whom. Printing it shows no password."""

    hosts: tuple[Host, ...]  # the first that takes writes is used
    user: str
    database: str
    password: str = field(default="", repr=False)
    sslmode: str = ""  # empty: nothing on this machine, 'verify-full' elsewhere
    sslrootcert: str = ""  # empty: the system's authorities
    sslcert: str = ""  # our own, for a server that asks for one
    sslkey: str = ""
    sslcrl: str = ""  # what is revoked

    @classmethod
    def parse(cls, text: str) -> MetaURL:
        """Raises ConfigError: one line without the password."""
        scheme = next((s for s in _SCHEMES if text.startswith(s)), None)
        if scheme is None:
            raise ConfigError(f"metadb.url must look like {_FORM} or embedded:./data/metadb")
        place, _, query = text.removeprefix(scheme).partition("?")
        authority, _, database = place.partition("/")
        credentials, _, hosts = authority.rpartition("@")
        user, _, password = credentials.partition(":")
        options = _options(query)
        user = options.get("user", unquote(user))
        if not user:
            raise ConfigError(f"metadb.url names no user: {_FORM}")
        return cls(
            hosts=_hosts(options.get("host") or unquote(hosts) or "localhost", options.get("port", "5432")),
            user=user,
            database=unquote(database) or user,
            password=options.get("password", unquote(password)),
            sslmode=options.get("sslmode", ""),
            **{key: options.get(key, "") for key in _FILES},
        )

    @classmethod
    def of(cls, config: MetaDBConfig) -> MetaURL:
        """With a password from elsewhere where ``metadb.url`` has none. Raises ConfigError as ``parse`` does."""
        url = cls.parse(config.url)
        return url if url.password else replace(url, password=password_of(config))

    def mode_to(self, host: Host) -> str:
        """libpq's sslmode for a host: as asked for, else no TLS on this machine and a proved server elsewhere."""
        if host.socket_path is not None:
            return "disable"
        return self.sslmode or ("disable" if host.name in _LOOPBACK else "verify-full")

    def ssl_context(self, host: Host) -> ssl.SSLContext | bool:
        """For pg8000: a context, or False for none. Never None, with which it falls back to plaintext."""
        mode = self.mode_to(host)
        if mode == "disable":
            return False
        return _context(mode, *(getattr(self, key) for key in _FILES)).now()[0]

    def __str__(self) -> str:
        return f"{self.user}@{','.join(map(str, self.hosts))}/{self.database}"


@functools.cache
def _context(mode: str, root: str, cert: str, key: str, crl: str) -> FromFiles[ssl.SSLContext]:
    """Made once, as long as its files are the same: to read the system's certificates takes 40 ms."""

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert:
            load_pair(context, cert, key, "metadb.url: sslcert, sslkey")
        if mode == "require":  # encrypted, the server's name not proved: what libpq means by it
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif root:
            believe(context, root, "metadb.url: sslrootcert")
        else:
            context.load_default_certs()
        if crl and mode != "require":
            heed(context, crl, "metadb.url: sslcrl")
        return context

    return FromFiles("metadb.url's certificates", [each for each in (root, cert, key, crl) if each], make)


def _options(query: str) -> dict[str, str]:
    if "@" in query:  # none of it is shown: it may be a password with a question mark
        raise ConfigError(
            "metadb.url has an @ after a question mark: in a password, write ? as %3F, / as %2F and @ as %40"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in _PARAMETERS:
            named = f" {key!r}" if re.fullmatch("[a-z_]{1,30}", key) else ""
            raise ConfigError(f"metadb.url: unknown parameter{named}; known: {', '.join(_PARAMETERS)}")
    mode = options.get("sslmode")
    if mode is not None and mode not in _SSL_MODES:
        raise ConfigError(f"metadb.url: sslmode {mode!r} is not one of {', '.join(_SSL_MODES)}")
    for key in _FILES:
        if (file := options.get(key)) and not Path(file).is_file():
            raise ConfigError(f"metadb.url: {key} {file} is not a file")
    if bool(options.get("sslcert")) != bool(options.get("sslkey")):
        raise ConfigError("metadb.url: sslcert and sslkey go together")
    return options


def _hosts(text: str, default_port: str) -> tuple[Host, ...]:
    hosts = []
    for part in text.split(","):
        name, port = part, ""
        if not part.startswith("/") and (part.count(":") == 1 or "]:" in part):
            name, _, port = part.rpartition(":")
        port = port or default_port
        if not name or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                "metadb.url: what follows user:password@ is not host:port; in a password, write / as %2F and ? as %3F"
            )
        hosts.append(Host(name.strip("[]").rstrip("/"), int(port)))
    return tuple(hosts)
