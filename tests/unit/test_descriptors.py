"""What is said when descriptors run out, and how often."""

from __future__ import annotations

import errno
import logging

import pytest

from distfs.process.descriptors import AcceptTrouble, in_words, used_up

LOG = logging.getLogger("distfs.test")


def test_trouble_with_accepting_is_said_once_until_it_has_long_been_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    trouble = AcceptTrouble(LOG, lambda: now)
    for _ in range(1000):
        assert trouble.pauses(OSError(errno.EMFILE, "Too many open files"))
        now += 0.5
    assert len(caplog.records) == 1
    now += 100
    assert trouble.pauses(OSError(errno.ENFILE, "Too many open files in system"))
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_a_client_that_has_gone_before_it_was_accepted_is_no_trouble(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not AcceptTrouble(LOG).pauses(OSError(errno.ECONNABORTED, "aborted"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("number", "used", "remedy"),
    [
        (errno.EMFILE, True, "LimitNOFILE"),
        (errno.ENFILE, True, "fs.file-max"),
        (errno.EIO, False, "what it is"),
    ],
)
def test_descriptors_that_are_used_up_are_named_with_the_remedy(number: int, used: bool, remedy: str) -> None:
    error = OSError(number, "what it is")
    assert used_up(error) is used
    assert remedy in in_words(error)
