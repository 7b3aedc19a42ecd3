"""Secrets and key schedules in generated dumps; the schedules are made here, apart from what finds them."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.emulator.memory import KeySchedule, aes256_schedules, aes_schedules, pages_with
from vambrace.errors import UsageError

PAGE = 4096
WHOLE = {128: 176, 192: 208, 256: 240}


def times(a: int, b: int) -> int:
    """Product in GF(2⁸) of AES."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def substituted(byte: int) -> int:
    """The S-box bit by bit, from the definition in FIPS 197, section 5.1.1."""
    inverse = next((other for other in range(256) if times(byte, other) == 1), 0)
    bits = [inverse >> i & 1 for i in range(8)]
    return sum(
        (bits[i] ^ bits[(i + 4) % 8] ^ bits[(i + 5) % 8] ^ bits[(i + 6) % 8] ^ bits[(i + 7) % 8] ^ 0x63 >> i & 1) << i
        for i in range(8)
    )


SBOX = [substituted(byte) for byte in range(256)]


def schedule(key: bytes) -> bytes:
    """The expanded key, in the byte order of FIPS 197."""
    n = len(key) // 4
    words = [list(key[i : i + 4]) for i in range(0, len(key), 4)]
    constant = 1
    for i in range(n, 4 * (n + 7)):
        word = list(words[-1])
        if i % n == 0:
            word = [SBOX[byte] for byte in [*word[1:], word[0]]]
            word[0] ^= constant
            constant = times(constant, 2)
        elif n == 8 and i % n == 4:
            word = [SBOX[byte] for byte in word]
        words.append([a ^ b for a, b in zip(words[-n], word, strict=True)])
    return bytes(byte for word in words for byte in word)


def reversed_words(data: bytes) -> bytes:
    return b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))


def dump_of(path: Path, size: int, pieces: dict[int, bytes], noise: bytes = b"") -> Path:
    memory = bytearray(size)
    memory[: len(noise)] = noise
    for offset, piece in pieces.items():
        memory[offset : offset + len(piece)] = piece
    dump = path / "memory.bin"
    dump.write_bytes(memory)
    return dump


# The generator of this file


def test_the_generated_schedules_are_real() -> None:
    """FIPS 197, appendix A, the last words of each example."""
    examples = {
        "2b7e151628aed2a6abf7158809cf4f3c": "b6630ca6",
        "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b": "01002202",
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4": "706c631e",
    }
    for key, last in examples.items():
        assert schedule(bytes.fromhex(key))[-4:].hex() == last


# Pages


def test_pages_are_counted_once_and_borders_for_both(tmp_path: Path) -> None:
    needle = b"canary-0123456789"
    pieces = {
        0: needle,
        100: needle,
        3 * PAGE - 5: needle,
        3 * PAGE + 200: needle,
        7 * PAGE - len(needle): needle,
    }
    dump = dump_of(tmp_path, 8 * PAGE, pieces)
    assert pages_with(dump, needle) == [0, 2, 3, 6]


def test_a_needle_over_the_reader_s_own_border_is_found(tmp_path: Path) -> None:
    needle = b"canary-0123456789"
    dump = dump_of(tmp_path, 3 << 20, {(1 << 20) - 3: needle, (2 << 20) - len(needle): needle, (3 << 20) - 17: needle})
    assert pages_with(dump, needle) == [255, 256, 511, 767]


