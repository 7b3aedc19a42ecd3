"""The fuse block and how it lives through firmware updates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vambrace.emulator import firmware, fuse
from vambrace.emulator.fuse import Fuse, read_fuse, update_flash
from vambrace.errors import ServerError

KEYS = st.binary(min_size=fuse.KEY_SIZE, max_size=fuse.KEY_SIZE).filter(
    lambda key: key not in (bytes(fuse.KEY_SIZE), b"\xff" * fuse.KEY_SIZE)
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.img"
    with path.open("wb") as file:
        file.write(b"BL1")
        file.seek(firmware.FIP_OFFSET)
        file.write(b"FIP")
        file.truncate(firmware.FLASH_SIZE)
    return path


@given(KEYS, st.booleans())
def test_a_fuse_is_read_as_it_was_written(key: bytes, secured: bool) -> None:
    block = Fuse(key, secured).encode()
    assert len(block) == fuse.SIZE
    assert Fuse.decode(block) == Fuse(key, secured)


@given(KEYS, st.integers(0, 8 * 0x28 - 1))
def test_a_damaged_fuse_is_refused(key: bytes, bit: int) -> None:
    block = bytearray(Fuse(key).encode())
    block[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ServerError):
        Fuse.decode(bytes(block))


@pytest.mark.parametrize("block", [b"", bytes(fuse.SIZE), b"\xff" * fuse.SIZE], ids=["empty", "zeros", "ones"])
def test_a_blank_fuse_is_refused(block: bytes) -> None:
    with pytest.raises(ServerError):
        Fuse.decode(block)


@pytest.mark.parametrize("value", [0, 255])
def test_a_key_that_was_never_burned_is_refused(value: int) -> None:
    with pytest.raises(ServerError):
        Fuse.decode(Fuse(bytes([value]) * fuse.KEY_SIZE).encode())


def test_a_half_blown_life_cycle_is_refused() -> None:
    block = bytearray(Fuse.generate().encode())
    block[0x40] = 0
    with pytest.raises(ServerError):
        Fuse.decode(bytes(block))


def test_the_key_is_not_shown() -> None:
    made = Fuse(b"0123456789abcdef")
    assert "0123456789abcdef" not in repr(made)


def test_a_new_flash_gets_a_fuse_of_its_own(tmp_path: Path, image: Path) -> None:
    first, second = tmp_path / "one/flash.img", tmp_path / "two/flash.img"
    for flash in (first, second):
        update_flash(flash, image)
        assert flash.stat().st_size == firmware.FLASH_SIZE
        assert flash.stat().st_mode & 0o777 == 0o600
    assert read_fuse(first).key != read_fuse(second).key
    assert not read_fuse(first).secured


def test_an_update_keeps_the_fuse(tmp_path: Path, image: Path) -> None:
    flash = tmp_path / "flash.img"
    update_flash(flash, image)
    secured = Fuse(read_fuse(flash).key, secured=True)
    with flash.open("r+b") as file:
        file.seek(fuse.OFFSET)
        file.write(secured.encode())
    with image.open("r+b") as file:
        file.write(b"NEW")
    update_flash(flash, image)
    assert read_fuse(flash) == secured
    assert flash.read_bytes()[:3] == b"NEW"


def test_a_damaged_fuse_is_not_replaced_in_silence(tmp_path: Path, image: Path) -> None:
    flash = tmp_path / "flash.img"
    flash.write_bytes(bytes(firmware.FLASH_SIZE))
    with pytest.raises(ServerError, match="fuse"):
        update_flash(flash, image)


def test_firmware_of_another_size_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.img"
    short.write_bytes(b"short")
    with pytest.raises(ServerError, match="64 MiB"):
        update_flash(tmp_path / "flash.img", short)
    assert not (tmp_path / "flash.img").exists()


def test_the_layout_is_the_firmware_s() -> None:
    header = (firmware.OURS / "common/vambrace_platform.h").read_text()

    def defined(name: str) -> int:
        found = re.search(rf"^#define {name} (\S+)$", header, re.MULTILINE)
        assert found
        return int(found[1], 0)

    assert defined("FUSE_BASE") == fuse.OFFSET
    assert defined("FUSE_SIZE") == fuse.SIZE
    assert (defined("FUSE_KEY_OFFSET"), defined("FUSE_CHECK_OFFSET"), defined("FUSE_LIFECYCLE_OFFSET")) == (
        8,
        0x18,
        0x40,
    )
