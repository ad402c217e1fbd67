"""Codes: any k of k+m cells give the block back, for every policy there is."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distfs.formats import coding
from distfs.formats.coding import Code, ReedSolomon, code_for
from distfs.formats.isal import library
from distfs.model import MAX_K, MAX_M, Policy
from tests.contract.samples import random_bytes

POLICIES = [Policy(k, m) for k in range(1, MAX_K + 1) for m in range(MAX_M + 1)]


def receive(code: Code, cells: list[bytes], indexes: tuple[int, ...], out: memoryview) -> memoryview:
    """The block from some of its cells, received where a reader would."""
    places = {}
    for index in indexes:
        landing = code.landing(index, out)
        place = memoryview(bytearray(code.cell_size(len(out)))) if landing is None else landing
        place[:] = cells[index]
        places[index] = place
    return code.decode(places, out)


def check(code: Code, block: bytes, choices: list[tuple[int, ...]]) -> None:
    cells = [bytes(cell) for cell in code.encode(memoryview(block))]  # by the library: it is not writable
    assert [bytes(cell) for cell in code.encode(memoryview(bytearray(block)))] == cells  # by ISA-L
    assert len(cells) == code.policy.width
    assert {len(cell) for cell in cells} == {code.cell_size(len(block))}
    for indexes in choices:
        buffer = bytearray(b"\xaa" * (len(block) + 64))  # a reader's buffer may be longer than the block
        out = memoryview(buffer)[: len(block)]
        assert receive(code, cells, indexes, out) == block, indexes
        assert buffer[len(block) :] == b"\xaa" * 64, "nothing is written beside the block"


def choices(policy: Policy, most: int, seed: int = 1) -> list[tuple[int, ...]]:
    every = list(itertools.combinations(range(policy.width), policy.k))
    return every if len(every) <= most else Random(seed).sample(every, most)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_any_k_cells_give_the_block_back(policy: Policy) -> None:
    code = code_for(policy)
    for size in (1, 7, 4096):
        check(code, random_bytes(size), choices(policy, 12))


@pytest.mark.parametrize("policy", [Policy(1, 2), Policy(2, 1), Policy(3, 2), Policy(4, 2)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 15, 16, 17, 63, 64, 65, 127, 4095, 4096, 4097, 65_537, 1 << 20])
def test_blocks_of_every_length_come_back(policy: Policy, size: int) -> None:
    check(code_for(policy), random_bytes(size, size), choices(policy, 15 if size < 1 << 20 else 4))


@settings(max_examples=60)
@given(st.sampled_from(POLICIES), st.binary(min_size=1, max_size=3000), st.integers(0, 1000))
def test_any_block_comes_back(policy: Policy, block: bytes, seed: int) -> None:
    check(code_for(policy), block, choices(policy, 3, seed))


@pytest.mark.parametrize("policy", [p for p in POLICIES if p.k > 1], ids=str)
def test_a_coded_cell_is_not_much_more_than_its_share(policy: Policy) -> None:
    code = code_for(policy)
    for size in (4096, 65_536, 1 << 20, 32 << 20):
        assert size / policy.k <= code.cell_size(size) <= size / policy.k + 64


def test_isa_l_is_found_and_lets_others_run() -> None:
    """Else coding takes fifty times as long and holds the interpreter lock: that must not get lost silently."""
    code = code_for(Policy(4, 2))
    assert isinstance(code, ReedSolomon)
    assert code._parity is not None
    code.cell_size(1 << 20)  # which the library says, once
    with code._lock:  # of the library, which is not asked any more
        code.encode(memoryview(bytearray(random_bytes(1 << 20))))


def test_without_isa_l_the_library_makes_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    block = memoryview(bytearray(random_bytes(100_001)))
    monkeypatch.setattr(coding, "library", lambda: None)
    without = ReedSolomon(Policy(4, 2))
    assert without._parity is None
    assert [bytes(cell) for cell in without.encode(block)] == [
        bytes(cell) for cell in code_for(Policy(4, 2)).encode(block)
    ]


def test_parity_that_the_library_would_not_make_is_never_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of an ISA-L that has another matrix: checksums would be right, and the block lost with its first cell."""
    isal = library()
    assert isal is not None

    class Another:
        def __getattr__(self, name: str) -> Any:
            return getattr(isal, {"gf_gen_cauchy1_matrix": "gf_gen_rs_matrix"}.get(name, name))

    monkeypatch.setattr(coding, "library", Another)
    code = ReedSolomon(Policy(4, 2))
    check(code, random_bytes(4096), choices(code.policy, 15))
    assert code._parity is None
    assert "4+2: ISA-L and liberasurecode make different parity" in caplog.text


def test_data_cells_are_the_block_itself() -> None:
    for policy in (Policy(1, 2), Policy(2, 1), Policy(4, 2)):
        block = random_bytes(4096)
        cells = code_for(policy).encode(memoryview(block))
        assert b"".join(bytes(cells[i]) for i in range(policy.k))[:4096] == block


def test_every_cell_differs_but_copies() -> None:
    for policy in (Policy(2, 2), Policy(4, 3)):
        cells = code_for(policy).encode(memoryview(random_bytes(4096)))
        assert len({bytes(c) for c in cells}) == policy.width


def test_one_code_serves_many_threads() -> None:
    code = code_for(Policy(4, 2))
    with ThreadPoolExecutor(8) as threads:

        def work(seed: int) -> None:
            check(code, random_bytes(1000 * seed + 1, seed), choices(code.policy, 5, seed))

        list(threads.map(work, range(40)))


def test_policies_without_parity_only_cut() -> None:
    code = code_for(Policy(3, 0))
    cells = code.encode(memoryview(b"abcdefghi" * 100))
    assert len(cells) == 3


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("length", [1, 7, 4096, 4097, 1 << 20])
def test_what_cells_take_beside_the_block_is_what_is_no_view_of_it(k: int, m: int, length: int) -> None:
    code = code_for(Policy(k, m))
    block = memoryview(bytearray(length))
    own = [
        cell for cell in code.encode(block) if not (isinstance(cell, memoryview) and cell.obj is block.obj)
    ]
    assert code.beside(length) == sum(map(len, own))
