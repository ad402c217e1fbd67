"""Configuration: one YAML file, parsed once into frozen dataclasses; nothing else reads settings.

Values carry their unit in the file (``32MiB``, ``10s``, ``1%``) and as a type here (``Bytes``,
``Seconds``). ``DISTFS_<SECTION>_<KEY>`` in the environment overrides the file. An unknown key refuses
to start and names the nearest known one; relations between keys are checked in ``_check_relations``.

Scalars of the file are read as text and the key's type decides: YAML's own guesses would make a boolean of
``direct_io: off`` and 90 of ``1:30``.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, NewType

import yaml

from distfs.callers import CallerMatch, Network, parse_network
from distfs.errors import ConfigError
from distfs.model import Policy

Bytes = NewType("Bytes", int)
Seconds = NewType("Seconds", float)
BytesPerSecond = NewType("BytesPerSecond", int)
Fraction = NewType("Fraction", float)
Weight = NewType("Weight", float)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The service's HTTP side."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free port
    threads: int = 32  # workers; a large transfer keeps one busy
    reserve_threads: int = 4  # never given to a large upload: it spools instead
    max_file_size: Bytes = Bytes(10 * 10**9)
    max_form_overhead: Bytes = Bytes(MIB)  # everything in a request body that is not file bytes
    stream_threshold: Bytes = Bytes(MIB)  # a larger body goes to a worker with its socket
    memory_buffer: Bytes = Bytes(100 * 10**6)  # a spooled body beyond this goes to a temp file
    spool_dir: str = ""  # where; empty: the system's temp folder
    max_connections: int = 1000
    idle_timeout: Seconds = Seconds(120)  # a kept-alive connection without a request
    client_stall_timeout: Seconds = Seconds(60)  # no byte from or to a client for this long ends it
    client_min_rate: BytesPerSecond = BytesPerSecond(16 * KIB)  # a whole transfer slower than this is ended
    max_uploads: int = 600  # larger than stream_threshold, at once; 0: no limit
    max_bytes_in_flight: Bytes = Bytes(10**12)  # declared by them together; 0: no limit
    drain_timeout: Seconds = Seconds(30)  # after SIGTERM, for the requests that run


@dataclass(frozen=True, slots=True)
class CallerRule:
    """A row of ``bandwidth.callers``: what holds for the transfers of some callers."""

    match: CallerMatch
    weight: Weight = Weight(1)  # of each of their transfers
    cap_in: BytesPerSecond = BytesPerSecond(0)  # of all of them together; 0: none of their own
    cap_out: BytesPerSecond = BytesPerSecond(0)

    def __str__(self) -> str:
        return f"{self.match}: weight {self.weight:g}, in {self.cap_in}, out {self.cap_out}"


@dataclass(frozen=True, slots=True)
class BandwidthConfig:
    """How transfers share what the service may receive and send. SIGHUP reads it anew."""

    cap_in: BytesPerSecond = BytesPerSecond(0)  # file bytes of all uploads together; 0: no cap
    cap_out: BytesPerSecond = BytesPerSecond(0)  # of all downloads
    mode: str = "fair"  # or 'batch': few at a time, in bigger portions, in order
    callers: tuple[CallerRule, ...] = ()  # the first that matches counts
    trusted_proxies: tuple[Network, ...] = ()  # whose X-Forwarded-For and other headers are believed


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """How files become slices, blocks and fragments."""

    policies: Mapping[str, Policy] = field(default_factory=lambda: {"default": Policy(1, 1)})
    min_redundancy: int = 1  # a degraded write needs k + this many fragments; never more than m asks
    slice_size: Bytes = Bytes(32 * MIB)
    block_size: Bytes = Bytes(MIB)
    parallel_slices: int = 2  # slices of one upload in flight
    window: Bytes = Bytes(24 * MIB)  # blocks of one upload in flight, at most
    memory_budget: Bytes = Bytes(512 * MIB)  # blocks in flight of all transfers together

    @property
    def policy(self) -> Policy:
        """The policy of an upload that names none."""
        return self.policies["default"]


@dataclass(frozen=True, slots=True)
class MetaDBConfig:
    """PostgreSQL."""

    url: str = "embedded:./data/metadb"  # or postgresql://user:password@host:port/database
    pool_size: int = 8  # connections a service keeps
    connect_timeout: Seconds = Seconds(2)
    statement_timeout: Seconds = Seconds(4)  # so that a MetaDB that hangs is a 503 within 5 s


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A storage node, and how the service talks to nodes."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free port; the node registers where it listens
    advertise: str = ""  # host:port others reach it by; empty: where it listens
    data: str = "./data/node"
    zone: str = ""
    reserve: Fraction = Fraction(0.01)  # of the disk, kept free; with reserve_bytes, the smaller wins
    reserve_bytes: Bytes = Bytes(GIB)
    direct_io: str = "auto"  # 'auto': O_DIRECT where the file system takes it; 'off': never
    direct_io_threshold: Bytes = Bytes(4 * MIB)  # smaller fragments go through the page cache
    write_buffer: Bytes = Bytes(4 * MIB)  # aligned unit of a direct write
    slow_write: Seconds = Seconds(5)  # a disk whose small durable writes take longer gets no new fragments
    probe_interval: Seconds = Seconds(10)  # between two such writes, to see how it does
    heartbeat: Seconds = Seconds(2)
    down_after: Seconds = Seconds(10)  # of silence: no new fragments are placed there
    connections: int = 32  # idle connections a service keeps to each node
    max_connections: int = 128  # in all to each node; who needs one more waits its turn
    connection_idle: Seconds = Seconds(60)  # a connection unused for so long is not used again,
    connection_age: Seconds = Seconds(600)  # nor one as old as this
    connect_timeout: Seconds = Seconds(1)
    stall_timeout: Seconds = Seconds(10)  # no byte for this long ends a transfer to or from a node
    base_timeout: Seconds = Seconds(20)  # a slice's bound is base_timeout + bytes / min_rate
    min_rate: BytesPerSecond = BytesPerSecond(MIB)
    hedge_min: Seconds = Seconds(0.05)  # a read later than its node's p95, and this, is asked elsewhere
    hedge_budget: Fraction = Fraction(0.05)  # extra reads, as a share of all reads, at most
    breaker_failures: int = 5  # failures in a row after which a node is left alone
    breaker_pause: Seconds = Seconds(5)  # before it is probed; doubles with every probe that fails
    drain_timeout: Seconds = Seconds(20)  # after SIGTERM, for the transfers that run


@dataclass(frozen=True, slots=True)
class UpkeepConfig:
    """What the service does beside serving: repair, scrub, sweeping, balancing."""

    enabled: bool = True
    interval: Seconds = Seconds(5)  # how soon an idle worker looks again
    repair_delay: Seconds = Seconds(600)  # of a node's silence before its fragments are made anew elsewhere
    repair_rate: BytesPerSecond = BytesPerSecond(100 * MIB)  # bytes written, at most; 0: as fast as it goes
    scrub_period: Seconds = Seconds(30 * 86400)  # every fragment is re-read at least so often ...
    scrub_rate: BytesPerSecond = BytesPerSecond(20 * MIB)  # ... a node, as far as this rate allows
    upload_ttl: Seconds = Seconds(86400)  # no upload takes longer; younger fragments are no orphans
    sweep_interval: Seconds = Seconds(3600)  # between two sweeps for orphans
    sweep_margin: Seconds = Seconds(3600)  # added to upload_ttl, for clocks that disagree
    quarantine_ttl: Seconds = Seconds(7 * 86400)  # orphans are kept for so long after they were found
    trash_ttl: Seconds = Seconds(7 * 86400)  # deleted files can be undeleted for so long
    rebalance_threshold: Fraction = Fraction(0.05)  # difference in fullness that is left alone
    rebalance_rate: BytesPerSecond = BytesPerSecond(50 * MIB)


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """``distfs up``: everything on this machine."""

    data: str = "./data"
    nodes: int = 3


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is logged, to stderr."""

    level: str = "INFO"
    format: str = "text"  # or 'json': one object a line


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. Each part of distfs is handed the section it needs, not this."""

    http: HttpConfig = field(default_factory=HttpConfig)
    bandwidth: BandwidthConfig = field(default_factory=BandwidthConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    metadb: MetaDBConfig = field(default_factory=MetaDBConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    upkeep: UpkeepConfig = field(default_factory=UpkeepConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    log: LogConfig = field(default_factory=LogConfig)


def load(path: str | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of this process.

    ``path`` None means ``./config.yml`` where it exists, else the defaults; a path that was named must
    exist. Raises ConfigError: one line that says which key and what would be right.
    """
    environ = os.environ if environ is None else environ
    source = Path("config.yml" if path is None else path)
    tree: Any = {}
    if path is not None or source.exists():
        try:
            tree = _yaml(source.read_text("utf-8"), str(source))
        except OSError as e:
            raise ConfigError(f"cannot read {source}: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise ConfigError(f"{source} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    return parse(_with_environment(tree, environ))


def parse(tree: object) -> Config:
    """A tree of plain values, as YAML gives it, -> Config. Raises ConfigError."""
    config: Config = _section(Config, tree, "")
    _check_relations(config)
    return config


def override(config: Config, section: str, **values: object) -> Config:
    """``config`` with keys of one section replaced where the value is not None (command-line flags)."""
    given = {k: v for k, v in values.items() if v is not None}
    changed = replace(config, **{section: replace(getattr(config, section), **given)})
    _check_relations(changed)
    return changed


def _with_environment(tree: Any, environ: Mapping[str, str]) -> Any:
    """``DISTFS_HTTP_PORT=80`` -> tree["http"]["port"] = 80. Unknown names are refused like unknown keys."""
    if not isinstance(tree, dict):
        return tree
    tree = {k: dict(v) if isinstance(v, dict) else v or {} for k, v in tree.items()}
    sections = typing.get_type_hints(Config)
    for name, text in environ.items():
        section, _, key = name.removeprefix("DISTFS_").lower().partition("_")
        if not name.startswith("DISTFS_") or section not in sections:
            continue  # DISTFS_URL and the like belong to clients and tests
        types = typing.get_type_hints(sections[section])
        if key not in types:
            raise ConfigError(
                f"environment: unknown {name}{_hint(key, types, f'DISTFS_{section}_', str.upper)}"
            )
        value = text if types[key] in _PARSERS else _yaml(text, name)
        _value(types[key], value, name)  # so that the message names the variable
        inner = tree.setdefault(section, {})
        if isinstance(inner, dict):
            inner[key] = value
    return tree


class _TextLoader(yaml.BaseLoader):
    """Text, lists and mappings; a key given twice is refused, where YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
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


def _section(cls: Any, tree: object, path: str) -> Any:
    if tree is None or tree == "":
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {path.rstrip('.') or 'the file'} must be a mapping of keys, not {tree!r}")
    types = typing.get_type_hints(cls)
    for key in tree:
        if key not in types:
            raise ConfigError(f"config: unknown key {path}{key}{_hint(key, types, path)}")
    values = {}
    for key, value in tree.items():
        kind = types[key]
        if is_dataclass(kind):
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


def parse_bytes(value: object) -> int:
    """``"32MiB"`` -> 33554432; ``"10GB"`` -> 10**10; a plain number is bytes. Raises ValueError."""
    return int(_quantity(value, _SIZE_UNITS, "a size such as 32MiB or 10GB"))


def _rate(value: object) -> int:
    return parse_bytes(value.removesuffix("/s") if isinstance(value, str) else value)


def _seconds(value: object) -> float:
    return _quantity(value, _TIME_UNITS, "a time such as 500ms, 10s or 10min")


def _fraction(value: object) -> float:
    result = _quantity(value, {"%": 0.01, "": 1}, "a share such as 1% or 0.01")
    if not 0 <= result < 1:
        raise ValueError(f"{value!r} must be from 0 to below 100%")
    return result


def _integer(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value), re.ASCII):
        raise ValueError(f"{value!r} is not a whole number of 0 or more")
    return int(str(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _switch(value: object) -> bool:
    if str(value).lower() not in ("true", "yes", "on", "false", "no", "off"):
        raise ValueError(f"{value!r} is not true or false")
    return str(value).lower() in ("true", "yes", "on")


def _policies(value: object) -> Mapping[str, Policy]:
    if not isinstance(value, dict) or "default" not in value:
        raise ValueError("must map names to k+m and have a 'default', for example {default: 1+1}")
    return {str(name): Policy.parse(str(text)) for name, text in value.items()}


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


_Parsers = Mapping[object, Callable[[object], object]]

_PARSERS: _Parsers = {
    Bytes: parse_bytes,
    Seconds: _seconds,
    BytesPerSecond: _rate,
    Fraction: _fraction,
    Weight: _weight,
    CallerMatch: lambda value: CallerMatch.parse(_text(value)),
    int: _integer,
    bool: _switch,
    str: _text,
}

#: Values that are written as YAML in the environment too.
_TABLES: _Parsers = {
    Mapping[str, Policy]: _policies,
    tuple[CallerRule, ...]: _callers,
    tuple[Network, ...]: _networks,
}


def _check_relations(c: Config) -> None:
    """What must hold between keys. Each rule names the keys and the remedy."""
    sections = _http_rules(c.http), _bandwidth_rules(c.bandwidth), _storage_rules(c.storage), _other_rules(c)
    for holds, message in itertools.chain(*sections):
        if not holds:
            raise ConfigError(f"config: {message}")


_Rules = Iterable[tuple[bool, str]]
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def _http_rules(http: HttpConfig) -> _Rules:
    yield 0 <= http.port < 65536, "http.port must be 0 (any free port) to 65535"
    yield http.threads > http.reserve_threads, "http.threads must be more than http.reserve_threads"
    yield http.max_file_size > 0, "http.max_file_size must be more than 0"
    least = http.max_file_size + http.max_form_overhead
    enough = http.max_bytes_in_flight in (0, max(http.max_bytes_in_flight, least))
    yield enough, "http.max_bytes_in_flight must be 0 or at least http.max_file_size + http.max_form_overhead"
    yield http.max_connections >= 1, "http.max_connections must be at least 1"
    yield http.idle_timeout > 0, "http.idle_timeout must be more than 0"
    yield http.client_stall_timeout > 0, "http.client_stall_timeout must be more than 0"
    yield http.client_min_rate > 0, "http.client_min_rate must be more than 0"


def _bandwidth_rules(bandwidth: BandwidthConfig) -> _Rules:
    yield bandwidth.mode in ("fair", "batch"), "bandwidth.mode must be 'fair' or 'batch'"
    for rule in bandwidth.callers:
        believed = not rule.match.header or bool(bandwidth.trusted_proxies)
        yield believed, f"bandwidth.trusted_proxies must list who may say {rule.match} (bandwidth.callers)"


def _storage_rules(storage: StorageConfig) -> _Rules:
    block = storage.block_size
    yield block >= 4 * KIB, "storage.block_size must be at least 4KiB"
    yield block <= 16 * MIB, "storage.block_size must be at most 16MiB"
    yield block % 4096 == 0, "storage.block_size must be a multiple of 4KiB"
    whole = storage.slice_size >= block and storage.slice_size % block == 0
    yield whole, "storage.slice_size must be a multiple of storage.block_size"
    yield storage.slice_size <= GIB, "storage.slice_size must be at most 1GiB"
    yield storage.window >= 4 * block, "storage.window must be at least four times storage.block_size"
    yield storage.memory_budget >= storage.window, "storage.memory_budget must be at least storage.window"
    yield storage.parallel_slices >= 1, "storage.parallel_slices must be at least 1"


def _other_rules(c: Config) -> _Rules:
    yield c.metadb.pool_size >= 1, "metadb.pool_size must be at least 1"
    yield c.metadb.connect_timeout > 0, "metadb.connect_timeout must be more than 0"
    yield c.metadb.statement_timeout > 0, "metadb.statement_timeout must be more than 0"
    yield 0 <= c.node.port < 65536, "node.port must be 0 (any free port) to 65535"
    aligned = c.node.write_buffer >= 4096 and c.node.write_buffer % 4096 == 0
    yield aligned, "node.write_buffer must be a multiple of 4KiB"
    yield c.node.direct_io in ("auto", "off"), "node.direct_io must be 'auto' or 'off'"
    yield c.node.heartbeat > 0, "node.heartbeat must be more than 0"
    yield c.node.down_after > 2 * c.node.heartbeat, "node.down_after must be more than twice node.heartbeat"
    yield c.node.connect_timeout > 0, "node.connect_timeout must be more than 0"
    yield c.node.stall_timeout > 0, "node.stall_timeout must be more than 0"
    yield c.node.base_timeout > 0, "node.base_timeout must be more than 0"
    yield c.node.min_rate > 0, "node.min_rate must be more than 0"
    yield c.node.slow_write > 0, "node.slow_write must be more than 0"
    yield c.node.probe_interval > 0, "node.probe_interval must be more than 0"
    yield c.node.max_connections >= 1, "node.max_connections must be at least 1"
    yield c.node.hedge_min > 0, "node.hedge_min must be more than 0"
    yield c.node.breaker_failures >= 1, "node.breaker_failures must be at least 1"
    yield c.node.breaker_pause > 0, "node.breaker_pause must be more than 0"
    yield c.upkeep.interval > 0, "upkeep.interval must be more than 0"
    yield c.upkeep.scrub_period > 0, "upkeep.scrub_period must be more than 0"
    yield c.upkeep.sweep_interval > 0, "upkeep.sweep_interval must be more than 0"
    yield c.upkeep.upload_ttl > 0, "upkeep.upload_ttl must be more than 0"
    yield c.local.nodes >= 1, "local.nodes must be at least 1"
    yield c.log.format in ("text", "json"), "log.format must be 'text' or 'json'"
    yield c.log.level.upper() in _LEVELS, f"log.level must be one of {', '.join(_LEVELS)}"
