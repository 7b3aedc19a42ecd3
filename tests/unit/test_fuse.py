"""The fuse block: Python and the firmware's C read it alike. How it lives through firmware updates."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vambrace.attest.policy import DEBUG, DECOMMISSIONED, NOT_PROVISIONED, SECURED
from vambrace.emulator import firmware, fuse
from vambrace.emulator.fuse import Fuse, read_fuse, update_flash
from vambrace.emulator.sources import OURS
from vambrace.errors import ServerError

ROOT_KEY = bytes(range(32))
BLOCK = 0x180  # bytes that mean something
COUNT = 512
KEYS = st.binary(min_size=fuse.KEY_SIZE, max_size=fuse.KEY_SIZE).filter(
    lambda key: key not in (bytes(fuse.KEY_SIZE), b"\xff" * fuse.KEY_SIZE)
)
HASHES = st.binary(min_size=32, max_size=32).filter(lambda value: value != b"\xff" * 32)
VERSIONS = st.integers(0, COUNT)
WITH_KEY = st.builds(
    Fuse, KEYS, HASHES, st.booleans(), st.booleans(), firmware_version=VERSIONS, host_version=VERSIONS
)
FUSES = st.one_of(WITH_KEY, WITH_KEY.map(Fuse.decommission))
NEW = Fuse(b"0123456789abcdef", ROOT_KEY)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The firmware's own reader, compiled for this machine."""
    program = tmp_path_factory.mktemp("fuse") / "fuse_block"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [OURS / "tests/fuse_block.c", OURS / "common/fuse_block.c"]
    subprocess.run(["cc", *flags, "-o", program, *sources], check=True)
    return program


