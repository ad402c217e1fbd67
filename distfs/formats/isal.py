"""ISA-L itself, as the library of codes brings it: parity of cells where they lie, no copy, no interpreter lock.

That library (liberasurecode, by pyeclib) computes the same bytes with the same code, but copies the block there and
all cells back, which takes fifty times as long as the code, and lets nobody else run meanwhile.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from distfs.model import Buffer

_TABLE = 32  # bytes of ISA-L's tables for each pair of a data cell and a parity cell


@cache
def library() -> ctypes.CDLL | None:
    """ISA-L of pyeclib's wheel, or the system's; None: neither is there, or it is another one than we know."""
    spec = find_spec("pyeclib")
    wheel = Path(spec.origin).parent.with_name("pyeclib.libs") if spec and spec.origin else Path()
    for name in [*map(str, sorted(wheel.glob("libisal*.so*"))), ctypes.util.find_library("isal")]:
        try:
            found = ctypes.CDLL(name) if name else None
            if found and all(
                hasattr(found, each) for each in ("gf_gen_cauchy1_matrix", "ec_init_tables", "ec_encode_data")
            ):
                return found
        except OSError:
            continue
    return None


class Parity:
    """The m parity cells of k data cells, by the Cauchy matrix that liberasurecode's ``isa_l_rs_cauchy`` has.
    Thread-safe."""

    def __init__(self, isal: ctypes.CDLL, k: int, m: int) -> None:
        self._isal, self._k, self._m = isal, k, m
        matrix = ctypes.create_string_buffer((k + m) * k)
        self._tables = ctypes.create_string_buffer(_TABLE * k * m)
        isal.gf_gen_cauchy1_matrix(matrix, k + m, k)
        isal.ec_init_tables(k, m, ctypes.byref(matrix, k * k), self._tables)

    def of(self, cells: Sequence[Buffer], size: int) -> list[bytearray]:
        """``cells``: writable, of ``size`` bytes each; they are only read."""
        parity = [bytearray(size) for _ in range(self._m)]
        data, coding = _addresses(cells), _addresses(parity)
        self._isal.ec_encode_data(size, self._k, self._m, self._tables, *map(_pointers, (data, coding)))
        return parity


def _addresses(buffers: Sequence[Buffer]) -> list[ctypes.c_char]:
    """As long as these live, the buffers stay where they are."""
    return [ctypes.c_char.from_buffer(buffer) for buffer in buffers]


def _pointers(places: Sequence[ctypes.c_char]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(places))(*map(ctypes.addressof, places))
