"""A process that was forked is what it would be, had it been executed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cluster.harness import clean_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")

_BEGIN = """\
import atexit, os, signal, sys, threading
from distfs.process import forked

def fork(work, environ=None, keep=()):
    "-> the child, our end of its input, and of what it writes to both of its outputs"
    (stdin, give), (take, out) = os.pipe(), os.pipe()
    shown = forked.Shown("a part's name, too long", ["python", "-m", "what it is", *"x" * 9999])
    child = forked.fork(work, (stdin, out, out), os.environ if environ is None else environ, keep, shown)
    os.close(stdin)
    os.close(out)
    return child, give, take

def all_of(take):
    with os.fdopen(take) as stream:
        return stream.read()
"""


def run(script: str, **how: object) -> str:
    """What a Python of its own, of one thread, says when it runs ``script``."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + textwrap.dedent(script)],
        env=clean_environment(TOLD="before"),
        capture_output=True,
        text=True,
        timeout=60,
        **how,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_it_ends_with_the_code_that_its_work_gives_and_nothing_of_its_parent_goes_on_in_it() -> None:
    said = run(
        """
        atexit.register(print, "the end of", os.getpid())
        try:
            child, give, take = fork(lambda: print("worked") or 7)
        finally:
            print("once", os.getpid())
        assert child.poll() in (None, 7)
        child.wait()
        print(child.poll(), all_of(take).split(), os.getpid())
        """
    )
    once, told, end = said.splitlines()
    pid = once.split()[1]
    assert (once, told, end) == (f"once {pid}", f"7 ['worked'] {pid}", f"the end of {pid}")


@pytest.mark.parametrize(
    ("work", "code", "last"),
    [
        ("1 / 0", 70, "ZeroDivisionError: division by zero"),
        ("sys.exit(3)", 70, "SystemExit: 3"),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("sys.stderr.write('half a line') and 0", 0, "half a line"),
    ],
)
def test_whatever_ends_it_is_told(work: str, code: int, last: str) -> None:
    said = run(
        f"child, give, take = fork(lambda: {work}); child.wait(); print(child.poll()); print(all_of(take))"
    )
    first, *rest = said.strip().splitlines()
    assert int(first) == code
    assert (rest or [""])[-1] == last


def test_it_has_the_descriptors_and_the_environment_that_it_is_given_and_no_others() -> None:
    said = run(
        """
        kept, unkept = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/full", os.O_RDONLY)
        def work():
            numbers = os.listdir("/proc/self/fd")
            there = [f"/proc/self/fd/{n}" for n in numbers if os.path.lexists(f"/proc/self/fd/{n}")]
            print(sorted({os.readlink(link) for link in there}))
            print(os.environ.get("TOLD"), os.getenv("GIVEN"), os.popen("echo $TOLD $GIVEN").read().strip())
            print(os.getsid(0) == os.getpid(), sys.stdin.read())
            return 0
        child, give, take = fork(work, {"GIVEN": "now", "PATH": os.environ["PATH"]}, [kept])
        os.close(give)
        print(all_of(take))
        """
    )
    links, environ, rest = said.strip().splitlines()
    assert "/dev/zero" in links
    assert "/dev/full" not in links
    assert links.count("pipe:") == 2  # standard input, and one for both outputs
    assert environ == "None now now"
    assert rest == "True"


def test_standard_streams_that_its_parent_has_not_are_its_own() -> None:
    said = run(
        """
        where = os.dup(1)
        for number in range(3):
            os.close(number)
            os.open(os.devnull, os.O_RDWR)
        sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None
        child, give, take = fork(lambda: sys.stdout.write(sys.stdin.read()) and print("!", file=sys.stderr) or 0)
        os.write(give, b"through")
        os.close(give)
        os.write(where, all_of(take).encode())
        """
    )
    assert sorted(said) == sorted("through!\n")


