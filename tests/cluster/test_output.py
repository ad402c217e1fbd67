"""Output is I/O that can fail: no command takes that for a finding, and nothing that serves ends or waits for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distfs.deadline import Deadline
from distfs.process import output
from tests import nursery
from tests.cluster.harness import PATIENCE_S, Cluster, clean_environment
from tests.cluster.operating import Ended, fill
from tests.cluster.test_up import answers, curl, processes_in
from tests.contract.litter import eventually
from tests.ports import free_port
from tests.privileges import do_without

LOST = 4

#: Each makes one end of something to write to, which is handed to a process in place of a stream.
Sink = Callable[[], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def full_device() -> Iterator[int]:
    with open("/dev/full", "wb", buffering=0) as device:
        yield device.fileno()


@contextlib.contextmanager
def gone_reader() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@contextlib.contextmanager
def hung_up_terminal() -> Iterator[int]:
    try:
        master, slave = pty.openpty()
    except OSError as e:  # a root without /dev/pts
        do_without(f"a terminal of one's own: {e.strerror or e}")
    os.close(master)
    yield slave
    os.close(slave)


SINKS: dict[str, Sink] = {
    "full": full_device,
    "gone reader": gone_reader,
    "hung up": hung_up_terminal,
}


def python(*words: str, redirect: str = "") -> list[str]:
    """A command of ours; ``redirect``: redirections, such as ``>&-``."""
    command = [sys.executable, "-m", *words]
    return ["sh", "-c", f'exec "$@" {redirect}', "sh", *command] if redirect else command


def run(
    cluster: Cluster, *words: str, out: int = subprocess.PIPE, redirect: str = "", forked: bool = False
) -> Ended:
    flags = [] if words[0].startswith("-") else ["--config", str(cluster.folder / "config.yml")]
    command = python("distfs", *words, *flags, redirect=redirect)
    if forked:
        done = nursery.run(command, Path.cwd(), clean_environment(), PATIENCE_S, out)
    else:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=clean_environment())
    return Ended(done.returncode, done.stdout or "", done.stderr)


COMMANDS = [
    ["nodes"],
    ["status", "--json"],
    ["fsck"],
    ["fsck", "--json"],
    ["drain", "NODE", "--dry-run"],
    ["drain", "NODE", "--no-wait"],
    ["rebalance", "--dry-run", "--json"],
    ["repair", "--no-wait"],
    ["undelete", "FILE"],
    ["migrate"],
    ["--help"],
]


def test_no_command_ends_with_a_finding_because_nobody_takes_what_it_tells(by_hand: Cluster) -> None:
    deleted = by_hand.upload(b"deleted")
    by_hand.request("DELETE", f"/files/{deleted}")
    words = {"NODE": str(by_hand.node(0).id), "FILE": deleted}

    def end(command: list[str]) -> Ended:
        with full_device() as out:
            return run(by_hand, *[words.get(word, word) for word in command], out=out, forked=True)

    with ThreadPoolExecutor(2) as executor:
        ended = dict(zip(map(" ".join, COMMANDS), executor.map(end, COMMANDS), strict=True))
    assert by_hand.node(0).state == "draining"  # what they did is done
    ended["undrain NODE"] = end(["undrain", "NODE"])  # after the drain, not beside it
    expected = "distfs: not all could be written to standard output: No space left on device\n"
    assert {name: (one.code, one.err) for name, one in ended.items()} == dict.fromkeys(
        ended, (LOST, expected)
    )
    assert by_hand.node(0).state == "active"
    assert by_hand.download(deleted) == b"deleted"


@pytest.mark.parametrize("sink", SINKS)
def test_whatever_becomes_of_standard_output_it_is_one_line_and_one_code(by_hand: Cluster, sink: str) -> None:
    with SINKS[sink]() as out:
        ended = run(by_hand, "nodes", "--json", out=out)
    assert ended.code == LOST
    assert ended.err.startswith("distfs: not all could be written to standard output: ")
    assert ended.err.count("\n") == 1


def test_a_standard_output_that_is_closed_is_lost_output(by_hand: Cluster) -> None:
    ended = run(by_hand, "fsck", redirect=">&-")
    assert (ended.code, ended.err) == (
        LOST,
        "distfs: not all could be written to standard output: it is closed\n",
    )


def test_exit_codes_hold_without_a_standard_error(by_hand: Cluster) -> None:
    fill(by_hand)
    assert run(by_hand, "fsck", redirect="2>&-").code == 0
    assert run(by_hand, "fsck", redirect=">&- 2>&-").code == LOST
    assert run(by_hand, "forget", "999", redirect="2>&-").code == 1
    assert run(by_hand, "drain", redirect="2>/dev/full").code == 2
    next(path for i in range(3) for path in by_hand.fragments(i)).unlink()
    assert run(by_hand, "fsck", "--no-note", redirect="2>/dev/full").code == 1


def test_the_four_ways_to_fail_have_four_codes(by_hand: Cluster, tmp_path: Path) -> None:
    away = "postgresql://distfs@127.0.0.1:1/distfs"
    assert run(by_hand, "nodes", "--metadb", away, forked=True).code == 3
    assert run(by_hand, "fsck", "--metadb", away, forked=True).code == 3
    assert run(by_hand, "nodes", "--metadb", "mysql://x", forked=True).code == 2
    assert run(by_hand, "nodes", "--jason", forked=True).code == 2
    assert run(by_hand, "undelete", "00000000-0000-0000-0000-000000000000", forked=True).code == 1


def test_a_bug_is_no_finding(by_hand: Cluster) -> None:
    """Python would end with 1, which of fsck means that something is missing."""
    program = (
        "import sys; from distfs.commands import fsck; fsck._Walks = None\n"
        "from distfs import cli; sys.exit(cli.main())"
    )
    config = str(by_hand.folder / "config.yml")
    command = [sys.executable, "-c", program, "fsck", "--config", config]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 70
    assert "Traceback" in done.stderr


def test_a_name_that_the_terminal_cannot_show_is_escaped(by_hand: Cluster) -> None:
    deleted = by_hand.upload(b"deleted", "na\u00efve \u65e5")
    by_hand.request("DELETE", f"/files/{deleted}")
    command = python("distfs", "undelete", deleted, "--config", str(by_hand.folder / "config.yml"))
    environ = clean_environment(PYTHONIOENCODING="ascii")
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (0, f"{deleted} is back: na\\xefve \\u65e5, 7 bytes\n")


@pytest.mark.parametrize("sink", SINKS)
def test_standard_error_takes_whatever_is_written(sink: str) -> None:
    with SINKS[sink]() as number:
        stream = output._Unread(number)
        assert [stream.write(b"line\n" * 10_000) for _ in range(3)] == [50_000] * 3


# --- what serves goes on ------------------------------------------------------------------------------------


@contextlib.contextmanager
def unread_pipe() -> Iterator[tuple[int, Callable[[], bool]]]:
    """-> what to write to, and whether it takes no more. It is small, so that this is soon."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    poll = select.poll()
    poll.register(writing, select.POLLOUT)
    yield writing, lambda: not poll.poll(0)
    os.close(writing)
    os.close(reading)


