"""``distfs up`` as users run it: one command, everything there; one signal, everything gone, and the data kept."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from distfs.metadb.embedded_postgres import resolve
from distfs.storage.disk.home import make_home
from tests.cluster.harness import ROOT, clean_environment
from tests.contract.litter import eventually
from tests.postgres import run_sql
from tests.processes import command_of, commands_naming

START_LIMIT_S = 60.0

StartUp = Callable[..., "Up"]


class Up:
    """A running ``distfs up``."""

    def __init__(self, *flags: str, cwd: Path, **environ: str) -> None:
        self.lines: list[str] = []  # of its standard error
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distfs", "up", *flags],
            cwd=cwd,
            env=clean_environment(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_ready(self) -> Up:
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        found = re.search(r"ready at (https?://[\d.:]+)", first)
        assert found, f"{first!r}\n{self.log}"
        self.url = found[1]
        return self

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def children(self) -> dict[str, int]:
        """name -> process id, of its own children, by what they run."""
        names = {}
        for child in psutil.Process(self.process.pid).children():
            args = command_of(child)
            if not args or " distfs up " in args:
                continue  # it has ended, ends at this moment, or has not become what it is to be
            name = re.search(r"/(node\d+|metadb)[/ ]|distfs (serve) ", args + " ")
            assert name, args
            names[name[1] or name[2]] = child.pid
        return names

    def says(self, words: str) -> None:
        """Wait until it has written a line with ``words`` on standard error."""
        eventually(lambda: any(words in line for line in self.lines), f"it says {words!r}:\n{self.log}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        code = self.process.wait(START_LIMIT_S)
        self._reader.join(START_LIMIT_S)
        return code

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """Whatever state it is in: gone, and its children after it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


def processes_in(data: Path) -> list[str]:
    """Processes that work on a data folder, PostgreSQL's among them."""
    here = [line for line in commands_naming(data) if " distfs up " not in line]
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if str(cwd.readlink()).startswith(str(data)):
                here.append(str(cwd))
    return here


