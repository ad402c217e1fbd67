"""TCP: a connection within one bound, the look-up of a name and every address it has included; and listening.

``socket.create_connection`` bounds each address by itself, and the look-up not at all.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from concurrent.futures import Future
from typing import Any

from distfs.errors import ConfigError
from distfs.process import descriptors
from distfs.process.threads import as_ours, start

#: So long any address is given to answer.
_LEAST_S = 0.05
#: What getaddrinfo gives for each address: family, type, protocol, canonical name, address.
_TIMEVAL = struct.Struct("@ll")
_Found = list[tuple[Any, Any, int, str, Any]]


def keep_alive(sock: socket.socket, idle: int, every: int, count: int) -> None:
    """Let the kernel find a peer whose machine vanished: ``count`` probes, ``every`` seconds, after ``idle`` seconds.

    Linux and most BSDs let a connection have times of its own; elsewhere the system's hold.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", idle), ("TCP_KEEPINTVL", every), ("TCP_KEEPCNT", count)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def cannot_listen(host: str, port: int, error: OSError, other_host: str, other_port: str) -> ConfigError:
    """Why nobody can listen there, in one line; ``other_host``, ``other_port``: how to choose another."""
    if error.errno == errno.EADDRINUSE:
        why, remedy = "another program listens there", other_port
    elif error.errno == errno.EACCES and 0 < port < 1024:
        why, remedy = "ports below 1024 need privileges", other_port
    else:
        why, remedy = error.strerror or str(error), other_host
    place = f"[{host}]" if ":" in host else host
    return ConfigError(f"cannot listen on {place}:{port}: {why}; {remedy}")


def to_listen(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The family and the address, as ``bind`` takes it, of a host to listen on; "": every one. Raises OSError."""
    flags = socket.AI_PASSIVE
    family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)[0]
    return family, address


def timeval(seconds: float) -> bytes:
    """A time limit as SO_RCVTIMEO and SO_SNDTIMEO take it; never zero, which would be for ever."""
    whole = int(seconds)
    return _TIMEVAL.pack(whole, int((seconds - whole) * 1_000_000) or not whole)


def dial(host: str, port: int, timeout: float) -> socket.socket:
    """Connect within ``timeout`` seconds, of which each address of a name may use its part, but for a moment each is
    given in any case: where this process was not let run for so long, no peer is to blame.

    Raises TimeoutError, or what the last address answered as OSError.
    """
    ends = time.monotonic() + timeout
    error = OSError(f"{host} has no address")
    found = _look_up(host, port, timeout)
    for number, (family, kind, protocol, _, address) in enumerate(found):
        left = (ends - time.monotonic()) / (len(found) - number)  # one that never answers takes only its part
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(left, _LEAST_S))
            sock.connect(address)
            return sock
        except OSError as e:
            sock.close()
            error = e
    raise error


def _look_up(host: str, port: int, timeout: float) -> _Found:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except UnicodeError as e:
        raise OSError(f"{host} is no name of a host: {e}") from e
    except socket.gaierror:
        pass  # a name: the system's resolver knows no time limit of ours, so a thread asks it
    answer: Future[_Found] = Future()

    def ask() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as e:
            answer.set_exception(descriptors.shortage() or e)
        except BaseException as e:  # noqa: BLE001 - the thread's outermost edge: somebody waits for its answer
            answer.set_exception(as_ours(e))

    start(ask, "look-up")
    try:
        return answer.result(timeout)
    except TimeoutError as e:
        raise TimeoutError(f"the name {host} is not resolved within {timeout:.2f} s") from e
