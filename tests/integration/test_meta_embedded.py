"""The embedded PostgreSQL: started, watched, stopped, and never in anybody's way."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distfs.config.settings import MetaDBConfig
from distfs.errors import ConfigError, Unavailable
from distfs.meta import MetaDB
from distfs.metadb import unprivileged
from distfs.metadb.embedded_postgres import EmbeddedPostgres, processes_in
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, soon
from tests.postgres import FAST, run_sql, scratch_folder

Copy = Callable[[Path], EmbeddedPostgres]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as path:
        yield Path(path)


@contextmanager
def started(server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_a_new_folder_becomes_a_durable_metadb_that_only_this_machine_reaches(folder: Path) -> None:
    with started(EmbeddedPostgres(folder / "a b" / "metadb")) as server:
        settings = dict(run_sql(server.url, "SELECT name, setting FROM pg_settings"))
        assert (settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"]) == (
            "on",
        ) * 3
        assert settings["listen_addresses"] == ""
        assert settings["max_connections"] == "100"
        assert settings["server_encoding"] == "UTF8"
        processes = {kind for [kind] in run_sql(server.url, "SELECT backend_type FROM pg_stat_activity")}
        assert "checkpointer" in processes
        assert not processes & {"io worker", "logical replication launcher"}  # of no use to us


@pytest.mark.parametrize(("reserved", "grows"), [(None, False), ("0", True)])
def test_no_connection_needs_a_file_of_shared_memory(
    folder: Path, copy_of_postgres: Copy, reserved: str | None, grows: bool
) -> None:
    """A full disk has no room for one. Without the reserve there is one, or this would show nothing."""
    made = copy_of_postgres(folder / "metadb")
    more = {} if reserved is None else {"min_dynamic_shared_memory": reserved}
    with started(EmbeddedPostgres(made.folder, {**FAST, **more})) as server:
        assert run_sql(server.url, "SELECT count(*) > 0 FROM pg_stat_all_tables") == [[True]]
        files = [file.stat().st_size for file in (server.data / "pg_dynshmem").iterdir()]
        assert (sum(files) >= 1 << 20) is grows


def test_stopping_leaves_no_process_and_starting_again_finds_the_data(
    folder: Path, copy_of_postgres: Copy
) -> None:
    server = copy_of_postgres(folder / "metadb")
    url = f"embedded:{server.folder}"
    with started(server):
        meta = MetaDB(MetaDBConfig(url=url))
        meta.migrate()
        files = meta.commit_files([new_file()], soon())
    assert list(processes_in(server.data)) == []
    assert server.pid is None
    with pytest.raises(Unavailable, match="no MetaDB runs in") as away:
        meta.ping(soon())
    assert away.value.public == "MetaDB cannot be reached at this moment: try again soon"
    server.stop()
    with started(EmbeddedPostgres(server.folder, FAST)):
        assert [meta.file(file.id, soon()) for file in files] == files
    meta.close()


def test_a_second_supervisor_of_a_folder_is_refused_and_harms_nothing(
    folder: Path, copy_of_postgres: Copy
) -> None:
    with started(copy_of_postgres(folder / "metadb")) as server:
        second = EmbeddedPostgres(server.folder, FAST)
        with pytest.raises(ConfigError, match="in use: another `distfs up`"):
            second.start()
        second.stop()
        assert run_sql(server.url, "SELECT 1") == [[1]]


def test_two_servers_on_one_machine_know_nothing_of_each_other(folder: Path, copy_of_postgres: Copy) -> None:
    with started(copy_of_postgres(folder / "one")) as one, started(copy_of_postgres(folder / "two")) as two:
        run_sql(one.url, "CREATE TABLE mine (n int)")
        assert run_sql(two.url, "SELECT to_regclass('mine') IS NULL") == [[True]]
        one.stop()
        assert run_sql(two.url, "SELECT 1") == [[1]]


def test_ctrl_c_in_the_terminal_reaches_the_supervisor_and_not_postgresql(
    folder: Path, copy_of_postgres: Copy
) -> None:
    with started(copy_of_postgres(folder / "metadb")) as server:
        assert server.pid is not None
        assert os.getsid(server.pid) != os.getsid(0)


def test_it_never_runs_as_root_and_opens_no_folder_above_it(folder: Path, copy_of_postgres: Copy) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with started(copy_of_postgres(closed / "metadb")) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert closed.stat().st_mode & 0o777 == 0o700
        assert closed.stat().st_uid == os.getuid()
        assert server.data.stat().st_mode & 0o777 == 0o700


def test_a_killed_postmaster_is_started_again_with_all_data(folder: Path, copy_of_postgres: Copy) -> None:
    with started(copy_of_postgres(folder / "metadb")) as server:
        assert not server.ensure_running()
        run_sql(server.url, "CREATE TABLE kept AS SELECT 42 AS n")
        killed = server.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: not server.running(), "it has ended")
        assert (server.data / "postmaster.pid").exists()
        assert server.ensure_running()
        assert server.pid not in (None, killed)
        assert run_sql(server.url, "SELECT n FROM kept") == [[42]]


def test_what_a_killed_supervisor_left_running_is_replaced(folder: Path, copy_of_postgres: Copy) -> None:
    server = copy_of_postgres(folder / "metadb")
    script = (
        "import sys, time\n"
        "from distfs.metadb.embedded_postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(sys.argv[1])\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(server.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as supervisor:
        assert supervisor.stdout is not None
        left = int(supervisor.stdout.readline())
        supervisor.kill()
    assert left in processes_in(server.data)
    with started(server):
        assert left not in processes_in(server.data)
        assert run_sql(server.url, "SELECT 1") == [[1]]


FOLLOWED = (
    "import os, sys, time\n"
    "from distfs.metadb.embedded_postgres import EmbeddedPostgres\n"
    "lock = os.open(os.path.dirname(sys.argv[1]) + '/lock-of-all', os.O_RDWR | os.O_CREAT)\n"
    "server = EmbeddedPostgres(sys.argv[1], follow=[lock])\n"
    "print('starts', flush=True)\n"
    "server.start()\n"
    "print(server.pid, flush=True)\n"
    "time.sleep(600)\n"
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start replaces it")


@linux
@pytest.mark.parametrize("as_root", [True, False])
def test_it_follows_a_supervisor_that_is_killed_and_leaves_all_in_order(
    folder: Path, copy_of_postgres: Copy, as_root: bool
) -> None:
    home = folder / "home"
    home.mkdir()
    copy_of_postgres(home / "metadb")
    become = as_nobody(folder, home) if not as_root else []
    if become:
        subprocess.run(["chown", "-R", "nobody", home], check=True)
    command = [*become, sys.executable, "-c", FOLLOWED, str(home / "metadb")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "starts\n"
        pid = int(supervisor.stdout.readline())
        held = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        assert str(home / "lock-of-all") in held  # by which others wait for its end
        supervisor.kill()
    data = home / "metadb" / "postgres"
    eventually(lambda: not list(processes_in(data)), "it has ended")
    assert not (data / "postmaster.pid").exists()
    assert "database system is shut down" in (home / "metadb" / "postgres.log").read_text()


@linux
def test_what_makes_a_new_database_follows_too(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    command = [sys.executable, "-c", FOLLOWED, str(home / "metadb")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as supervisor:
        eventually((home / "metadb" / "postgres.new" / "PG_VERSION").exists, "it is being made")
        assert using(home)
        supervisor.kill()
    eventually(lambda: not using(home), "nothing goes on with it")
    assert not (home / "metadb" / "postgres").exists()
    with started(EmbeddedPostgres(home / "metadb", FAST)) as server:
        assert run_sql(server.url, "SELECT 1") == [[1]]


def using(home: Path) -> list[int]:
    """Who holds the lock of all."""
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if holds(pid, home)]


def holds(pid: int, home: Path) -> bool:
    try:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it has just ended, or closed one of them
        return False
    return str(home / "lock-of-all") in links


def test_a_stale_pid_file_that_names_a_living_stranger_is_no_obstacle(
    folder: Path, copy_of_postgres: Copy
) -> None:
    """As in a container that was restarted: the same small numbers, other processes."""
    server = copy_of_postgres(folder / "metadb")
    stranger = subprocess.Popen(["sleep", "600"])
    pidfile = server.data / "postmaster.pid"
    pidfile.write_text(f"{stranger.pid}\n{server.data}\n1\n5432\n{server.data}\n\n1 1\nready\n")
    try:
        with started(server):
            assert run_sql(server.url, "SELECT 1") == [[1]]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_interrupted_initdb_is_done_again(folder: Path, copy_of_postgres: Copy) -> None:
    server = copy_of_postgres(folder / "metadb")
    shutil.move(server.data, server.folder / "postgres.new")
    (server.folder / "postgres.new" / "global" / "pg_control").unlink()
    with started(server):
        assert run_sql(server.url, "SELECT 1") == [[1]]


def test_a_path_too_long_for_a_socket_works_and_leaves_nothing_outside(
    folder: Path, copy_of_postgres: Copy
) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with started(copy_of_postgres(deep / "metadb")) as server:
        elsewhere = Path(run_sql(server.url, "SHOW unix_socket_directories")[0][0])
        assert elsewhere.stat().st_mode & 0o777 == 0o700
        meta = MetaDB(MetaDBConfig(url=f"embedded:{server.folder}"))
        meta.migrate()
        meta.close()
    assert elsewhere != server.data
    assert not elsewhere.exists()


def test_why_postgresql_did_not_start_is_said_in_its_own_words(folder: Path, copy_of_postgres: Copy) -> None:
    server = copy_of_postgres(folder / "metadb")
    with (server.data / "postgresql.conf").open("a") as config:
        config.write("no_such_setting = 1\n")
    with pytest.raises(ConfigError, match=r"did not start .*postgresql.conf.* \(see .*postgres.log\)"):
        server.start()
    assert not server.running()


def test_a_folder_that_cannot_be_made_is_one_line(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(ConfigError, match="cannot keep MetaDB in .*: Not a directory"):
        EmbeddedPostgres(folder / "file" / "metadb").start()


def as_nobody(folder: Path, home: Path) -> list[str]:
    """How root runs a command as nobody, whose ``home`` is then; for another user, nothing."""
    if os.getuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    folder.chmod(0o755)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    account = [str(nobody.pw_uid), str(nobody.pw_gid)]
    return [sys.executable, "-I", "-S", unprivileged.__file__, *account, "0", sys.executable, "--"]


def test_it_works_for_a_user_who_is_not_root(folder: Path, copy_of_postgres: Copy) -> None:
    """Run by root it becomes nobody first; run by a user it is what every other test here is."""
    home = folder / "home"
    home.mkdir()
    become: list[str] = []
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        folder.chmod(0o755)
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        become = [
            sys.executable,
            "-I",
            "-S",
            unprivileged.__file__,
            str(nobody.pw_uid),
            str(nobody.pw_gid),
            "0",
        ]
        become += [sys.executable, "--"]
    script = (
        "import os, sys\n"
        "from distfs.metadb.embedded_postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(sys.argv[1])\n"
        "server.start()\n"
        "print(os.getuid(), os.stat(f'/proc/{server.pid}').st_uid, flush=True)\n"
        "server.stop()\n"
        "print(os.path.exists(f'{sys.argv[1]}/postgres/postmaster.pid'))\n"
    )
    told = subprocess.run(
        [*become, sys.executable, "-c", script, str(home / "metadb")],
        capture_output=True,
        text=True,
        check=True,
        cwd=CHECKOUT,
    )
    mine, its, left = told.stdout.split()
    assert mine == its != "0"
    assert left == "False"