def curl(*arguments: str) -> bytes:
    command = ["curl", "--silent", "--show-error", "--fail", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def up(tmp_path: Path, data: Path, pristine_postgres: Path) -> Iterator[StartUp]:
    """-> a function that starts ``distfs up`` on ``data`` and any free port.

    ``new``: with nothing there; else a database nobody has used is, which is quicker.
    """
    started: list[Up] = []

    def start(*flags: str, new: bool = False, **environ: str) -> Up:
        if not new and not data.exists():
            data.mkdir(mode=0o700)  # as distfs itself makes it
            subprocess.run(["cp", "-a", pristine_postgres, data / "metadb"], check=True)
        started.append(Up("--data", str(data), "--port", "0", *flags, cwd=tmp_path, **environ))
        return started[-1]

    yield start
    for one in started:
        one.close()
        print(one.log, file=sys.stderr)  # pytest shows it when the test failed
    eventually(lambda: not processes_in(data), "everything is gone")


def refused(up: Up, code: int = 2) -> str:
    """Its one line on standard error, when it does not start."""
    assert up.wait() == code, up.log
    [line] = up.lines
    return line


# --- life ------------------------------------------------------------------------------------------------


def test_one_command_starts_all_of_it_and_the_data_outlives_it(
    up: StartUp, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(content := os.urandom(2_500_000))
    first = up(new=True).wait_ready()
    assert sorted(first.children()) == ["metadb", "node1", "node2", "node3", "serve"]
    uuid = curl("-F", f"file=@{tmp_path}/file", f"{first.url}/upload").decode().strip()
    assert curl(f"{first.url}/download/{uuid}") == content
    assert first.stop() == 0
    assert processes_in(data) == []

    second = up().wait_ready()
    assert curl(f"{second.url}/download/{uuid}") == content
    assert second.stop() == 0
    assert "Traceback" not in first.log + second.log


def test_its_nodes_may_do_nothing_in_metadb_but_report(up: StartUp, data: Path) -> None:
    up().wait_ready()
    rows = run_sql(
        resolve(f"embedded:{data / 'metadb'}"), "SELECT usename, count(*) FROM pg_stat_activity GROUP BY 1"
    )
    assert dict(map(tuple, rows))["distfs_node"] >= 3


def test_ctrl_c_stops_it_cleanly(up: StartUp, data: Path) -> None:
    running = up().wait_ready()
    os.killpg(running.process.pid, signal.SIGINT)  # a terminal signals the whole foreground group
    assert running.wait() == 0
    assert processes_in(data) == []
    assert "KeyboardInterrupt" not in running.log


def test_a_signal_while_it_starts_stops_it_cleanly(up: StartUp, data: Path) -> None:
    starting = up(new=True)
    eventually((data / "metadb").exists, "MetaDB is being made")
    assert starting.stop() == 0
    assert processes_in(data) == []
    assert up().wait_ready().stop() == 0


def test_all_nodes_killed_at_once_are_seen_by_no_download(up: StartUp, data: Path, tmp_path: Path) -> None:
    running = up().wait_ready()
    kept, came = tmp_path / "kept", tmp_path / "came"
    kept.write_bytes(os.urandom(100 << 20))
    uuid = curl("--upload-file", str(kept), f"{running.url}/upload/x").decode().strip()
    rate = ["--limit-rate", "30M", "--output", str(came)]  # so that much of it is still to come
    with subprocess.Popen(["curl", "-sSf", *rate, f"{running.url}/download/{uuid}"]) as client:
        eventually(lambda: came.exists() and came.stat().st_size > 10 << 20, "it has begun")
        for name, pid in running.children().items():
            if name.startswith("node"):
                os.kill(pid, signal.SIGKILL)
        assert client.poll() is None
        assert came.stat().st_size < 90 << 20
        assert client.wait(120) == 0
    assert came.read_bytes() == kept.read_bytes()
    eventually(lambda: running.log.count("was killed by SIGKILL") == 3, "its log says so")
    assert running.stop() == 0


@pytest.mark.parametrize("name", ["node2", "serve"])
def test_a_child_that_dies_is_started_again_and_that_is_said(up: StartUp, data: Path, name: str) -> None:
    running = up().wait_ready()
    uuid = curl("--data-binary", "kept", "-X", "PUT", f"{running.url}/upload/x").decode().strip()
    os.kill(running.children()[name], signal.SIGKILL)
    running.says("was killed by SIGKILL; starting it again")
    eventually(lambda: len(running.children()) == 5, "five children again")
    eventually(lambda: answers(f"{running.url}/readyz"), "it is ready again")
    assert curl(f"{running.url}/download/{uuid}") == b"kept"
    assert running.stop() == 0
    kept = (data / "logs" / "distfs.log").read_text().splitlines()
    assert any("was killed by SIGKILL" in json.loads(line)["message"] for line in kept)


def test_a_log_in_json_is_json_to_the_last_line(up: StartUp) -> None:
    """What the parts log, what PostgreSQL and Python write without asking, and what the parent has to say."""
    running = up(DISTFS_LOG_FORMAT="json").wait_ready()
    os.kill(running.children()["node1"], signal.SIGKILL)
    running.says("was killed by SIGKILL")
    running.says("starting it again")
    assert running.stop() == 0
    told = [json.loads(line) for line in running.lines]
    assert [line for line in told if not {"part", "time", "level", "message"} <= line.keys()] == []
    assert {"distfs", "node1", "service"} <= {line["part"] for line in told}
    assert any(line["message"] == "stopping" for line in told if line["part"] == "distfs")
    assert any(line["part"] == "service" and line.get("path") == "/readyz" for line in told)


def test_postgresql_itself_is_started_again_when_it_dies(up: StartUp, data: Path) -> None:
    running = up().wait_ready()
    uuid = curl("--data-binary", "kept", "-X", "PUT", f"{running.url}/upload/x").decode().strip()
    os.kill(postmaster(data), signal.SIGKILL)
    running.says("PostgreSQL died; starting it again")
    eventually(lambda: answers(f"{running.url}/readyz"), "it is ready again")
    assert curl(f"{running.url}/download/{uuid}") == b"kept"
    assert running.children()["metadb"] == postmaster(data)  # nothing is between the two
    running.signal(signal.SIGKILL)
    eventually(lambda: not processes_in(data), "the one that was started again follows, too")


def postmaster(data: Path) -> int:
    """PostgreSQL's process; 0 while there is none."""
    try:
        return int((data / "metadb" / "postgres" / "postmaster.pid").read_text().split()[0])
    except (FileNotFoundError, IndexError):  # IndexError: it is being written
        return 0


def answers(url: str) -> bool:
    return subprocess.run(["curl", "-sf", "-o", "/dev/null", "--max-time", "10", url]).returncode == 0


def test_a_child_that_will_not_stop_is_ended(up: StartUp, data: Path) -> None:
    running = up().wait_ready()
    os.kill(running.children()["node1"], signal.SIGSTOP)
    running.signal(signal.SIGTERM)
    running.says("stopping")
    eventually(lambda: "serve" not in running.children(), "the service has stopped")
    running.signal(signal.SIGTERM)  # the second one: at once
    assert running.wait() == 0
    assert "distfs: node1 does not stop by itself; ending it" in running.lines
    assert processes_in(data) == []


def test_kill_9_leaves_nothing_behind_and_the_next_start_works_at_once(up: StartUp, data: Path) -> None:
    first = up().wait_ready()
    uuid = curl("--data-binary", "kept", "-X", "PUT", f"{first.url}/upload/x").decode().strip()
    first.signal(signal.SIGKILL)
    first.wait()
    second = up().wait_ready()  # while the first one's children may still be on their way out
    assert curl(f"{second.url}/download/{uuid}") == b"kept"
    assert sorted(second.children()) == ["metadb", "node1", "node2", "node3", "serve"]

    second.signal(signal.SIGKILL)
    eventually(lambda: not processes_in(data), "the children are gone by themselves")


# --- settings -----------------------------------------------------------------------------------------------


def test_flags_and_config_choose_nodes_and_policy(up: StartUp, tmp_path: Path) -> None:
    (tmp_path / "other.yml").write_text("storage: {policies: {default: 1+0}}")
    running = up("--nodes", "1", "--config", "other.yml", DISTFS_LOG_LEVEL="WARNING").wait_ready()
    assert sorted(running.children()) == ["metadb", "node1", "serve"]
    uuid = curl("--data-binary", "one", "-X", "PUT", f"{running.url}/upload/x").decode().strip()
    assert '"policy": "1+0"' in curl(f"{running.url}/files/{uuid}").decode()
    assert running.lines == []


def test_sighup_reaches_the_service_and_stops_nothing(up: StartUp, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("")
    running = up().wait_ready()
    children = running.children()
    (tmp_path / "config.yml").write_text("bandwidth: {cap_out: 7MB/s}\nlog: {level: DEBUG}")
    running.signal(signal.SIGHUP)
    running.says("bandwidth.cap_out 0 -> 7000000; log.level INFO -> DEBUG")
    (tmp_path / "config.yml").write_text("bandwidth: {cap_out: fast}")
    running.signal(signal.SIGHUP)
    running.says("the configuration stays as it was: config: bandwidth.cap_out: 'fast' is not a size")
    assert running.children() == children
    assert running.stop() == 0


def test_times_that_were_changed_between_two_starts_hold(up: StartUp, data: Path) -> None:
    """They are the whole cluster's, and nobody but this `up` is of it."""
    times = {"DISTFS_UPKEEP_TRASH_TTL": "3d", "DISTFS_NODE_DOWN_AFTER": "20s"}
    for environ in ({}, times):
        running = up(**environ).wait_ready()
        assert len(running.children()) == 5
        assert running.stop() == 0


def test_nodes_with_data_are_started_though_fewer_are_asked_for(up: StartUp) -> None:
    up("--nodes", "3").wait_ready().stop()
    again = up("--nodes", "2").wait_ready()
    assert {"node1", "node2", "node3"} < set(again.children())
    again.says("holds data of 3 storage nodes; starting all of them")


def test_a_postgresql_of_ones_own_is_used_where_configured(
    up: StartUp, data: Path, make_database: Callable[[str], str]
) -> None:
    running = up(new=True, DISTFS_METADB_URL=make_database("template1")).wait_ready()
    assert sorted(running.children()) == ["node1", "node2", "node3", "serve"]
    assert not (data / "metadb").exists()
    assert running.stop() == 0


# --- what an operator must mend: one line, exit 1, nothing left --------------------------------------------------


def test_a_second_one_on_the_same_data_is_refused(up: StartUp, data: Path) -> None:
    first = up().wait_ready()
    assert refused(up()) == (
        f"distfs: another `distfs up` (process {first.process.pid}) uses {data}: stop it with "
        f"`distfs down --data {data}`, or choose another folder with --data"
    )
    assert answers(f"{first.url}/readyz")


def test_a_busy_port_is_refused(up: StartUp, data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        line = refused(up("--port", str(port), new=True))
    assert not data.exists(), "a first start that is refused leaves nothing"
    assert line == (
        f"distfs: cannot listen on 127.0.0.1:{port}: another program listens there; choose another with --port"
    )
    assert processes_in(data) == []


def test_an_address_of_elsewhere_is_refused(up: StartUp) -> None:
    line = refused(up("--host", "192.0.2.1", DISTFS_AUTH_MODE="open", DISTFS_TLS_MODE="off"))
    assert line.startswith("distfs: cannot listen on 192.0.2.1:0: ")


def test_a_folder_that_cannot_be_written_is_refused(up: StartUp, data: Path) -> None:
    data.write_text("a file in the folder's place")
    assert refused(up()) == (
        f"distfs: cannot write to the data folder {data}: File exists; choose another with --data"
    )


def test_a_folder_whose_name_would_end_in_the_url_is_refused(up: StartUp, data: Path) -> None:
    odd = data.with_name("a?b")
    assert refused(up("--data", str(odd))) == (
        f"distfs: data folder {odd}: choose one without a question mark with --data"
    )
    assert not data.with_name("a").exists()


def test_a_part_that_cannot_start_ends_it_with_its_reason(up: StartUp, data: Path) -> None:
    for i in (1, 2, 3):
        make_home(data / f"node{i}")
    with (data / "node2" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        running = up(DISTFS_LOG_LEVEL="ERROR")
        assert running.wait() == 2
    assert running.lines[-1].startswith("distfs: node2 could not start: storage_server: data folder")
    assert processes_in(data) == []


def test_a_node_folder_that_cannot_be_made_is_refused(up: StartUp, data: Path) -> None:
    data.mkdir()
    (data / "node2").write_text("a file in the folder's place")
    running = up()
    assert running.wait() == 2
    assert running.lines[-1].startswith(f"distfs: data folder {data / 'node2'}: ")
    assert processes_in(data) == []


def test_a_node_folder_that_was_there_is_never_made_anew_silently(up: StartUp, data: Path) -> None:
    """Its disk may not be mounted. Other nodes are made only when there are to be more of them."""
    assert up().wait_ready().stop() == 0
    folder, mounted_later = data / "node2", data.with_name("its-disk")
    folder.rename(mounted_later)
    for left in ("nothing", "an empty folder"):
        if left != "nothing":
            folder.mkdir()
        for flags in ([], ["--nodes", "4"]):
            running = up(*flags)
            assert running.wait() == 2
            line = running.lines[-1]
            assert line.startswith(f"distfs: {folder} was a storage node's and is no more: mount its disk"), (
                left
            )
            assert not folder.exists() or not list(folder.iterdir())
    shutil.rmtree(folder, ignore_errors=True)
    mounted_later.rename(folder)
    running = up("--nodes", "4").wait_ready()
    assert sorted(running.children()) == ["metadb", "node1", "node2", "node3", "node4", "serve"]
    assert running.stop() == 0
    # What is lost for good: the remedy that the line names.
    shutil.rmtree(folder)
    remedy = line.partition("`")[2].partition("`")[0].split()[1:]
    subprocess.run([sys.executable, "-m", "distfs", *remedy], check=True, cwd=ROOT, env=clean_environment())
    assert up().wait_ready().stop() == 0


def test_a_node_of_a_running_up_is_not_made_anew_where_its_folder_was(up: StartUp, data: Path) -> None:
    running = up().wait_ready()
    folder, unmounted = data / "node2", data.with_name("its-disk")
    folder.rename(unmounted)
    os.kill(running.children()["node2"], signal.SIGKILL)
    running.says("is no storage node's: is its disk mounted?")
    assert not folder.exists()
    unmounted.rename(folder)
    eventually(lambda: "node2" in running.children(), "it is started again")
    assert running.stop() == 0


def test_a_metadb_folder_that_cannot_be_used_is_refused(up: StartUp, data: Path) -> None:
    data.mkdir()
    (data / "metadb").write_text("a file in the folder's place")
    running = up()
    assert running.wait() == 2
    assert running.lines[-1].startswith("distfs: cannot keep MetaDB in")


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (["--nodes", "1"], {}, "policy 1+1 needs at least 2 storage nodes, not 1: raise --nodes"),
        (["--nodes", "0"], {}, "local.nodes must be at least 1"),
        (["--port", "70000"], {}, "http.port must be"),
        (["--config", "nowhere.yml"], {}, "cannot read nowhere.yml"),
        ([], {"DISTFS_HTTP_PROT": "1"}, "did you mean DISTFS_HTTP_PORT?"),
        ([], {"DISTFS_METADB_URL": "mysql://x"}, "metadb.url must look like"),
    ],
)
def test_a_wrong_setting_is_refused(
    up: StartUp, data: Path, flags: list[str], environ: dict[str, str], words: str
) -> None:
    line = refused(up(*flags, **environ))
    assert line.startswith("distfs: ")
    assert words in line
    assert processes_in(data) == []


def test_a_metadb_that_is_away_is_said(up: StartUp) -> None:
    assert "127.0.0.1:1" in refused(up(DISTFS_METADB_URL="postgresql://u@127.0.0.1:1/d"), 3)


def test_an_unknown_flag_shows_the_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distfs", "up", "--prot", "1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "usage: distfs" in done.stderr


def test_the_version_is_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distfs", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert re.fullmatch(r"distfs \d+\.\d+\.\d+\n", done.stdout)