@pytest.mark.parametrize("sink", ["full", "closed"])
def test_up_serves_whatever_becomes_of_its_output(tmp_path: Path, pristine_postgres: Path, sink: str) -> None:
    with contextlib.ExitStack() as stack:
        out = subprocess.PIPE if sink == "closed" else stack.enter_context(SINKS[sink]())
        serve_and_stop(tmp_path, pristine_postgres, out, lambda: True, ">&- 2>&-" if sink == "closed" else "")


def test_up_serves_though_nobody_reads_its_output(tmp_path: Path, pristine_postgres: Path) -> None:
    """Its log goes through it: were it to wait for a reader, its children would have to wait for it."""
    with unread_pipe() as (out, is_full):
        serve_and_stop(tmp_path, pristine_postgres, out, is_full, "")


def serve_and_stop(
    folder: Path, postgres: Path, out: int, pressed: Callable[[], bool], redirect: str
) -> None:
    data = folder / "data"
    data.mkdir()
    subprocess.run(["cp", "-a", postgres, data / "metadb"], check=True)
    port = free_port()
    command = python("distfs", "up", "--data", str(data), "--port", str(port), redirect=redirect)
    process = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{url}/readyz"), "it is ready")
        uuid = curl("-T", str(Path(__file__)), f"{url}/upload/x").decode().strip()
        eventually(pressed, "it feels what its output is like")
        for _ in range(8):  # more than the pipes between it and its children hold, too
            curl(*[f"{url}/healthz"] * 100)
        assert curl(f"{url}/download/{uuid}") == Path(__file__).read_bytes()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
        if process.stderr:
            process.stderr.close()
        eventually(lambda: not processes_in(data), "everything is gone")


@pytest.mark.parametrize("redirect", ["2>/dev/full >/dev/full", "2>&- >&-"])
def test_a_node_lives_without_output(by_hand: Cluster, tmp_path: Path, redirect: str) -> None:
    before = {node.id for node in by_hand.meta.nodes(deadline())}
    flags = ["--init", "--port", "0", "--data", str(tmp_path / "node")]
    flags += ["--config", str(by_hand.folder / "config.yml")]
    process = subprocess.Popen(
        python("distfs.storage_server", *flags, redirect=redirect), cwd=tmp_path, env=clean_environment()
    )
    try:
        eventually(
            lambda: {n.id for n in by_hand.meta.nodes(deadline()) if n.alive} - before, "it has registered"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        for node in {n.id for n in by_hand.meta.nodes(deadline())} - before:
            assert run(by_hand, "forget", str(node)).code == 0


def deadline() -> Deadline:
    return Deadline(60)
