"""TLS contexts from files, made anew when the files change: who is connected goes on, who comes gets the new one.

Only the standard library's ssl. A file that is broken changes nothing: the context of before goes on, the log says so
once, and so does ``trouble``, until the file is right.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

from distfs.config.settings import Certificate, TlsConfig
from distfs.errors import ConfigError
from distfs.tls.identity import hosts_of, node_uri, service_uri, uris_of
from distfs.tls.stream import AnySocket, TlsSocket

log = logging.getLogger("distfs.tls")

#: How old what is known of the files may be.
LOOK_EVERY_S = 2.0
#: Before a certificate's end, it is told.
SOON_DAYS = 14
#: Of the wire between service and node: a server of another protocol that has a certificate of the same authority
#: cannot be taken for a node (RFC 7301).
_WIRE = "distfs/1"

T = TypeVar("T")


class FromFiles(Generic[T]):
    """What is made of files, as they are now. Thread-safe."""

    def __init__(self, what: str, files: Iterable[str], make: Callable[[], T]) -> None:
        """Raises ConfigError as ``make`` does."""
        self._what, self._files, self._make = what, tuple(files), make
        self._lock = threading.Lock()
        self.generation = 0
        self._trouble = ""
        self._stamps = self._look()
        self._looked = time.monotonic()
        self._value = make()

    def now(self) -> tuple[T, int]:
        """With its generation. The files are looked at if that was long ago."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self.look()
        return self._value, self.generation

    @property
    def trouble(self) -> str:
        """Why what is in the files now is not used."""
        self.now()
        return self._trouble

    def look(self) -> None:
        """Whether they have changed. Never raises."""
        with self._lock:
            self._looked = time.monotonic()
            stamps = self._look()
            if stamps == self._stamps:
                return
            self._stamps = stamps
            try:
                self._value = self._make()
            except ConfigError as e:
                self._trouble = str(e)
                log.error("%s: what was there goes on: %s", self._what, e)
                return
            self.generation += 1
            self._trouble = ""
            log.info("%s: read anew", self._what)

    def _look(self) -> list[tuple[int, ...]]:
        return [_stamp(file) for file in self._files]


def _stamp(file: str) -> tuple[int, ...]:
    try:
        found = Path(file).stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


# --- HTTPS ------------------------------------------------------------------------------------------------


def https(config: TlsConfig) -> FromFiles[ssl.SSLContext] | None:
    """For the service's port; None: it speaks plain HTTP. Raises ConfigError."""
    if config.mode != "on":
        return None
    files = [file for pair in config.certificates for file in (pair.cert, pair.key)]
    return FromFiles("tls.certificates", files, lambda: _https(config.certificates))


