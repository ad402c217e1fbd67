"""Configuration: one YAML file, parsed once into the dataclasses of ``config``.

Values carry their unit in the file (``32MiB``, ``10s``, ``1%``). ``DISTFS_<SECTION>_<KEY>`` in the environment
overrides the file. An unknown key refuses to start and names the nearest known one.

Scalars of the file are read as text and the key's type decides: YAML's own guesses would make a boolean of
``direct_io: off`` and 90 of ``1:30``.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import yaml

from distfs.config import renamed
from distfs.config.callers import CallerMatch, Network, parse_network
from distfs.config.rules import check_relations
from distfs.config.settings import (
    AUTO,
    MOST_PROCESSES,
    AllowedHost,
    AuthMode,
    Bytes,
    BytesPerSecond,
    CallerRule,
    Certificate,
    Config,
    Fraction,
    HostName,
    MetaDBConfig,
    Origin,
    Portion,
    Processes,
    Seconds,
    Secret,
    TlsMode,
    Weight,
    Words,
)
from distfs.errors import ConfigError
from distfs.headers import origin
from distfs.model import Compression, Policy
from distfs.process.redact import redacted
from distfs.process.secret_file import with_files

log = logging.getLogger("distfs.config")


def load(
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    warn: renamed.Warn = log.warning,
) -> Config:
    """The configuration of this process.

    ``path`` None means ``./config.yml`` where it exists, else the defaults; a path that was named must
    exist. ``warn`` hears of old names. Raises ConfigError: one line that says which key and what would be right.
    """
    environ = with_files(os.environ if environ is None else environ)
    source = Path("config.yml" if path is None else path)
    tree: Any = {}
    if path is not None or source.exists():
        try:
            tree = _yaml(source.read_text("utf-8"), str(source))
        except OSError as e:
            raise ConfigError(f"cannot read {source}: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise ConfigError(f"{source} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    if isinstance(tree, dict):
        tree = _with_environment(renamed.in_file(tree, warn), environ, renamed.in_environment(environ, warn))
    return parse(tree)


def parse(tree: object) -> Config:
    """A tree of plain values, as YAML gives it, -> Config. Raises ConfigError."""
    config: Config = _section(Config, tree, "")
    if config.metadb.url == MetaDBConfig().url:  # whoever moves all data of `distfs up` moves its MetaDB
        url = f"embedded:{config.local.data}/metadb"
        config = replace(config, metadb=replace(config.metadb, url=url))
    check_relations(config)
    return config


def parse_as(cls: Any, tree: Mapping[str, Any]) -> Any:
    """A tree of plain values as a dataclass whose fields are typed as settings are. Raises ConfigError."""
    return _section(cls, dict(tree), "")


def override(config: Config, section: str, **values: object) -> Config:
    """``config`` with keys of one section replaced where the value is not None (command-line flags)."""
    types = typing.get_type_hints(typing.get_type_hints(Config)[section])
    given = {
        k: _value(types[k], v, f"config: {section}.{k}") if types[k] is HostName else v
        for k, v in values.items()
        if v is not None
    }
    changed = replace(config, **{section: replace(getattr(config, section), **given)})
    check_relations(changed)
    return changed


def _with_environment(tree: Any, environ: Mapping[str, str], old_names: Mapping[str, str]) -> Any:
    """``DISTFS_HTTP_PORT=80`` -> tree["http"]["port"] = 80. Unknown names are refused like unknown keys."""
    sections = typing.get_type_hints(Config)
    tree = {k: _spelled_out(sections.get(k), v) for k, v in tree.items()}
    for name, text in environ.items():
        if not name.startswith("DISTFS_") or _is_of_others(name, text):
            continue
        section, _, key = old_names.get(name, name).removeprefix("DISTFS_").lower().partition("_")
        if section not in sections:
            raise _unknown_variable(name, sections)
        types = typing.get_type_hints(sections[section])
        if key not in types:
            raise ConfigError(
                f"environment: unknown {name}{_hint(key, types, f'DISTFS_{section}_', str.upper)}"
            )
        value = text if types[key] in _PARSERS or not text else _yaml(text, name)
        _value(types[key], value, name)  # so that the message names the variable
        inner = tree.setdefault(section, {})
        if isinstance(inner, dict):
            inner[key] = value
    return tree


#: A key of a row of a list of a section is four deep.
_MOST_DEPTH = 10
#: The largest number that is packed or sent anywhere, and a century: more means a mistake.
_MOST_BYTES, _MOST_SECONDS, _MOST = (1 << 63) - 1, 36525 * 86400, 10**9


class _TextLoader(yaml.BaseLoader):
    """Text, lists and mappings; a key given twice is refused, where YAML would let the last one win. So is what is
    nested deeper than anything of ours, or named anew by an alias: a few lines could mean more than memory holds."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        where: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not taken", problem_mark=where.start_mark)
        if self._depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=where.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _TextLoader) or {}  # noqa: S506 - it constructs nothing but text, lists, mappings
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ConfigError(f"{source} is not right as YAML{line}: {e.problem or e.context}") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"{source} is not YAML: {str(e).splitlines()[0]}") from e


