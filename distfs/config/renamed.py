"""Settings that have another name now. The old one works, and a line says what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distfs.errors import ConfigError

#: Hears a line about old names.
Warn = Callable[[str], object]

#: What ``node`` had while it was a storage node's section and that of those who talk to one.
_OF_PEERS = (
    "connections",
    "max_connections",
    "connection_idle",
    "connection_age",
    "connect_timeout",
    "stall_timeout",
    "patience",
    "base_timeout",
    "min_rate",
    "hedge_min",
    "hedge_budget",
    "breaker_failures",
    "breaker_pause",
)

#: (section, key) of before -> (section, key).
_NOW = {("node", key): ("peers", key) for key in _OF_PEERS}

#: The same as variables of the environment.
_VARIABLES = {
    f"DISTFS_{'_'.join(old)}".upper(): f"DISTFS_{'_'.join(new)}".upper() for old, new in _NOW.items()
}


def in_file(tree: Mapping[Any, Any], warn: Warn) -> dict[Any, Any]:
    """A file's tree with the names of now. Raises ConfigError where a setting has both."""
    moved = {key: dict(inner) if isinstance(inner, dict) else inner for key, inner in tree.items()}
    found = []
    for (section, key), (now_section, now_key) in _NOW.items():
        inner, target = moved.get(section), moved.get(now_section) or {}
        if not isinstance(inner, dict) or key not in inner or not isinstance(target, dict):
            continue
        old, new = f"{section}.{key}", f"{now_section}.{now_key}"
        if now_key in target:
            raise _both("config", old, new)
        moved[now_section] = target | {now_key: inner.pop(key)}
        found.append(f"{old} is {new}")
    _say("config", found, warn)
    return moved


def in_environment(environ: Mapping[str, str], warn: Warn) -> dict[str, str]:
    """Old variable -> its name of now, for those that are set. Raises ConfigError where both are."""
    there = {old: new for old, new in _VARIABLES.items() if old in environ}
    for old, new in there.items():
        if new in environ:
            raise _both("environment", old, new)
    _say("environment", [f"{old} is {new}" for old, new in there.items()], warn)
    return there


def _both(where: str, old: str, new: str) -> ConfigError:
    return ConfigError(f"{where}: {old} is the old name of {new}, and both are set: remove {old}")


def _say(where: str, found: list[str], warn: Warn) -> None:
    if found:
        warn(f"{where}: write the new names of these: {', '.join(found)} now")
