"""What an upload is told for which there is no room: figures that add up, and a remedy that works."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distfs.limits.db import AdmissionState, TrashRoom
from distfs.limits.refusal import NoRoom, Wish, largest, refusal
from distfs.limits.room import FRAGMENT_OVERHEAD, Disk
from distfs.model import Policy
from distfs.quantity import exactly

MIB, GIB = 1 << 20, 1 << 30
TWO = Policy(1, 1)


def wish(size: int, *, small: int = 0, margin: int = 0) -> Wish:
    return Wish(size, TWO, 2, 4 * MIB, small, margin)


def state(
    *free: int, demands: dict[int, int] | None = None, running: int = 0, runs: int = 0
) -> AdmissionState:
    return AdmissionState(1, tuple(map(Disk, free)), len(free), len(free), demands or {}, running, runs)


def said(state: AdmissionState, wish: Wish) -> str:
    return str(refusal(NoRoom(state, wish), TrashRoom(), gives_way=True, settles_after=0))


def test_what_fits_is_what_is_admitted_to_the_byte() -> None:
    now = state(10 * MIB, 10 * MIB)
    assert largest(now, wish(1)) == 10 * MIB - 3 * FRAGMENT_OVERHEAD
    assert largest(now, wish(1, margin=MIB)) == 9 * MIB - 3 * FRAGMENT_OVERHEAD
    assert largest(state(MIB // 2, MIB // 2), wish(1, margin=MIB)) == 0


def test_a_small_file_is_told_of_the_margin_and_of_nobody_who_runs() -> None:
    """It is smaller than what is free: the margin is why, and nothing is promised to anybody."""
    text = said(state(MIB + 5000, MIB + 5000), wish(1, margin=MIB))
    assert text.startswith("no room for 1 byte as 1+1: at most 0 bytes fit now; ")
    assert (
        "2.0 MiB free above their reserve, of which 2.0 MiB kept as a margin for small files that come to other"
        in text
    )
    assert "under way" not in text
    assert "reports" not in text
    assert text.endswith("; delete files, or add storage nodes")


def test_what_was_written_a_moment_ago_is_not_promised_to_uploads_that_run() -> None:
    text = said(state(10 * MIB, 10 * MIB, demands={2: 9 * MIB}), wish(5 * MIB))
    assert "of which 18.0 MiB written a moment ago and not in the nodes' reports yet; try again soon" in text
    assert "under way" not in text


def test_what_others_have_of_it_is_never_more_than_there_is() -> None:
    """What was written shows in some nodes' reports and not in others: it counts twice, and is told once."""
    text = said(state(10 * MIB, 10 * MIB, demands={2: 16 * MIB}), wish(MIB, margin=MIB))
    assert "the nodes have 20.0 MiB free above their reserve, of which 20.0 MiB written a moment ago" in text
    assert "margin" not in text


@pytest.mark.parametrize(
    ("full", "words"),
    [
        ((), ""),
        (((GIB, GIB - 10 * MIB),), ""),  # the reserve of a disk that MetaDB is on, too
        (((GIB, GIB - 200 * MIB),), ""),  # with what ext4 keeps for root
        (((GIB, 0),), "; 1 disk with 1.0 GiB free beside: no inodes are left there for new files"),
        (((100 * GIB, 30 * GIB), (100 * GIB, 99 * GIB)), "; 1 disk with 70.0 GiB free beside"),
        (((100 * GIB, 30 * GIB), (100 * GIB, 40 * GIB)), "; 2 disks with 130.0 GiB free beside"),
    ],
)
def test_disks_that_take_nothing_for_another_reason_than_bytes_are_named(
    full: tuple[tuple[int, int], ...], words: str
) -> None:
    text = said(replace(state(0, 0), full=full), wish(1))
    assert words in text
    assert ("inodes" in text) == bool(words)
    assert text.endswith("; delete files, or add storage nodes")


def test_what_is_missing_is_counted_with_margins_and_overheads() -> None:
    now = state(MIB // 2, MIB // 2)
    assert NoRoom(now, wish(1000, margin=MIB)).missing == 2 * (MIB // 2 + FRAGMENT_OVERHEAD + 1000)
    assert NoRoom(now, wish(5 * MIB)).missing == 2 * (4 * MIB + MIB // 2 + 2 * FRAGMENT_OVERHEAD)


def test_what_is_promised_names_how_many_and_how_much_and_passes_soon() -> None:
    now = state(10 * MIB, 10 * MIB, demands={2: 9 * MIB}, running=2, runs=16 * MIB)
    error = refusal(NoRoom(now, wish(5 * MIB)), TrashRoom(), gives_way=True, settles_after=0)
    assert "16.0 MiB promised to 2 uploads under way, 2.0 MiB written a moment ago" in str(error)
    assert str(error).endswith("try again soon")
    assert error.retry_after
    assert not refusal(NoRoom(now, wish(50 * MIB)), TrashRoom(), gives_way=True, settles_after=0).retry_after


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2592000, "30d"),
        (7200, "2h"),
        (600, "10min"),
        (90, "90s"),
        (0.5, "0.5s"),
        (0, "0s"),
        (2592001, "2592001s"),
    ],
)
def test_a_time_is_told_as_it_is_configured(seconds: float, text: str) -> None:
    assert exactly(seconds) == text


def test_figures_that_would_read_the_same_are_told_to_the_byte() -> None:
    free = 10 * MIB
    most = largest(state(free, free), wish(1))
    assert f"no room for {most + 1:,} bytes as 1+1: at most {most:,} bytes fit now" in said(
        state(free, free), wish(most + 1)
    )


@pytest.mark.parametrize(
    ("trash", "gives_way", "settles", "words", "again"),
    [
        (TrashRoom(), True, 0, "delete files, or add storage nodes", None),
        (TrashRoom(), False, 0, "delete files and run `distfs trash empty`, or add storage nodes", None),
        (
            TrashRoom(80 * MIB),
            False,
            0,
            "80.0 MiB: `distfs trash empty` frees them; or add storage",
            None,
        ),
        (
            TrashRoom(8 * MIB),
            True,
            0,
            "the 8.0 MiB in the trash are too few: delete files, or add",
            None,
        ),
        (
            TrashRoom(80 * MIB, 40 * MIB),
            True,
            0,
            "40.0 MiB of the trash are being erased to make room: try again so",
            5,
        ),
        (TrashRoom(80 * MIB, 40 * MIB), True, 60, "are being erased to make room: try again in a minute", 65),
    ],
)
def test_the_remedy_is_what_would_help_now(
    trash: TrashRoom, gives_way: bool, settles: float, words: str, again: int | None
) -> None:
    error = refusal(
        NoRoom(state(MIB, MIB), wish(20 * MIB)), trash, gives_way=gives_way, settles_after=settles
    )
    assert words in str(error)
    assert error.retry_after == again
