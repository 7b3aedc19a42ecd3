"""What a dump of physical memory shows: pages with a secret, and AES key schedules.

A dump is a raw file, physical memory from its first byte on; page frame numbers and offsets count from there.
Files of many GiB are read through a map in windows of some KiB, so memory stays bounded whatever their size.

Key schedules are found as in Halderman et al., "Lest We Remember: Cold Boot Attacks on Encryption Keys"
(USENIX Security 2008, section 6), but exactly: a dump has no decayed bits. A schedule of n words of key obeys

    w[i] = w[i-n] ^ w[i-1]                              for most i, and for the others
    w[i] = w[i-n] ^ SubWord(RotWord(w[i-1])) ^ rcon     (FIPS 197, section 5.2)

The first kind is linear and the same in every byte order, so it sieves the whole dump with a few operations
on big integers; what is left is checked word by word. A schedule that a page border cuts in two (its pages
need not be neighbours in physical memory) is found by either half that has a key's length and eight words
more. Not looked for: bit-sliced schedules, and the inverted ones of block decryption (GCM has none).

No key leaves this module: it answers with places.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import UsageError

PAGE_SIZE = 4096
_READ = 1 << 20
_RELEASE = 64 << 20  # how much may stay mapped before it is given back
_WINDOW = 16 << 10  # big integers are quickest while they fit the CPU's first cache
_OVERLAP = 512  # more than the 240 bytes that a schedule has at most
_WORD = 4
_EMPTY = bytes(_WINDOW + _OVERLAP)
_PROOF = 8  # words beyond the key's own that must agree: 256 bits, no chance hit
_KEY_WORDS = {128: 4, 192: 6, 256: 8}
_ZEROS = re.compile(rb"\0+")


@dataclass(frozen=True)
class KeySchedule:
    """``offset`` and ``length`` in bytes of a schedule for a key of ``bits``; of a part where it is cut."""

    offset: int
    length: int
    bits: int


def pages_with(dump: Path, needle: bytes) -> list[int]:
    """The page frame numbers with ``needle`` or a part of an occurrence of it, rising, each once.

    Raises UsageError: no such file, or an empty needle.
    """
    if not needle:
        raise UsageError("nothing to search for in the dump", hint="give at least one byte")
    pages: list[int] = []
    with _mapped(dump) as memory:
        position = 0
        for start, block in _blocks(memory, _READ, len(needle) - 1):
            position = max(position, start)
            while (found := block.find(needle, position - start)) >= 0:
                first, last = (start + found) // PAGE_SIZE, (start + found + len(needle) - 1) // PAGE_SIZE
                pages += range(max(first, pages[-1] + 1) if pages else first, last + 1)
                # The next occurrence that can reach a page not counted yet.
                position = max(start + found + 1, (last + 1) * PAGE_SIZE - len(needle) + 1)
                if position - start > len(block):
                    break
    return pages


def aes256_schedules(dump: Path) -> list[KeySchedule]:
    """The AES-256 key schedules in ``dump``, by rising offset. Raises UsageError: no such file."""
    return aes_schedules(dump, (256,))


def aes_schedules(dump: Path, bits: tuple[int, ...] = (128, 192, 256)) -> list[KeySchedule]:
    """The AES key schedules in ``dump`` for keys of these lengths, by rising offset.

    Words lie at multiples of four bytes, in the byte order of FIPS 197 (ARMv8 and AES-NI code, the kernel) or
    with the bytes of each word reversed (the portable code of OpenSSL on a little-endian CPU).

    Raises UsageError: no such file, or a length that AES has not.
    """
    if unknown := set(bits) - set(_KEY_WORDS):
        raise UsageError(f"AES has no keys of {min(unknown)} bits", hint="choose from 128, 192 and 256")
    found: list[KeySchedule] = []
    ends = dict.fromkeys(bits, 0)
    with _mapped(dump) as memory:
        for start, block in _blocks(memory, _WINDOW, _OVERLAP):
            if block == _EMPTY[: len(block)]:
                continue
            number = int.from_bytes(block, "little")
            neighbours = number ^ number >> 8 * _WORD
            for size in ends:
                n = _KEY_WORDS[size]
                # Word i of the residue is w[i] ^ w[i+n-1] ^ w[i+n].
                residue = (number ^ neighbours >> 8 * _WORD * (n - 1)).to_bytes(len(block), "little")
                for word in _candidates(residue, n):
                    offset = start + word * _WORD
                    if word * _WORD >= _WINDOW or offset < ends[size]:
                        continue  # the next window's, or within one that was found
                    if length := _agreeing(block, word * _WORD, n):
                        found.append(KeySchedule(offset, length, size))
                        ends[size] = offset + length
    return sorted(found, key=lambda schedule: (schedule.offset, schedule.bits))


def _candidates(residue: bytes, n: int) -> Iterator[int]:
    """Indices of words, rising, where a round of a schedule for ``n`` words of key may begin.

    After a round's first word the residue is zero for n - 1 words (three for n = 8, which has an exception
    more).
    """
    run = 5 if n == 6 else 3
    zeros = bytes(run * _WORD)
    position = 0
    while (position := residue.find(zeros, position)) >= 0:
        zero = _ZEROS.match(residue, position)
        assert zero is not None
        first, last = -(-position // _WORD), zero.end() // _WORD
        # Longer runs are empty or repetitive memory; an exception that is zero by chance has room.
        if last - first <= 2 * run + 1:
            yield from range(max(first, 1) - 1, last - run)
        position = zero.end()


def _agreeing(block: bytes, offset: int, n: int) -> int:
    """Bytes of the schedule for ``n`` words of key of which a round, any one, begins at ``offset``; or 0."""
    whole = 4 * (n + 7)  # FIPS 197: 4 · (rounds + 1)
    count = min(whole, (len(block) - offset) // _WORD)
    for order in "><":
        words = struct.unpack_from(f"{order}{count}I", block, offset)
        if count <= n or (constant := words[n] ^ words[0] ^ _exception(words[n - 1])) not in _CONSTANTS:
            continue
        step = _CONSTANTS.index(constant)
        end = min(count, whole - step * n)
        i = n
        while i < end:
            word = words[i - 1]
            if i % n == 0:
                word = _exception(word) ^ _CONSTANTS[step + i // n - 1]
            elif n == 8 and i % n == 4:
                word = _substitute(word)
            if words[i] != words[i - n] ^ word:
                break
            i += 1
        if i >= n + _PROOF:
            return i * _WORD
    return 0


def _exception(word: int) -> int:
    """SubWord(RotWord(word))"""
    return _substitute((word << 8 | word >> 24) & 0xFFFFFFFF)


def _substitute(word: int) -> int:
    """SubWord(word)"""
    return _SBOX[word >> 24] << 24 | _SBOX[word >> 16 & 255] << 16 | _SBOX[word >> 8 & 255] << 8 | _SBOX[word & 255]


def _sbox() -> bytes:
    """The substitution of FIPS 197, section 5.1.1: inverse in GF(2⁸), then an affine map."""
    powers = [1]
    while len(powers) < 255:
        value = powers[-1]
        powers.append(value ^ value << 1 ^ (0x11B if value & 0x80 else 0))  # times 3, a generator
    table = bytearray([0x63] * 256)
    for exponent, value in enumerate(powers):
        inverse = powers[-exponent % 255]
        spread = inverse ^ inverse << 1 ^ inverse << 2 ^ inverse << 3 ^ inverse << 4
        table[value] ^= (spread ^ spread >> 8) & 0xFF
    return bytes(table)


_SBOX = _sbox()
# rcon of each round, FIPS 197, section 5.2, as the word that is added.
_CONSTANTS = [byte << 24 for byte in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1B, 0x36)]


def _blocks(memory: mmap.mmap, size: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of pieces of ``size`` bytes that reach ``overlap`` bytes into the next."""
    length = len(memory)
    for start in range(0, length, size):
        if start and start % _RELEASE == 0:
            memory.madvise(mmap.MADV_DONTNEED, start - _RELEASE, _RELEASE)
        yield start, memory[start : start + size + overlap]


@contextmanager
def _mapped(dump: Path) -> Iterator[mmap.mmap]:
    try:
        with dump.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise UsageError(f"{dump} is not a memory dump: {error}", hint="give the file that the dump wrote") from error
    with memory:
        memory.madvise(mmap.MADV_SEQUENTIAL)
        yield memory
