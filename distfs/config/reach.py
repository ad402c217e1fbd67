"""Where the service may listen: beyond this machine only where somebody has written who may use it, and how.

A default that nobody wrote is no decision. Of another WSGI host's address nothing is known here: there, whoever asks
has to be on this machine.
"""

from __future__ import annotations

from functools import lru_cache

from distfs.config.callers import LOOPBACK, is_in, parse_address
from distfs.config.settings import Config
from distfs.errors import ConfigError
from distfs.process.dial import to_listen

_AUTH = "`auth: on` (or `auth: open`: everybody may read and delete all files)"
_TLS = "`tls: on` (or `tls: off`: plain text)"


def check_reach(config: Config) -> None:
    """Raises ConfigError: one line with the lines to write."""
    missing = [
        line
        for line, undecided in ((_AUTH, config.auth.mode == "off"), (_TLS, config.tls.mode == "auto"))
        if undecided
    ]
    if missing and not is_loopback(config.http.host):
        raise ConfigError(
            f"the service would listen on {config.http.host or 'every address'}, which others than this machine "
            f"reach: write {' and '.join(missing)} into config.yml"
        )


@lru_cache(maxsize=256)
def is_here(address: str) -> bool:
    """Whether who is at the other end of a connection is on this machine; "": of a Unix socket."""
    return not address or is_in(parse_address(address), LOOPBACK)


def is_loopback(host: str) -> bool:
    """Whether who listens at ``host``, an address or a name, is reached from this machine alone."""
    try:
        _, address = to_listen(host, 0)
    except (OSError, UnicodeError):  # nobody can listen there, which is said by who tries
        return True
    found = parse_address(address[0])
    return is_in(found, LOOPBACK)