def test_a_needle_longer_than_pages(tmp_path: Path) -> None:
    needle = random.Random(1).randbytes(2 * PAGE + 10)
    assert pages_with(dump_of(tmp_path, 2 << 20, {255 * PAGE + 4090: needle}), needle) == [255, 256, 257, 258]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pages_as_a_naive_search_finds_them(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also of overlapping occurrences."""
    needle = data.draw(st.sampled_from([b"a", b"aa", b"aba", b"ab" * 9]))
    offsets = data.draw(st.lists(st.integers(0, 4 * PAGE - 60), max_size=12))
    pieces = {offset: data.draw(st.sampled_from([needle, needle * 3, b"a" * 40])) for offset in offsets}
    dump = dump_of(tmp_path_factory.mktemp("dump"), 4 * PAGE, pieces)
    memory = dump.read_bytes()
    naive = {
        byte // PAGE
        for start in range(len(memory) - len(needle) + 1)
        if memory.startswith(needle, start)
        for byte in (start, start + len(needle) - 1)
    }
    assert pages_with(dump, needle) == sorted(naive)


# Key schedules


@pytest.mark.parametrize("bits", WHOLE)
@pytest.mark.parametrize("order", ["fips", "reversed"])
@pytest.mark.parametrize("background", ["zeros", "noise"])
def test_schedules_are_found_where_they_lie(tmp_path: Path, bits: int, order: str, background: str) -> None:
    generator = random.Random(bits)
    # Beginning, end, over the borders of pages, of the search's windows and of nothing in particular.
    offsets = [0, 1000, 4096 - 100, 16384 - 16, 32768 - 240, 65536 + 4, 100_000, (1 << 17) - WHOLE[bits]]
    pieces = {}
    for offset in offsets:
        expanded = schedule(generator.randbytes(bits // 8))
        pieces[offset] = expanded if order == "fips" else reversed_words(expanded)
    noise = generator.randbytes(1 << 17) if background == "noise" else b""
    dump = dump_of(tmp_path, 1 << 17, pieces, noise)
    assert aes_schedules(dump) == [KeySchedule(offset, WHOLE[bits], bits) for offset in sorted(offsets)]
    assert len(aes256_schedules(dump)) == (len(offsets) if bits == 256 else 0)


@settings(max_examples=80, deadline=None)
@given(
    key=st.sampled_from([16, 24, 32]).flatmap(
        lambda size: st.one_of(st.binary(min_size=size, max_size=size), st.just(bytes(size)))
    ),
    word=st.integers(0, 12_000),
    reverse=st.booleans(),
)
def test_every_key_is_found_everywhere(
    key: bytes, word: int, reverse: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expanded = reversed_words(schedule(key)) if reverse else schedule(key)
    dump = dump_of(tmp_path_factory.mktemp("dump"), 50_000, {word * 4: expanded})
    assert aes_schedules(dump) == [KeySchedule(word * 4, len(expanded), 8 * len(key))]


@pytest.mark.parametrize("kept", [64, 100, 160])
def test_a_schedule_cut_by_a_page_border_is_found_by_its_half(tmp_path: Path, kept: int) -> None:
    expanded = schedule(random.Random(2).randbytes(32))
    dump = dump_of(tmp_path, 4 * PAGE, {PAGE - kept: expanded[:kept], 3 * PAGE: expanded[kept:]})
    found = aes_schedules(dump)
    assert KeySchedule(PAGE - kept, kept, 256) in found
    rest = -kept % 32  # the second half is found from its first whole round on
    assert found[-1] == KeySchedule(3 * PAGE + rest, 240 - kept - rest, 256)


def test_one_changed_bit_is_no_schedule(tmp_path: Path) -> None:
    expanded = bytearray(schedule(random.Random(3).randbytes(16))[:64])
    expanded[33] ^= 1
    assert aes_schedules(dump_of(tmp_path, PAGE, {400: bytes(expanded)})) == []


def test_memory_without_keys_has_none(tmp_path: Path) -> None:
    patterns = [
        bytes(PAGE),
        b"\xff" * PAGE,
        bytes(range(256)) * 16,
        b"\0\0\0\1" * 1024,
        b"abcabcabcabc" * 341,
    ]
    counters = b"".join(i.to_bytes(4, "little") for i in range(4 * PAGE))
    pointers = b"".join((0xFFFF_8000_1234_0000 + 64 * (i // 3)).to_bytes(8, "little") for i in range(2 * PAGE))
    dump = dump_of(tmp_path, 1 << 20, {1 << 19: b"".join(patterns) + counters + pointers}, b"")
    assert aes_schedules(dump) == []


# What OpenSSL keeps lies wherever malloc put it: the heap, or any other mapping that is written and nobody else's.
_WITH_A_CIPHER = """
import sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

def dump(path):
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps]
    with open("/proc/self/mem", "rb", buffering=0) as memory, open(path, "wb") as out:
        for bounds, access, _, _, inode, *name in lines:
            if access != "rw-p" or inode != "0" or name[:1] in (["[vvar]"], ["[vvar_vclock]"]):
                continue
            position, end = (int(bound, 16) for bound in bounds.split("-"))
            memory.seek(position)
            while position < end and (block := memory.read(min(1 << 20, end - position))):
                position += out.write(block)

key = bytes.fromhex(sys.argv[1])
dump(sys.argv[2])
encryptor = Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()
encryptor.update(bytes(64))
dump(sys.argv[3])
encryptor.finalize()
"""


def test_libcrypto_s_own_schedule_is_found(tmp_path: Path) -> None:
    """What OpenSSL keeps in memory while a cipher is alive, found in a dump of a process with nothing else to do."""
    key = random.Random(4).randbytes(32)
    before, alive = tmp_path / "before.bin", tmp_path / "alive.bin"
    subprocess.run([sys.executable, "-c", _WITH_A_CIPHER, key.hex(), before, alive], check=True, timeout=60)
    assert key in before.read_bytes(), "the dump misses what the process has"
    assert not schedules_of(key, before), "a key is no schedule yet"
    assert schedules_of(key, alive)


def schedules_of(key: bytes, dump: Path) -> list[KeySchedule]:
    """The schedules in ``dump`` that begin with ``key``, in either order of bytes."""
    memory = dump.read_bytes()
    return [s for s in aes256_schedules(dump) if memory.startswith((key, reversed_words(key)), s.offset)]


# What is refused, and what it costs


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for dump in (tmp_path / "missing", empty, tmp_path):
        with pytest.raises(UsageError) as raised:
            pages_with(dump, b"x")
        assert raised.value.hint
        with pytest.raises(UsageError):
            aes_schedules(dump)
    with pytest.raises(UsageError):
        pages_with(dump_of(tmp_path, PAGE, {}), b"")
    with pytest.raises(UsageError):
        aes_schedules(dump_of(tmp_path, PAGE, {}), (512,))


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A dump of 1 GiB (a hole but for its end) adds little to this process."""
    dump = tmp_path / "large.bin"
    with dump.open("wb") as file:
        file.truncate(1 << 30)
        file.seek((1 << 30) - PAGE)
        file.write(b"canary" + bytes(PAGE - 6))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert pages_with(dump, b"canary") == [(1 << 30) // PAGE - 1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