def by_firmware(reader: Path, blocks: Iterable[bytes]) -> list[str]:
    data = b"".join(block[:BLOCK] for block in blocks)
    done = subprocess.run([reader], input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def by_python(block: bytes) -> str:
    try:
        found = Fuse.decode(block)
    except ServerError:
        return "refused"
    return f"{found.lifecycle:#x} {found.firmware_version} {found.host_version}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.img"
    with path.open("wb") as file:
        file.write(b"BL1")
        file.seek(firmware.FIP_OFFSET)
        file.write(b"FIP")
        file.truncate(firmware.FLASH_SIZE)
    return path


@given(FUSES)
@example(NEW)
def test_a_fuse_is_read_as_it_was_written(reader: Path, written: Fuse) -> None:
    block = written.encode()
    assert len(block) == fuse.SIZE
    assert Fuse.decode(block) == written
    assert by_firmware(reader, [block]) == [by_python(block)]


def test_every_version_is_counted(reader: Path) -> None:
    fuses = [replace(NEW, firmware_version=value, host_version=COUNT - value) for value in range(COUNT + 1)]
    said = [f"0x1000 {value} {COUNT - value}" for value in range(COUNT + 1)]
    assert by_firmware(reader, [fuse.encode() for fuse in fuses]) == said
    for value in (-1, COUNT + 1):
        with pytest.raises(ValueError, match="counts"):
            replace(NEW, firmware_version=value).encode()


def test_burning_only_clears_bits() -> None:
    """Whatever a machine goes through, no bit comes back."""
    life = [NEW, replace(NEW, firmware_version=1), replace(NEW, firmware_version=40, secured=True)]
    life += [replace(life[-1], host_version=33), replace(life[-1], host_version=33, debug=True)]
    life.append(life[-1].decommission())
    blocks = [int.from_bytes(fuse.encode(), "little") for fuse in life]
    for before, after in zip(blocks, blocks[1:], strict=False):
        assert after & ~before == 0 and after != before


def test_life_cycles() -> None:
    secured = replace(NEW, secured=True)
    states = [NEW, secured, replace(secured, debug=True), secured.decommission()]
    assert [state.lifecycle for state in states] == [NOT_PROVISIONED, SECURED, DEBUG, DECOMMISSIONED]
    assert not any(secured.decommission().key)


def test_every_flipped_bit_is_read_alike(reader: Path) -> None:
    """Of words that have but two values, of the key and of the counters, none is taken for something else."""
    whole = replace(NEW, secured=True, firmware_version=3, host_version=2).encode()
    blocks = []
    for bit in range(8 * BLOCK):
        block = bytearray(whole)
        block[bit // 8] ^= 1 << bit % 8
        blocks.append(bytes(block))
    said = [by_python(block) for block in blocks]
    assert by_firmware(reader, blocks) == said
    guarded = [*range(0x28), *range(0x40, 0x4C)]
    assert {said[8 * at + bit] for at in guarded for bit in range(8)} == {"refused"}
    # A counter takes the next bit, and gives back none.
    for start, name in ((0x100, 3), (0x140, 2)):
        taken = [at for at in range(512) if said[8 * start + at] != "refused"]
        assert taken == [name - 1, name]


@given(st.binary(min_size=BLOCK, max_size=BLOCK), FUSES, st.data())
def test_any_block_is_read_alike(reader: Path, noise: bytes, written: Fuse, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, BLOCK - 1))
    end = data.draw(st.integers(start, min(BLOCK, start + 40)))
    mixed = bytearray(written.encode())
    mixed[start:end] = noise[start:end]
    blocks = [noise.ljust(fuse.SIZE, b"\xff"), bytes(mixed)]
    assert by_firmware(reader, blocks) == [by_python(block) for block in blocks]


@pytest.mark.parametrize("block", [b"", bytes(fuse.SIZE), b"\xff" * fuse.SIZE], ids=["empty", "zeros", "ones"])
def test_a_blank_fuse_is_refused(block: bytes) -> None:
    with pytest.raises(ServerError):
        Fuse.decode(block)


@pytest.mark.parametrize("value", [0, 255])
def test_a_key_that_was_never_burned_is_refused(reader: Path, value: int) -> None:
    block = bytearray(NEW.encode())
    block[0x08:0x18] = bytes([value]) * 16
    block[0x18:0x28] = bytes([value ^ 0xFF]) * 16
    assert by_firmware(reader, [block]) == [by_python(bytes(block))] == ["refused"]


def test_a_fuse_without_a_root_key_is_refused(reader: Path) -> None:
    """As one of an older vambrace: it would take firmware of anybody's."""
    block = bytearray(NEW.encode())
    block[0x60:0x80] = b"\xff" * 32
    assert by_firmware(reader, [block]) == [by_python(bytes(block))] == ["refused"]


def test_the_key_is_not_shown() -> None:
    assert "0123456789abcdef" not in repr(NEW)


def test_a_new_flash_gets_a_fuse_of_its_own(tmp_path: Path, image: Path) -> None:
    first, second = tmp_path / "one/flash.img", tmp_path / "two/flash.img"
    for flash in (first, second):
        update_flash(flash, image, ROOT_KEY)
        assert flash.stat().st_size == firmware.FLASH_SIZE
        assert flash.stat().st_mode & 0o777 == 0o600
    assert read_fuse(first).key != read_fuse(second).key
    assert not read_fuse(first).secured


def test_an_update_keeps_the_fuse(tmp_path: Path, image: Path) -> None:
    flash = tmp_path / "flash.img"
    update_flash(flash, image, ROOT_KEY)
    secured = replace(read_fuse(flash), secured=True, firmware_version=7)
    with flash.open("r+b") as file:
        file.seek(fuse.OFFSET)
        file.write(secured.encode())
    with image.open("r+b") as file:
        file.write(b"NEW")
    update_flash(flash, image, ROOT_KEY)
    assert read_fuse(flash) == secured
    assert flash.read_bytes()[:3] == b"NEW"


def test_a_damaged_fuse_is_not_replaced_in_silence(tmp_path: Path, image: Path) -> None:
    flash = tmp_path / "flash.img"
    flash.write_bytes(bytes(firmware.FLASH_SIZE))
    with pytest.raises(ServerError, match="fuse"):
        update_flash(flash, image, ROOT_KEY)


def test_firmware_of_another_size_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.img"
    short.write_bytes(b"short")
    with pytest.raises(ServerError, match="64 MiB"):
        update_flash(tmp_path / "flash.img", short, ROOT_KEY)
    assert not (tmp_path / "flash.img").exists()


def test_a_machine_takes_its_own_vendor_s_firmware_only(tmp_path: Path, image: Path) -> None:
    flash = tmp_path / "flash.img"
    update_flash(flash, image, ROOT_KEY)
    before = flash.read_bytes()
    with pytest.raises(ServerError, match="another vendor"):
        update_flash(flash, image, bytes(32))
    with flash.open("r+b") as file:
        file.seek(fuse.OFFSET)
        file.write(read_fuse(flash).decommission().encode())
    with pytest.raises(ServerError, match="decommissioned"):
        update_flash(flash, image, ROOT_KEY)
    assert flash.read_bytes()[: fuse.OFFSET] == before[: fuse.OFFSET]


def test_the_place_is_the_firmware_s() -> None:
    header = (OURS / "common/fuse_block.h").read_text()
    assert f"#define FUSE_BASE {fuse.OFFSET:#010x}\n" in header
    assert f"#define FUSE_SIZE {fuse.SIZE:#x}\n" in header