def _hint(key: object, known: Iterable[str], prefix: str, spell: Callable[[str], str] = str) -> str:
    """How to go on after an unknown key."""
    known = list(known)
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return (
        f"; did you mean {spell(prefix + near[0])}?" if near else f"; known: {', '.join(map(spell, known))}"
    )


#: What is set for others: for clients (tests/integration-test.sh), and for whatever runs beside services of
#: Kubernetes or Docker whose names begin with distfs.
_OF_CLIENTS = ("DISTFS_URL", "DISTFS_TOKEN")
_OF_SERVICES = re.compile(
    r"DISTFS_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)", re.ASCII
)


def _is_of_others(name: str, text: str) -> bool:
    if name.endswith("_PORT") and re.match(r"(?:tcp|udp|sctp)://", text):
        return True
    return name in _OF_CLIENTS or _OF_SERVICES.fullmatch(name) is not None


def _unknown_variable(name: str, sections: Mapping[str, Any]) -> ConfigError:
    """With those that end so, such as DISTFS_HTTP_PORT for DISTFS_PORT; else with the nearest one."""
    known = [
        (section, key, f"DISTFS_{section}_{key}".upper())
        for section, kind in sections.items()
        for key in typing.get_type_hints(kind)
    ]
    rest = name.removeprefix("DISTFS_").lower()
    near = [each for _, key, each in known if key == rest]
    near = near or difflib.get_close_matches(name, [each for _, _, each in known], n=1, cutoff=0)
    return ConfigError(f"environment: unknown {redacted(name)}; did you mean {' or '.join(near)}?")


def _spelled_out(cls: Any, tree: object) -> object:
    """A section that is one word is its mode: ``auth: open``."""
    if isinstance(tree, dict):
        return dict(tree)
    if tree is None or tree == "":
        return {}
    if isinstance(tree, str | bool) and cls is not None and "mode" in typing.get_type_hints(cls):
        return {"mode": tree}
    return tree


def _section(cls: Any, tree: object, path: str) -> Any:
    tree = _spelled_out(cls, tree)
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {path.rstrip('.') or 'the file'} must be a mapping of keys")
    types = typing.get_type_hints(cls)
    for key in tree:
        if key not in types:
            raise ConfigError(f"config: unknown key {path}{redacted(str(key))}{_hint(key, types, path)}")
    values = {}
    for key, value in tree.items():
        kind = types[key]
        if is_dataclass(kind) and kind not in _PARSERS:
            values[key] = _section(kind, value, f"{path}{key}.")
        else:
            values[key] = _value(kind, value, f"config: {path}{key}")
    return cls(**values)


