"""Compression of blocks: what is worth it, and what a frame that lies, or a bomb, can do: nothing."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from distfs.commands.doctor import _configured
from distfs.config import file
from distfs.config.settings import Config, StorageConfig
from distfs.errors import ConfigError, Corrupt
from distfs.formats import compression
from distfs.formats.coding import code_for
from distfs.formats.compression import LEAST, Packer, packer, required, unpack
from distfs.http_app import create_app
from distfs.local.machine import Level
from distfs.model import Compression, Policy
from distfs.process.idle import Idle
from tests.contract.samples import random_bytes

MIB = 1 << 20
TEXT = b"".join(b"line %d of a log, as there are many: %d\n" % (n, n * n) for n in range(40_000))[:MIB]
NOISE = random_bytes(MIB)


def all_idle() -> float:
    return 1.0


def a_packer(mode: str = "auto", level: int = 1, spare: Callable[[], float] = all_idle) -> Packer:
    made = packer(Compression(mode, level), 0.1, spare)
    assert made is not None
    return made


def test_a_block_comes_back_from_its_frame() -> None:
    frame = a_packer().pack(memoryview(TEXT))
    assert frame is not None
    assert len(frame) < MIB / 3
    assert unpack(frame, MIB) == TEXT


def test_what_saves_too_little_is_left_as_it_is() -> None:
    assert a_packer("zstd").pack(memoryview(NOISE)) is None
    assert a_packer("zstd").pack(memoryview(NOISE[: int(MIB * 0.95)] + bytes(MIB // 20))) is None


def test_auto_looks_and_zstd_tries_each() -> None:
    assert a_packer("auto").worth(memoryview(TEXT))
    assert not a_packer("auto").worth(memoryview(NOISE))
    assert a_packer("zstd").worth(memoryview(NOISE))
    assert not a_packer("zstd").worth(memoryview(TEXT)[: LEAST - 1])
    assert packer(Compression("off"), 0.1, all_idle) is None


def test_where_nobody_has_a_processor_to_spare_only_what_is_asked_for_is_compressed() -> None:
    spare = 1.0
    made = a_packer("auto", spare=lambda: spare)
    assert made.worth(memoryview(TEXT))
    spare = 0.1
    assert not made.worth(memoryview(TEXT))
    assert a_packer("zstd", spare=lambda: spare).worth(memoryview(TEXT))
    spare = 0.9
    assert made.worth(memoryview(TEXT))


def test_how_idle_the_processors_are_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, now = tmp_path / "stat", 1000.0
    monkeypatch.setattr("distfs.process.idle._PATH", str(stat))
    monkeypatch.setattr("distfs.process.idle.time.monotonic", lambda: now)
    idle = Idle()
    assert idle.share() == 1.0, "nobody can tell"
    stat.write_text("cpu  100 0 100 1000 50 0 0 0 0 0\ncpu0 1 2 3\n")
    now += 1
    idle.share()
    stat.write_text("cpu  160 0 120 1015 55 0 0 0 0 0\n")
    now += 0.05
    before = idle.share()
    now += 0.06
    assert idle.share() == 0.2 != before
    stat.write_text("cpu  260 0 220 1015 55 0 0 0 0 0\n")
    now += 1
    assert idle.share() == 0.0
    now += 10
    assert idle.share() == 1.0, "it says nothing of now"


def test_what_is_compressed_already_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    real = required()

    class Counted:
        def compress(self, data: bytes, level: int) -> bytes:
            nonlocal looks
            looks += 1
            return real.compress(data, level)

    made = a_packer()
    monkeypatch.setattr(made, "_zstd", Counted())
    block = memoryview(NOISE)
    assert not any(made.worth(block) for _ in range(1000))
    assert 1000 / 33 <= looks < 50
    assert any(made.worth(memoryview(TEXT)) for _ in range(34)), "one of them is looked at"
    looks = 0
    assert all(made.worth(memoryview(TEXT)) for _ in range(10))
    assert looks == 10


@pytest.mark.parametrize("policy", [Policy(1, 1), Policy(2, 1), Policy(3, 2), Policy(4, 2), Policy(8, 3)])
def test_what_is_coded_of_a_frame_gives_the_frame_again(policy: Policy) -> None:
    code = code_for(policy)
    for length in (1, 2, 63, 64, 65, 1000, 4093, 70_001):
        frame = random_bytes(length, length)
        coded = memoryview(code.wrapped(frame))
        cells = [bytes(cell) for cell in code.encode(coded)]
        [size] = {len(cell) for cell in cells}
        assert code.cell_size(len(coded)) == size
        assert code.coded(size) == len(coded)
        out = memoryview(bytearray(len(coded)))
        received = {index: memoryview(cells[index]) for index in range(policy.m, policy.width)}
        for index, cell in received.items():
            view = code.landing(index, out)
            if view is not None:
                view[:] = cell
        assert code.unwrapped(code.decode(received, out)) == frame


@pytest.mark.parametrize("length", [0, 2**31, 61])
def test_a_length_that_lies_is_damage(length: int) -> None:
    with pytest.raises(Corrupt, match="wrong length"):
        code_for(Policy(2, 1)).unwrapped(memoryview(struct.pack("<I", length) + bytes(60)))


def test_a_bomb_is_known_by_what_its_frame_says() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
    assert len(bomb) < 8 << 10
    with pytest.raises(Corrupt, match="says it has 67108864 bytes, 1048576 expected"):
        unpack(bomb, MIB)


def test_a_bomb_that_lies_about_it_makes_no_more_than_was_said() -> None:
    lying = bytearray(zstandard.ZstdCompressor().compress(bytes(65_000)))  # two bytes say how long it is
    assert lying[5:7] == (65_000 - 256).to_bytes(2, "little")
    lying[5:7] = (300 - 256).to_bytes(2, "little")
    assert zstandard.get_frame_parameters(bytes(lying)).content_size == 300
    with pytest.raises(Corrupt):
        unpack(bytes(lying), 300)


def test_a_frame_that_does_not_say_how_long_it_is_is_refused() -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    frame = stream.compress(TEXT) + stream.flush()
    with pytest.raises(Corrupt, match="says it has -1 bytes"):
        unpack(frame, MIB)


def test_a_frame_that_needs_a_dictionary_is_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        b"a sample with the number %d of some" % n + random_bytes(20, n) for n in range(2000)
    ]
    dictionary = zstandard.train_dictionary(4096, samples)
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(samples[0])
    with pytest.raises(Corrupt, match="dictionary"):
        unpack(frame, len(samples[0]))


def test_whatever_is_no_frame_is_damage_and_nothing_else() -> None:
    frame = a_packer().pack(memoryview(TEXT))
    assert frame is not None
    chance = random.Random(1)
    for wrong in (
        b"",
        frame[:-1],
        frame + b"x",
        frame + frame,
        b"\x50\x2a\x4d\x18" + struct.pack("<I", MIB),
        zlib.compress(TEXT),
    ):
        with pytest.raises(Corrupt):
            unpack(wrong, MIB)
    for _ in range(300):
        hurt = bytearray(frame)
        hurt[chance.randrange(len(hurt))] ^= 1 << chance.randrange(8)
        try:
            assert len(unpack(hurt[: chance.choice((len(hurt), chance.randrange(len(hurt))))], MIB)) == MIB
        except Corrupt:
            pass


def test_without_zstd_auto_is_off_and_zstd_is_a_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    compression.library.cache_clear()
    try:
        assert packer(Compression("auto"), 0.1, all_idle) is None
        with pytest.raises(
            ConfigError, match=r"^compressed blocks need zstd: pip install 'distfs\[compression\]'$"
        ):
            packer(Compression("zstd"), 0.1, all_idle)
        told = [f for f in _configured(Config()) if "compress" in f.what]
        assert [(f.level, f.remedy) for f in told] == [
            (Level.NOTE, "pip install 'distfs[compression]', or storage.compression: off")
        ]
        demanding = Config(storage=StorageConfig(policy_compression={"default": Compression("zstd")}))
        told = [f for f in _configured(demanding) if f.level is Level.BAD]
        assert [f.remedy for f in told] == ["pip install 'distfs[compression]'"]
        with pytest.raises(
            ConfigError, match=r"^storage.compression is zstd, which needs an extra: pip install"
        ):
            create_app(demanding)
        create_app(Config()).close()
    finally:
        compression.library.cache_clear()


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("auto", Compression()),
        ("off", Compression("off")),
        ("zstd", Compression("zstd")),
        ("zstd:9", Compression("zstd", 9)),
        ("auto:3", Compression("auto", 3)),
    ],
)
def test_the_configuration_says_how(said: str, means: Compression) -> None:
    config = file.parse(
        {
            "storage": {
                "compression": said,
                "policies": {"default": "1+1", "cold": "2+1"},
                "policy_compression": {"cold": "zstd:9"},
            }
        }
    )
    assert config.storage.compression == config.storage.compression_of("default") == means
    assert config.storage.compression_of("cold") == Compression("zstd", 9)
    assert Config().storage.compression == Compression()


@pytest.mark.parametrize("said", ["gzip", "zstd:0", "zstd:20", "off:1", "", "zstd:", "zstd:-1"])
def test_what_is_no_compression_is_refused(said: str) -> None:
    with pytest.raises(ConfigError, match="storage.compression"):
        file.parse({"storage": {"compression": said}})


def test_a_policy_that_is_not_there_has_no_compression_of_its_own() -> None:
    with pytest.raises(
        ConfigError, match="policy_compression names cold, which storage.policies does not have"
    ):
        file.parse({"storage": {"policy_compression": {"cold": "off"}}})
