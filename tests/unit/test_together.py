"""What several processes say of themselves, read and added up by one of them."""

from __future__ import annotations

import os

import pytest

from distfs.process import notice_board
from distfs.process.notice_board import NoticeBoard
from distfs.together import merged


def test_each_reads_what_the_others_said_last() -> None:
    board = NoticeBoard(3)
    assert board.read() == {}
    board.post(0, b"a long word")
    board.post(2, b"other")
    board.post(0, b"short")
    assert board.read() == {0: b"short", 2: b"other"}
    board.clear(0)
    assert board.read() == {2: b"other"}


def test_what_another_process_says_is_read_here() -> None:
    board = NoticeBoard(2)
    if not (pid := os.fork()):
        try:
            board.post(1, b"from elsewhere")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert board.read() == {1: b"from elsewhere"}


def test_what_is_half_written_is_not_read_and_what_is_too_long_not_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = NoticeBoard(1)
    board.post(0, b"before")
    board._map[notice_board._HEAD.size] += 1
    assert board.read() == {}
    board.post(0, b"before")
    board.post(0, bytes(notice_board.MOST))
    assert board.read() == {}


def test_what_processes_say_is_added_up() -> None:
    def one(**more: object) -> dict[str, object]:
        return {
            "memory": {"limit": 100, "blocks": 3},
            "uploads": {"large_uploads": 5, "declared_bytes": 50, "reservations": 2},
            "uploads_by_rule": {"gold": 5},
            "nodes": {
                "nodes": {
                    "1": {"address": "a", "connections": {"lent": 1}, "breaker": "closed", "latency_ms": 2.0}
                },
                "list": {"age_s": None, "refused": False},
            },
            **more,
        }

    other = {
        "1": {"address": "a", "connections": {"lent": 4}, "breaker": "open", "latency_ms": 1.0},
        "2": {"address": "b", "connections": {"lent": 9}, "breaker": "closed", "latency_ms": 3.0},
    }
    assert merged([one(), one(nodes={"nodes": other, "list": {"age_s": 0.5, "refused": True}}), one()]) == {
        "memory": {"limit": 300, "blocks": 9},
        "uploads": {"large_uploads": 5, "declared_bytes": 50, "reservations": 6},
        "uploads_by_rule": {"gold": 5},
        "nodes": {
            "nodes": {
                "1": {"address": "a", "connections": {"lent": 6}, "breaker": "open", "latency_ms": 2.0},
                "2": other["2"],
            },
            "list": {"age_s": 0.5, "refused": True},
        },
    }