def _value(kind: object, value: object, path: str) -> object:
    parser = _PARSERS.get(kind) or _TABLES[kind]
    try:
        return parser(value)
    except (ConfigError, ValueError) as e:
        raise ConfigError(f"{path}: {e}") from e


_SIZE_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgtp", 1)
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_TIME_UNITS = {"ms": 0.001, "s": 1, "": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def _quantity(value: object, units: Mapping[str, float], example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not {example}")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z%]*)", str(value).strip(), re.ASCII)
    if not match or match[2].lower() not in units:
        raise ValueError(f"{value!r} is not {example}")
    return float(match[1]) * units[match[2].lower()]


def _at_most(most: float, number: float, value: object) -> float:
    if number > most:
        raise ValueError(f"{str(value)[:40]!r} is more than there can be")
    return number


def parse_bytes(value: object) -> int:
    """``"32MiB"`` -> 33554432; ``"10GB"`` -> 10**10; a plain number is bytes. Raises ValueError."""
    return int(_at_most(_MOST_BYTES, _quantity(value, _SIZE_UNITS, "a size such as 32MiB or 10GB"), value))


def _rate(value: object) -> int:
    return parse_bytes(value.removesuffix("/s") if isinstance(value, str) else value)


def parse_seconds(value: object) -> float:
    """``"10min"`` -> 600.0. Raises ValueError."""
    return _at_most(_MOST_SECONDS, _quantity(value, _TIME_UNITS, "a time such as 500ms, 10s or 10min"), value)


def _fraction(value: object) -> float:
    result = _quantity(value, {"%": 0.01, "": 1}, "a share such as 1% or 0.01")
    if not 0 <= result < 1:
        raise ValueError(f"{value!r} must be from 0 to below 100%")
    return result


def _portion(value: object) -> float:
    result = _quantity(value, {"%": 0.01, "": 1}, "a share such as 1% or 0.01")
    if not 0 <= result <= 1:
        raise ValueError(f"{value!r} must be from 0 to 100%")
    return result


def _integer(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value), re.ASCII):
        raise ValueError(f"{value!r} is not a whole number of 0 or more")
    return int(_at_most(_MOST, int(str(value)[:20]), value))


def _processes(value: object) -> int:
    if value == "auto":
        return AUTO
    number = re.fullmatch(r"\d{1,3}", "" if isinstance(value, bool) else str(value), re.ASCII)
    if number is None or not 1 <= int(number[0]) <= MOST_PROCESSES:
        raise ValueError(f"{value!r} is not auto or a number from 1 to {MOST_PROCESSES}")
    return int(number[0])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{redacted(repr(value))} is not text")
    return value


