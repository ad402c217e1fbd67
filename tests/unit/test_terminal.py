"""Telling a terminal that is gone from a request to read the configuration anew: both are SIGHUP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileges import do_without

ROOT = Path(__file__).resolve().parents[2]

#: Takes its standard input, if that is one, as its controlling terminal; says at each SIGHUP what it thinks of it.
_CHILD = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from distfs.process.terminal import Terminal
terminal = Terminal()
def say(*_):
    os.write(1, b"hung up\\n" if terminal.hung_up else b"reload\\n")
signal.signal(signal.SIGHUP, say)
os.write(1, b"begun\\n")
while True:
    signal.pause()
"""


@pytest.fixture
def terminal() -> Iterator[list[int]]:
    """[master, slave]; remove what you close."""
    try:
        ends = list(os.openpty())
    except OSError as e:  # a root without /dev/pts
        do_without(f"a terminal of one's own: {e.strerror}")
    yield ends
    for end in ends:
        os.close(end)


def child(stdin: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=stdin,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        text=True,
    )


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def test_a_terminal_that_closes_is_told_from_a_signal_that_is_sent(terminal: list[int]) -> None:
    with child(terminal[1]) as process:
        try:
            assert says(process) == "begun"
            process.send_signal(signal.SIGHUP)
            assert says(process) == "reload"
            os.close(terminal.pop())
            os.close(terminal.pop())
            assert says(process) == "hung up"
        finally:
            process.kill()


def test_without_a_terminal_sighup_is_always_a_request() -> None:
    with child(subprocess.DEVNULL) as process:
        try:
            assert says(process) == "begun"
            process.send_signal(signal.SIGHUP)
            assert says(process) == "reload"
        finally:
            process.kill()