def test_signals_are_as_for_an_executed_one() -> None:
    said = run(
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda *_: print("the parent's"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        def work():
            print([signal.getsignal(n).__repr__() for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)])
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
            print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            return 0
        child, give, take = fork(work)
        print(all_of(take), signal.pthread_sigmask(signal.SIG_BLOCK, []))
        """
    )
    handlers, interrupt, blocked, ours = said.splitlines()
    assert handlers == str([repr(signal.SIG_DFL), repr(signal.SIG_DFL), repr(signal.SIG_IGN)])
    assert (interrupt, blocked, ours) == ("True", "set()", " set()")


def test_a_signal_that_comes_before_it_can_be_heeded_ends_it() -> None:
    said = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: print("nobody hears of it"))
        fork_itself = os.fork
        def fork_and_hit():
            pid = fork_itself()
            if pid:
                os.kill(pid, signal.SIGTERM)
            else:  # it has come, and waits
                while signal.SIGTERM not in signal.sigpending():
                    pass
            return pid
        os.fork = fork_and_hit
        child, give, take = fork(lambda: print("runs") or 0)
        child.wait()
        print(child.poll(), all_of(take))
        """
    )
    assert said.split() == ["-15"]


def test_ps_and_top_show_what_it_is() -> None:
    said = run(
        """
        child, give, take = fork(lambda: print("there", flush=True) or len(sys.stdin.read()))
        while not os.read(take, 99): pass
        print(open(f"/proc/{child.pid}/comm").read().strip())
        print(open(f"/proc/{child.pid}/cmdline").read().strip(chr(0)))
        print(open("/proc/self/cmdline").read().split(chr(0))[1])
        os.close(give)
        child.wait()
        """
    )
    name, words, ours, *_ = said.splitlines()
    assert name == "a part's name,"  # as much as fits
    assert words.startswith("python -m what it is x x x x x")
    assert set(words.removeprefix("python -m what it is")) == {" ", "x"}
    assert ours == "-c"


def test_a_process_with_another_thread_does_not_fork() -> None:
    said = run(
        """
        print(forked.may_fork())
        end = threading.Event()
        thread = threading.Thread(target=end.wait)
        thread.start()
        print(forked.may_fork())
        end.set()
        thread.join()
        print(forked.may_fork())
        """
    )
    first, second, _ = said.split()  # the system may need a moment to forget the last one
    assert (first, second) == ("True", "False")


def test_where_nobody_is_told_of_ended_children_it_has_ended_all_the_same() -> None:
    said = run(
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        child, give, take = fork(lambda: 0)
        child.wait()
        print(child.poll())
        """
    )
    assert said.split() == ["1"]


def test_nothing_that_is_not_written_yet_is_written_twice(tmp_path: Path) -> None:
    said = run(
        """
        sys.stdout.write("once")  # to no terminal: it stays in Python
        child, give, take = fork(lambda: 0)
        child.wait()
        """
    )
    assert said == "once"


def test_what_a_child_needs_is_read_before_the_first_is_started() -> None:
    said = run(
        """
        from distfs.local.outputs import Reader
        from distfs.local.supervisor import Child, Program
        happened = []
        def program(name):
            def read(flags, environ):
                happened.append(f"{name} {flags} read by {os.getpid() == up}")
                return lambda: 0
            return Program(name, lambda flags: 9, read)
        up = os.getpid()
        children = [Child(name, program(name), ["1"], dict(os.environ), Reader()) for name in "ab"]
        for child in children:
            child.prepare()
        print(happened)
        for child in children:
            child.start()
            child._process.wait()
        print(happened, [child._process.returncode for child in children])
        children[0].flags[:] = ["2"]
        children[0].start()
        children[0]._process.wait()
        print(happened[2:])
        """
    ).splitlines()
    first = repr([f"{name} ['1'] read by True" for name in "ab"])
    assert said == [first, f"{first} [0, 0]", repr(["a ['2'] read by True"])], "anew for its next start"