def _secret(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("it is not text on one line")  # which is not shown
    return value


def _host(value: object) -> str:
    text = _text(value)
    if text.startswith("[") and text.endswith("]") and ":" in text:
        text = text[1:-1]  # IPv6 as URLs have it
    try:
        if ":" in text:
            IPv6Address(text)
        text.encode("idna")
    except ValueError as e:  # UnicodeError is one
        raise ValueError(f"{value!r} is no address and no name of a host") from e
    if re.search(r"[\s/@\[\]]", text) or not text.isprintable():
        raise ValueError(f"{value!r} is no address and no name of a host")
    return text


def _switch(value: object) -> bool:
    if str(value).lower() not in ("true", "yes", "on", "false", "no", "off"):
        raise ValueError(f"{value!r} is not true or false")
    return str(value).lower() in ("true", "yes", "on")


def _mode(*others: str) -> Callable[[object], str]:
    """On, off, or another word; some who read YAML make truth of the first two."""

    def parse(value: object) -> str:
        text = str(value).lower()
        if text in others:
            return text
        try:
            return "on" if _switch(text) else "off"
        except ValueError:
            raise ValueError(f"{value!r} is not on, off or {' or '.join(others)}") from None

    return parse


def _words(value: object) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else _list(value, "[upload, download]")
    return tuple(dict.fromkeys(stripped for word in words if (stripped := _text(word).strip())))


def _policies(value: object) -> Mapping[str, Policy]:
    if not isinstance(value, dict) or "default" not in value:
        raise ValueError("must map names to k+m and have a 'default', for example {default: 1+1}")
    return {str(name): Policy.parse(str(text)) for name, text in value.items()}


def _compressions(value: object) -> Mapping[str, Compression]:
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise ValueError(
            "must map names of policies to how theirs are compressed, for example {cold: zstd:9}"
        )
    return {str(name): Compression.parse(str(text)) for name, text in value.items()}


def _weight(value: object) -> float:
    weight = _quantity(value, {"": 1}, "a weight such as 2 or 0.5")
    if not 0.001 <= weight <= 1000:
        raise ValueError(f"{value!r} must be from 0.001 to 1000")
    return weight


def _list(value: object, example: str) -> list[object]:
    if isinstance(value, list):
        return value
    if value in (None, ""):
        return []
    raise ValueError(f"must be a list, for example {example}")


def _networks(value: object) -> tuple[Network, ...]:
    return tuple(parse_network(_text(each)) for each in _list(value, "[127.0.0.1, 10.0.0.0/8]"))


def _allowed_hosts(value: object) -> tuple[str, ...]:
    listed = [_text(each) for each in _list(value, "[files.example, '*.files.example']")]
    return tuple(each if each == "*" else _below(each) for each in listed)


def _below(text: str) -> str:
    below = "*." if text.startswith("*.") else ""
    if "*" in (name := text.removeprefix(below)):
        raise ValueError(f"{text!r}: a * stands alone, or for all below a name, as in *.files.example")
    return below + _host(name)


def _origins(value: object) -> tuple[str, ...]:
    example = "https://app.example or http://localhost:3000"
    found = []
    for each in _list(value, f"[{example}]"):
        if (normal := origin.normal(_text(each))) is None:
            raise ValueError(f"{each!r} is no origin of a page, such as {example}")
        found.append(normal)
    return tuple(found)


def _callers(value: object) -> tuple[CallerRule, ...]:
    rows = _list(value, "[{match: 10.0.0.0/8, weight: 2}]")
    rules = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or "match" not in row:
            raise ValueError(
                f"row {number} must have a 'match', for example {{match: 10.0.0.0/8, weight: 2}}"
            )
        try:
            rules.append(_section(CallerRule, row, ""))
        except ConfigError as e:
            raise ValueError(f"row {number}: {str(e).removeprefix('config: ')}") from e
    return tuple(rules)


def _certificates(value: object) -> tuple[Certificate, ...]:
    form = "[{cert: service.crt, key: service.key}]"
    rows = _list(value, form)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or row.keys() != {"cert", "key"}:
            raise ValueError(f"row {number} must have cert and key, for example {form}")
    return tuple(_section(Certificate, row, "") for row in rows)


_Parsers = Mapping[object, Callable[[object], object]]

_PARSERS: _Parsers = {
    Bytes: parse_bytes,
    Seconds: parse_seconds,
    BytesPerSecond: _rate,
    Fraction: _fraction,
    Portion: _portion,
    Weight: _weight,
    HostName: _host,
    Processes: _processes,
    Secret: _secret,
    AuthMode: _mode("open"),
    TlsMode: _mode("auto"),
    Words: _words,
    Compression: lambda value: Compression.parse(_text(value)),
    CallerMatch: lambda value: CallerMatch.parse(_text(value)),
    int: _integer,
    bool: _switch,
    str: _text,
}

#: Values that are written as YAML in the environment too.
_TABLES: _Parsers = {
    Mapping[str, Policy]: _policies,
    Mapping[str, Compression]: _compressions,
    tuple[CallerRule, ...]: _callers,
    tuple[Certificate, ...]: _certificates,
    tuple[Network, ...]: _networks,
    tuple[AllowedHost, ...]: _allowed_hosts,
    tuple[Origin, ...]: _origins,
}
