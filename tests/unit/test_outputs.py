"""What children write is read line by line, whoever holds their pipes."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from distfs.local.outputs import Reader


class Pipe:
    """A child's output."""

    def __init__(self, reader: Reader) -> None:
        self.told: list[list[str]] = []
        reading, self.end = os.pipe()
        self.output = reader.add(reading, self.told.append)

    def write(self, text: bytes) -> None:
        os.write(self.end, text)

    def close(self) -> None:
        os.close(self.end)

    @property
    def lines(self) -> list[str]:
        return [line for lines in self.told for line in lines]


def test_lines_that_come_together_are_told_together_and_the_rest_when_it_ends() -> None:
    reader = Reader()
    pipe = Pipe(reader)
    pipe.write(b"one\ntwo \r\nthr")
    reader.listen(10)
    assert pipe.told == [["one", "two"]]
    pipe.write(b"ee\n\xff")
    reader.listen(10)
    pipe.close()
    reader.listen(10)
    assert pipe.told == [["one", "two"], ["three"], ["\ufffd"]]
    reader.finish(pipe.output)
    assert len(pipe.told) == 3


def test_what_is_left_is_read_though_another_process_holds_the_pipe() -> None:
    reader = Reader()
    pipe = Pipe(reader)
    with os.fdopen(os.dup(pipe.end), "wb"):
        pipe.write(b"line\n" * 20000 + b"rest")
        pipe.close()
        reader.finish(pipe.output)
    assert pipe.lines == ["line"] * 20000 + ["rest"]


def test_whoever_writes_on_for_ever_holds_nobody_up() -> None:
    reader = Reader()
    pipe = Pipe(reader)

    def write() -> None:
        try:
            while True:
                pipe.write(b"and on\n" * 9000)
        except BrokenPipeError:
            pipe.close()

    writer = threading.Thread(target=write)
    writer.start()
    reader.listen(10)
    reader.finish(pipe.output)
    writer.join()
    assert "and on" in pipe.lines


def test_a_line_without_an_end_is_told_in_pieces() -> None:
    reader = Reader()
    pipe = Pipe(reader)

    def write() -> None:
        pipe.write(b"x" * 3_000_000)
        pipe.close()

    writer = threading.Thread(target=write)
    writer.start()
    while pipe.output.pipe >= 0:
        reader.listen(10)
    writer.join()
    assert "".join(pipe.lines) == "x" * 3_000_000
    assert max(map(len, pipe.lines)) <= (1 << 20) + (64 << 10)


def test_an_ended_output_whose_number_is_anothers_now_ends_nobody() -> None:
    reader = Reader()
    first = Pipe(reader)
    number = first.output.pipe
    first.close()
    reader.listen(10)
    second = Pipe(reader)
    assert number in (second.output.pipe, second.end)
    reader.finish(first.output)
    second.write(b"goes on\n")
    reader.listen(10)
    assert second.lines == ["goes on"]


@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="Linux")
def test_a_pipe_holds_what_comes_while_nobody_reads() -> None:
    reader = Reader()
    pipe = Pipe(reader)
    pipe.write(b"y" * ((1 << 20) - 1) + b"\n")
    while not pipe.told:
        reader.pause(0.01)
    assert len("".join(pipe.lines)) == (1 << 20) - 1
