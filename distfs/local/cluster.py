"""``distfs up``: MetaDB, storage nodes and a service on this machine, each a process of its own.

All data is in one folder: ``metadb/``, ``node1/``, ``node2/``, ..., the locks of ``data_folder``, and
``ports.json``, which remembers where the nodes listened, because MetaDB takes a node that comes back elsewhere for
a second one for a while.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit
from uuid import UUID

from distfs import storage_server
from distfs.access.db import TokenDB
from distfs.access.terms import of_first
from distfs.agreement import times_of
from distfs.audit import user
from distfs.config.file import override
from distfs.config.reach import check_reach
from distfs.config.settings import Config, MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import ConfigError, DistfsError, Refused
from distfs.local import data_folder, supervisor
from distfs.local.metadb import OwnMetaDB
from distfs.local.outputs import Reader
from distfs.local.supervisor import Child, Program, Stopped, say
from distfs.meta import MetaDB
from distfs.metadb import embedded_postgres
from distfs.metadb.schema import NODE_ROLE
from distfs.process import parent_watch
from distfs.process.dial import cannot_listen, to_listen
from distfs.process.output import announce
from distfs.process.signals import say_stop, set_soon
from distfs.process.terminal import Terminal
from distfs.services import audit_log
from distfs.storage.disk.home import make_home, quoted, read_identity
from distfs.telemetry.log_files import LogFile

_NODE = Program("distfs.storage_server", storage_server.main, storage_server.read)

_START_LIMIT_S = 90.0  # for one child to say that it is there; PostgreSQL may have to recover first
_SAY_WHY_EVERY_S = 10.0
_LOOK_EVERY_S = 0.1
_PROBE_TIMEOUT_S = 6.0
#: Elsewhere nobody may listen on a port that another process has bound.
_NODES_SHARE_A_HELD_PORT = sys.platform == "linux"

_READY = """\
distfs is ready at {url}  (data in {data}; Ctrl-C stops it)

  curl {login}-F file=@README.md {url}/upload      # prints a UUID
  curl {login}-o copy.md {url}/download/UUID       # gets the file back
"""
_FIRST = """
An administrator's token, which makes others; nobody can show it again:

  {token}
