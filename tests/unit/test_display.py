"""How commands speak to people."""

from __future__ import annotations

import io
import sys

import pytest

from distfs.commands.display import Progress, counted, duration, size, table


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10 * 2**40, "10.0 TiB"),
        (5000 * 2**50, "5000.0 PiB"),
    ],
)
def test_sizes_have_the_unit_that_keeps_them_short(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (172800, "2.0 d")],
)
def test_times_have_the_unit_that_keeps_them_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_agree_with_their_noun() -> None:
    assert (counted(0, "slice"), counted(1, "slice"), counted(1200, "slice")) == (
        "0 slices",
        "1 slice",
        "1,200 slices",
    )


def test_a_table_is_aligned_and_figures_stand_to_the_right() -> None:
    assert table(("ID", "NAME", "FREE"), [("7", "a", "1 KiB"), ("12", "longer", "20 KiB")]).splitlines() == [
        "ID  NAME      FREE",
        " 7  a        1 KiB",
        "12  longer  20 KiB",
    ]
    assert table(("ID", "NAME"), []) == "ID  NAME"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_and_leaves_it_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("draining node 3")
    progress.show(1, 4)
    progress.show(4, 4)
    progress.end()
    lines = terminal.getvalue().split("\r\x1b[K")
    assert lines[1] == "draining node 3 [######..................]  25%  1 of 4"
    assert lines[2] == "draining node 3 [########################] 100%  4 of 4"
    assert lines[3:] == [""]


def test_progress_says_nothing_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = Progress("draining node 3")
    progress.show(1, 4)
    progress.end()
    assert sys.stderr.getvalue() == ""  # type: ignore[union-attr]