def _https(certificates: Sequence[Certificate]) -> ssl.SSLContext:
    by_name: dict[str, ssl.SSLContext] = {}
    contexts = []
    for pair in certificates:
        context = _server()
        load_pair(context, pair.cert, pair.key, "tls.certificates")
        context.set_alpn_protocols(["http/1.1"])
        contexts.append(context)
        for name in hosts_of(decoded(pair.cert)):
            by_name.setdefault(name, context)

    def choose(tls: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        wanted = (name or "").lower()
        found = by_name.get(wanted) or by_name.get(f"*.{wanted.partition('.')[2]}")
        if found is not None and found is not first:
            tls.context = found

    if len(contexts) > 1:
        contexts[0].sni_callback = cast(Any, choose)
    return contexts[0]


# --- between service, node and MetaDB ---------------------------------------------------------------------


class Peers:
    """Mutual TLS of a cluster: this part's own certificate, and whose it believes."""

    def __init__(self, config: TlsConfig) -> None:
        """Raises ConfigError."""
        c = config
        self.certificate = c.cert  # its file
        files = [file for file in (c.ca, c.cert, c.key, c.crl) if file]
        self._files = FromFiles("tls.ca, cert, key and crl", files, lambda: (_client(c), _node(c)))

    @property
    def trouble(self) -> str:
        """Why what is in the files now is not used."""
        return self._files.trouble

    def look(self) -> None:
        self._files.look()

    def to_node(self, cluster: UUID, node: UUID) -> Side:
        return Side(self._files, cluster, node)

    def to_service(self, cluster: UUID) -> Side:
        return Side(self._files, cluster, None)


class WrongPeer(OSError):
    """Its certificate is believed, and it is somebody else."""


class Side:
    """One end of a connection between service and node: whom it wants at the other."""

    def __init__(
        self, files: FromFiles[tuple[ssl.SSLContext, ssl.SSLContext]], cluster: UUID, node: UUID | None
    ) -> None:
        """``node``: the one that is called; None: we are one, and are called by a service."""
        self._files, self._cluster, self._node = files, cluster, node

    def begin(self, raw: socket.socket, until: float) -> TlsSocket:
        """The handshake, ``until`` then on the monotonic clock. Raises OSError, such as WrongPeer, PlainText."""
        (client, server), generation = self._files.now()
        called = self._node is None
        sock = TlsSocket(raw, server if called else client, server_side=called, generation=generation)
        sock.shake(until)
        if wrong := is_wrong_peer(sock.peer, self._cluster, self._node):
            raise WrongPeer(0, wrong)
        return sock

    def outdated(self, sock: AnySocket) -> bool:
        """It began with other files: what was believed then may be revoked."""
        return isinstance(sock, TlsSocket) and sock.generation != self._files.now()[1]


def is_not_own(config: TlsConfig, cluster: UUID, node: UUID) -> str:
    """Why ``tls.cert`` is not this node's; empty: it is. Raises ConfigError."""
    found = uris_of(decoded(config.cert))
    if node_uri(cluster, node) in found:
        return ""
    return f"tls.cert: {config.cert} is not node {node}'s of cluster {cluster}, but {', '.join(found) or 'nobody'}'s"


def peers(config: TlsConfig) -> Peers | None:
    """None: between service and node there is no TLS. Raises ConfigError."""
    return Peers(config) if config.ca else None


def _client(c: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # who it is is known by its UUID
    return _mutual(context, c)


def _node(c: TlsConfig) -> ssl.SSLContext:
    context = _server()
    context.num_tickets = 0  # who is revoked must not come back by one
    context.options |= ssl.OP_NO_TICKET
    return _mutual(context, c)


def _mutual(context: ssl.SSLContext, c: TlsConfig) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([_WIRE])
    load_pair(context, c.cert, c.key, "tls.cert, tls.key")
    believe(context, c.ca, "tls.ca")
    if c.crl:
        heed(context, c.crl, "tls.crl")
    return context


def is_wrong_peer(tls: ssl.SSLObject, cluster: UUID, node: UUID | None) -> str:
    """Why the one at the other end is not ``node``, or not a service (None) of the cluster; empty: it is."""
    if tls.selected_alpn_protocol() != _WIRE:
        return "it speaks another protocol under TLS than distfs"
    wanted = service_uri(cluster) if node is None else node_uri(cluster, node)
    found = uris_of(tls.getpeercert())
    if wanted in found:
        return ""
    what = "a service" if node is None else f"node {node}"
    return f"its certificate is not {what}'s of this cluster, but {', '.join(found) or 'nobody'}'s"


# --- what all have ----------------------------------------------------------------------------------------


def _server() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def load_pair(context: ssl.SSLContext, cert: str, key: str, setting: str) -> None:
    """Raises ConfigError."""
    for path in (cert, key):
        _check_readable(path, setting)
    try:
        if stat.S_IMODE(Path(key).stat().st_mode) & stat.S_IROTH:
            log.warning("%s: everybody may read %s: chmod 600 %s", setting, key, key)
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as e:
        why = {
            "KEY_VALUES_MISMATCH": f"{key} is not the key of {cert}",
            "NO_START_LINE": f"{cert} or {key} is not PEM, or not what it should be",
            "": f"{cert} or {key} is not PEM, or not what it should be",
        }.get(e.reason or "", f"{cert} with {key} cannot be used ({e.reason or e})")
        raise ConfigError(f"{setting}: {why}") from e
    except (OSError, ValueError) as e:
        raise ConfigError(f"{setting}: {key} cannot be read: is it encrypted? Keys must not be") from e


def believe(context: ssl.SSLContext, file: str, setting: str) -> None:
    """Certificates that an authority of ``file`` signed. Raises ConfigError."""
    _load(context, file, setting, "certificates of an authority")
    if not context.cert_store_stats()["x509_ca"]:
        raise ConfigError(f"{setting}: {file} has no certificate of an authority")


def heed(context: ssl.SSLContext, file: str, setting: str) -> None:
    """What a list of revoked ones says. Raises ConfigError."""
    _load(context, file, setting, "a list of what is revoked")
    if not context.cert_store_stats()["crl"]:
        raise ConfigError(f"{setting}: {file} is no list of what is revoked")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load(context: ssl.SSLContext, file: str, setting: str, what: str) -> None:
    _check_readable(file, setting)
    try:
        context.load_verify_locations(cafile=file)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{setting}: {file} does not hold {what}") from e


def _check_readable(path: str, setting: str) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "there is no such name"
        raise ConfigError(f"{setting}: cannot read {path}: {reason}") from e


def soon_over(files: Iterable[str]) -> list[str]:
    """A line for each certificate that ends soon, or has ended."""
    lines = []
    for file, end in _ends(files):
        days = (end - time.time()) / 86400
        if days < SOON_DAYS:
            when = f"ends in {days:.0f} days" if days > 0 else "has ended"
            lines.append(f"{file} {when}: have it renewed")
    return lines


def first_end(files: Iterable[str]) -> float | None:
    """When the first of some certificates ends, in seconds since 1970; None: there is none that can be read."""
    return min((end for _, end in _ends(files)), default=None)


def _ends(files: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Each file with when its certificate ends; one that cannot be read is told of where it is used."""
    for file in files:
        with contextlib.suppress(ConfigError, KeyError, ValueError):
            yield file, float(ssl.cert_time_to_seconds(decoded(file)["notAfter"]))


def decoded(file: str) -> dict[str, Any]:
    """The first certificate of a PEM file, as ``getpeercert`` has it. The library has no other way to read one."""
    decode = cast(Any, ssl)._ssl._test_decode_cert
    try:
        return cast("dict[str, Any]", decode(file))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{file} holds no certificate: {e}") from e