"""


def run(config: Config, serve: Program, config_file: str | None = None, *, join: bool = False) -> None:
    """Start everything, say so, keep it running; return when SIGTERM or SIGINT has stopped it all.

    ``serve``: the command of that name. ``config_file``: what the children read; flags given to this process are
    passed on by it. ``join``: a new folder may become part of a cluster that has storage nodes elsewhere. Raises
    ConfigError or Unavailable, with everything stopped, when it cannot be started.
    """
    data = Path(config.local.data).absolute()
    if not data.exists():
        _check_new(config, data)
    with (
        _signals() as (stopping, hurry, reload),
        contextlib.suppress(Stopped),
        data_folder.held(data, stopping) as lock,
    ):
        cluster = LocalCluster(config, serve, config_file, data, lock, stopping)
        try:
            cluster.start(join)
            cluster.watch(reload)
        finally:
            cluster.stop(hurry)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[threading.Event, threading.Event, threading.Event]]:
    """-> (stopping, hurry, reload): the first signal sets one, the next the other; SIGHUP the third, but stops
    when it says that the terminal is gone."""
    stopping, hurry, reload = threading.Event(), threading.Event(), threading.Event()
    terminal = Terminal()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and not terminal.hung_up:
            set_soon(reload)
            return
        say_stop(stopping, hurry)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        yield stopping, hurry, reload
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class LocalCluster:
    """The children of one ``distfs up``, in the order they start."""

    def __init__(
        self,
        config: Config,
        serve: Program,
        config_file: str | None,
        data: Path,
        lock: int,
        stopping: threading.Event,
    ) -> None:
        """``lock``: the descriptor every child inherits. ``stopping``: ends every wait."""
        self._config, self._serve, self._config_file = config, serve, config_file
        self._data, self._lock, self._stopping = data, lock, stopping
        self._env = supervisor.environment()
        self._reader = Reader()
        self.url = self._url = ""  # the service's, MetaDB's
        self._metadb: OwnMetaDB | None = None
        self._nodes: list[Child] = []
        self._service: list[Child] = []
        self._ports = NodePorts(data / "ports.json", config.node.host)

    def start(self, join: bool) -> None:
        """Returns when the service is ready. Raises ConfigError, Unavailable, Stopped."""
        _check_places(self._config)
        if (folder := self._config.log_dir_of_up) != "off":
            supervisor.keep_in(LogFile(replace(self._config.log, dir=folder), supervisor.PARENT, aside=False))
        names = self._node_names()
        url = self._url = self._start_metadb()
        self._env = supervisor.environment(
            DISTFS_METADB_URL=url,
            DISTFS_NODE_ADVERTISE="",
            DISTFS_AUDIT_FILE=self._config.audit_file or "off",
            DISTFS_LOG_DIR=self._config.log_dir_of_up,
        )
        meta = MetaDB(override(self._config, "metadb", url=url).metadb, self._config.node.down_after)
        try:
            if not join:
                data_folder.check_may_join(self._data, meta, Deadline(_PROBE_TIMEOUT_S))
            meta.migrate()
            if self._metadb:  # it runs for us alone: what is configured now is what holds from now on
                meta.adopt_settings(times_of(self._config), Deadline(_PROBE_TIMEOUT_S))
            self._check_stopping()
            ports = self._add_nodes(names, url)
            self._add_service()
            self._start_children()
            self._wait_ready(meta, ports)
            self._say_ready(TokenDB(meta))
        finally:
            meta.close()

    def _say_ready(self, tokens: TokenDB) -> None:
        """And the first token, once: here, where no log is written, and never again."""
        guarded, first = self._config.auth.mode == "on", ""
        if guarded:
            with contextlib.suppress(Refused):  # there are others
                id, token = tokens.create(of_first(), Deadline(_PROBE_TIMEOUT_S), first=True)
                self._note(id)
                first = _FIRST.format(token=token)
        login = "-u :TOKEN " if guarded else ""
        announce(_READY.format(url=self.url, data=self._data, login=login) + first)

    def _note(self, token: UUID) -> None:
        """The first token, in the audit log: who starts distfs made it."""
        with contextlib.closing(audit_log(self._config)) as log:
            made = {"who": user(), "action": "command up", "object": str(token), "outcome": "allow"}
            log.write(made | {"why": "it made the first token"})

    def watch(self, reload: threading.Event) -> None:
        """Start again what dies, until told to stop; when ``reload`` is set, SIGHUP to the service."""
        if self._metadb:
            self._metadb.lay_log_ahead()
        while not self._stopping.is_set():
            self._reader.listen(_LOOK_EVERY_S)
            self._keep_metadb()
            if reload.is_set():
                reload.clear()
                for service in self._service:
                    service.signal(signal.SIGHUP)
            for node in self._nodes:
                if node.stopped_well and self._drained(node):
                    node.let_go("while it is drained")
            for child in self._children():
                child.keep_running()

    def _drained(self, node: Child) -> bool:
        """Whether an operator takes it out of the cluster, as far as MetaDB says so soon."""
        meta = MetaDB(override(self._config, "metadb", url=self._url).metadb, self._config.node.down_after)
        try:
            identity = read_identity(self._data / node.name)
            known = meta.nodes(Deadline(_PROBE_TIMEOUT_S))
            return any(identity and n.uuid == identity.node and n.state == "draining" for n in known)
        except DistfsError:
            return False
        finally:
            meta.close()

    def stop(self, hurry: threading.Event) -> None:
        """The service first, so that nothing is asked of the others any more; MetaDB last."""
        if self._stopping.is_set():
            say("stopping")
        supervisor.stop_all([self._service, self._nodes], hurry)
        self._ports.release()
        if self._metadb:
            self._metadb.stop()  # whatever the hurry, or PostgreSQL would be left behind

    # --- starting -----------------------------------------------------------------------------------

    def _start_metadb(self) -> str:
        """-> the URL of MetaDB: the configured PostgreSQL, or an embedded one in the data folder."""
        url = self._config.metadb.url
        if url == MetaDBConfig().url:
            _check_name(self._data)
            url = f"{embedded_postgres.SCHEME}{self._data / 'metadb'}"
        if (folder := embedded_postgres.folder_of(url)) is None:
            return url
        embedded_postgres.binary("postgres")  # a missing wheel is said at once
        self._metadb = OwnMetaDB(folder, self._lock, self._wait)
        self._metadb.start()
        return url

    def _wait(self, seconds: float) -> None:
        """Hand on what the parts say meanwhile. Raises Stopped."""
        self._reader.pause(seconds)
        self._check_stopping()

    def _keep_metadb(self) -> None:
        if self._metadb:
            self._metadb.keep_running()

    def _add_nodes(self, names: Sequence[str], url: str) -> set[int]:
        """-> the ports they listen on. They need no more of MetaDB than to report to it."""
        embedded = embedded_postgres.is_embedded(url) and "?" not in url
        login = ["--metadb", f"{url}?user={NODE_ROLE}"] if embedded else []
        host = self._config.node.host
        self._make_homes(names)
        ports = {name: self._ports.of(name) for name in names}
        self._ports.save()  # after their folders: what it names was there once
        for name, port in ports.items():
            flags = ["--host", host, "--port", str(port), "--data", str(self._data / name), *login]
            grace = self._config.node.drain_timeout + 10
            node = self._child(name, _NODE, *flags, grace=grace)
            self._nodes.append(node)
        return set(ports.values())

    def _make_homes(self, names: Sequence[str]) -> None:
        """Folders of nodes that there never were: at the first start, and when there are to be more of them. One
        that was there before is never made anew: its disk may not be mounted. Raises ConfigError."""
        homes = [int(name[4:]) for name in names if read_identity(self._data / name)]
        for name in names:
            folder = self._data / name
            if int(name[4:]) in homes:
                continue
            if name in self._ports or int(name[4:]) < max(homes, default=0):
                raise ConfigError(
                    f"{folder} was a storage node's and is no more: mount its disk, or, if what it kept is lost for "
                    f"good, run `distfs node init --data {quoted(folder)}`, start again, and "
                    f"`distfs forget` the old node"
                )
            make_home(folder)

    def _node_names(self) -> list[str]:
        """As many as configured; never fewer than there is data of."""
        wanted = _wanted_nodes(self._config)
        have = [int(p.name[4:]) for p in self._data.glob("node*") if p.is_dir() and p.name[4:].isdecimal()]
        if max(have, default=0) > wanted:
            say(f"{self._data} holds data of {max(have)} storage nodes; starting all of them")
        return [f"node{i}" for i in range(1, max([wanted, *have]) + 1)]

    def _add_service(self) -> None:
        http = self._config.http
        service = self._child(
            "service",
            self._serve,
            "serve",
            "--host",
            http.host,
            "--port",
            str(http.port),
            grace=http.drain_timeout + 10,
        )
        self._service.append(service)

    def _start_children(self) -> None:
        """Returns when the service listens. They are forked right after each other, so that they share memory."""
        for child in self._children():
            child.prepare()
        for child in self._children():
            child.start()
        (service,) = self._service
        self.url = service.announcement(self._stopping, _START_LIMIT_S)
        service.flags[service.flags.index("--port") + 1] = str(urlsplit(self.url).port)  # for its next start

    def _child(self, name: str, program: Program, *flags: str, grace: float = 10.0) -> Child:
        config = ["--config", self._config_file] if self._config_file else []
        given = [*flags, *config, parent_watch.FLAG]
        return Child(name, program, given, self._env, self._reader, keep=[self._lock], grace=grace)

    def _wait_ready(self, meta: MetaDB, ports: set[int]) -> None:
        """Until /readyz says so and every node is there. Say now and then what is missing; a child that dies
        ends the wait."""
        told = time.monotonic()
        while reason := _unready(self.url) or _absent(meta, ports):
            self._check_stopping()
            self._keep_metadb()
            for child in self._children():
                child.require_alive()
            if time.monotonic() - told > _SAY_WHY_EVERY_S:
                say(f"not ready yet: {reason}")
                told = time.monotonic()
            self._reader.pause(_LOOK_EVERY_S / 2)

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _children(self) -> list[Child]:
        return [*self._nodes, *self._service]


def _check_new(config: Config, data: Path) -> None:
    """What can be told before a folder is made: a first start that is refused leaves none. Raises ConfigError."""
    _check_places(config)
    _wanted_nodes(config)
    url = config.metadb.url
    if embedded_postgres.is_embedded(url):
        embedded_postgres.binary("postgres")
        if url == MetaDBConfig().url:
            _check_name(data)


def _check_places(config: Config) -> None:
    """Raises ConfigError when the service or the nodes cannot listen, or should not."""
    check_reach(config)
    if config.tls.ca:
        raise ConfigError(
            "the nodes of `distfs up` have no certificates of their own: take out tls.ca, tls.cert and tls.key "
            "(between its parts is only loopback), or start the parts by themselves"
        )
    _check_port(config.http.host, config.http.port)
    if (host := config.node.host) in ("0.0.0.0", "::", ""):  # noqa: S104 - compared
        raise ConfigError(
            f"nodes of `distfs up` need one address, not {host or 'every one'}: correct node.host"
        )
    _check_port(host, 0, "correct node.host")


def _wanted_nodes(config: Config) -> int:
    """As many as configured. Raises ConfigError when they are too few for a file."""
    wanted, policy = config.local.nodes, config.storage.policy
    needed = config.storage.fewest(policy)
    if wanted < needed:
        raise ConfigError(
            f"policy {policy} needs at least {needed} storage nodes, not {wanted}: "
            "raise --nodes, or change storage.policies in config.yml"
        )
    return wanted


def _check_name(data: Path) -> None:
    """Raises ConfigError for a folder in which PostgreSQL's own files, or a URL, could not name what is there."""
    name = str(data)
    if "?" in name:  # it would end the folder in the URL
        raise ConfigError(f"data folder {data}: choose one without a question mark with --data")
    if not name.isprintable():  # a byte that is not UTF-8 is a lone surrogate here, which is not printable
        raise ConfigError(
            f"data folder {name!r}: choose one whose name is UTF-8 without line breaks with --data"
        )


