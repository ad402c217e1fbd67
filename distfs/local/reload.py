"""SIGHUP to a service: the configuration is read anew, and what can change while it runs is changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from distfs.config.settings import Config
from distfs.errors import ConfigError, Unavailable
from distfs.process.signals import on_reload
from distfs.services import Services
from distfs.telemetry.logs import set_level

log = logging.getLogger("distfs.reload")

#: What applies at once; everything else of a changed file waits for a restart.
LIVE = ("bandwidth", "callers", "log.level")


def applied(config: Config, latest: Config) -> Config:
    """``config`` with what of ``latest`` applies at once."""
    log = replace(config.log, level=latest.log.level)
    return replace(config, bandwidth=latest.bandwidth, callers=latest.callers, log=log)


class Reload:
    """Applies what of a configuration that was changed can change at once."""

    def __init__(self, read: Callable[[], Config], config: Config, services: Services) -> None:
        """``read``: the configuration as it is now, or ConfigError. ``config``: what it gave at the start."""
        self._read, self._config, self._services = read, config, services
        self._lock = threading.Lock()

    def on_signal(self, hung_up: Callable[[], None]) -> None:
        """Do it at every SIGHUP, except when the terminal is gone: then call ``hung_up``. From the main thread."""
        stays = "the configuration stays as it was: %s; send SIGHUP again"
        on_reload(self.now, hung_up, lambda e: log.error(stays, e))

    def now(self) -> None:
        """Apply what changed, and say so; a configuration with a mistake in it changes nothing."""
        with self._lock:
            try:
                config = self._read()
            except ConfigError as e:
                log.error("the configuration stays as it was: %s", e)
                return
            changes = dict(_changes(self._config, config))
            set_level(config.log)
            try:
                self._services.reconfigure(config)
            except Unavailable as e:
                log.error("not all of the configuration was applied: %s; then send SIGHUP again", e)
                return
            self._config = config
        live = [f"{key} {change}" for key, change in changes.items() if key.startswith(LIVE)]
        log.info("the configuration was read anew: %s", "; ".join(live) or "nothing to apply")
        if late := [key for key in changes if not key.startswith(LIVE)]:
            log.warning("a restart is needed for what else has changed: %s", ", ".join(late))


def _changes(before: Config, after: Config) -> Iterator[tuple[str, str]]:
    """Key -> "old -> new", for every key that differs."""
    for section in fields(Config):
        old, new = getattr(before, section.name), getattr(after, section.name)
        for key in fields(old):
            was, is_now = getattr(old, key.name), getattr(new, key.name)
            if was != is_now:
                yield f"{section.name}.{key.name}", f"{_shown(was)} -> {_shown(is_now)}"


def _shown(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