def _check_port(host: str, port: int, other_host: str = "choose another with --host") -> None:
    """Before anything is started: can the service listen there? Raises ConfigError."""
    try:
        family, address = to_listen(host, port)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as e:
        raise cannot_listen(host, port, e, other_host, "choose another with --port") from e


def _unready(url: str) -> str:
    """Why the service is not ready; empty when it is."""
    place = urlsplit(url)
    name: str = place.hostname or ""
    kind: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
    if (
        place.scheme == "https"
    ):  # our own child, which is told nothing: its certificate may be for other names
        unproved = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unproved.check_hostname, unproved.verify_mode = False, ssl.CERT_NONE
        kind = functools.partial(http.client.HTTPSConnection, context=unproved)
    connection = kind(name, place.port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace").strip()
        return "" if response.status == 200 else body or f"/readyz says {response.status}"
    except (OSError, http.client.HTTPException) as e:
        return f"the service does not answer: {e}"
    finally:
        connection.close()


def _absent(meta: MetaDB, ports: set[int]) -> str:
    """Which nodes are not in MetaDB yet; empty when all are."""
    here = {node.address.port for node in meta.nodes(Deadline(_PROBE_TIMEOUT_S)) if node.alive}
    missing = sorted(ports - here)
    return f"storage nodes on ports {', '.join(map(str, missing))} are not there yet" if missing else ""


@dataclass
class NodePorts:
    """Where each node listens, kept over restarts as long as the port is free; held while this process runs, since
    others are given ports by the kernel all the time, also between our look and the node's start."""

    file: Path
    host: str

    def __post_init__(self) -> None:
        self._ports: dict[str, int] = {}
        self._held: list[socket.socket] = []
        with contextlib.suppress(OSError, ValueError):
            self._ports = {str(k): int(v) for k, v in json.loads(self.file.read_text()).items()}

    def __contains__(self, name: str) -> bool:
        """Whether the node was ever started here."""
        return name in self._ports

    def of(self, name: str) -> int:
        """A port that no other node and no other program has, nor will have while this process runs."""
        others = {port for other, port in self._ports.items() if other != name}
        port = 0
        if (before := self._ports.get(name, 0)) not in others:
            with contextlib.suppress(OSError, OverflowError):  # another program has it now; or it is no port
                port = self._hold(before)
        while not port or port in others:
            port = self._hold(0)
        self._ports[name] = port
        return port

    def _hold(self, port: int) -> int:
        """Bind it and never listen: Linux gives it to nobody who asks for any port, refuses connections to it, and
        lets a node that names it listen there, again and again. -> the port. Raises OSError."""
        family, address = to_listen(self.host, port)
        with contextlib.ExitStack() as undo:
            held = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(address)
            bound = int(held.getsockname()[1])
            if _NODES_SHARE_A_HELD_PORT:
                undo.pop_all()
                self._held.append(held)
        return bound

    def release(self) -> None:
        for held in self._held:
            held.close()

    def save(self) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(self._ports))
        fresh.replace(self.file)
