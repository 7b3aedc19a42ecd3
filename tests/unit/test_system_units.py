"""Units that are looked for on a disk when it is built: real file systems, and those of a stranger's making."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest
from config_factory import make_application
from disks import MIB, ext4
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.debian.tools import run
from vambrace.errors import ConfigError
from vambrace.image.systems.contents import Ext4, Unreadable, open_contents
from vambrace.image.systems.units import check_units

USUAL, OWN = "usr/lib/systemd/system", "etc/systemd/system"


def system(folder: Path) -> Path:
    """A tree with units of each kind, in folders with many others."""
    tree = folder / "tree"
    for place in (USUAL, OWN, "etc/init.d", "usr/local/lib/systemd/system"):
        (tree / place).mkdir(parents=True)
    (tree / "lib").symlink_to("usr/lib")
    for number in range(600):
        (tree / USUAL / f"other-{number}-{'x' * 40}.service").write_text("[Service]\n")
    for place in (f"{USUAL}/nginx.service", f"{USUAL}/postgresql@.service", f"{USUAL}/hidden.service"):
        (tree / place).write_text("[Service]\n")
    (tree / "usr/local/lib/systemd/system/local.service").write_text("[Service]\n")
    (tree / "etc/init.d/old").write_text("#!/bin/sh\n")
    (tree / OWN / "masked.service").symlink_to("/dev/null")
    (tree / OWN / "hidden.service").symlink_to("/dev/null")
    (tree / OWN / "empty.service").touch()
    (tree / OWN / "alias.service").symlink_to("/lib/systemd/system/nginx.service")
    (tree / OWN / "far.service").symlink_to("../../../" + "./" * 60 + "usr/lib/systemd/system/nginx.service")
    (tree / OWN / "broken.service").symlink_to("/nowhere/x.service")
    (tree / OWN / "loop.service").symlink_to("loop.service")
    (tree / OWN / "folder.service").mkdir()
    (tree / OWN / "nginx.service.d").mkdir()
    return tree


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("units")
    tree = system(folder)
    plain = ext4(tree, folder / "ext4", 8 * MIB)
    blocks = folder / "blocks"
    with blocks.open("wb") as file:
        file.truncate(8 * MIB)
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^extents,^64bit", "-b", "4096", "-d", tree, blocks])
    run(["mkfs.erofs", "-zlz4", folder / "erofs", tree])
    return {"ext4": plain, "ext4 with lists of blocks": blocks, "erofs": folder / "erofs"}


EVERY = ["ext4", "ext4 with lists of blocks", "erofs"]


def check(disk: Path, kind: str, unit: str) -> None:
    with disk.open("rb") as file:
        check_units(file, kind.split()[0], [make_application("web", unit=unit, command=(), directory="/")])


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "unit", ["nginx", "local", "alias", "far", "old", "postgresql@17-main", f"other-599-{'x' * 40}"], ids=str
)
def test_units_that_are_there(disks: dict[str, Path], kind: str, unit: str) -> None:
    check(disks[kind], kind, f"{unit}.service")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("ngnix", "no such unit"),
        ("nginx@1", "no such unit"),
        ("broken", "no such unit"),
        ("loop", "no such unit"),
        ("folder", "no such unit"),
        ("masked", "masked"),
        ("hidden", "masked"),
        ("empty", "masked"),
    ],
)
def test_units_that_are_not(disks: dict[str, Path], kind: str, unit: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"application web: {unit}.service.*{message}") as raised:
        check(disks[kind], kind, f"{unit}.service")
    assert raised.value.hint and (unit != "ngnix" or "nginx.service" in raised.value.hint)


def test_what_is_not_known_is_not_refused(tmp_path: Path, disks: dict[str, Path]) -> None:
    check(disks["ext4"], "squashfs", "nothing.service")
    tree = tmp_path / "tree"
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(parents=True)
    disk = ext4(tree, tmp_path / "disk")
    with pytest.raises(ConfigError):
        check(disk, "ext4", "made.service")
    (generators / "maker").write_text("#!/bin/sh\n")
    check(ext4(tree, tmp_path / "more"), "ext4", "made.service")


def test_all_of_a_tree(disks: dict[str, Path]) -> None:
    """Every name that is on the disk is found, and no other."""
    tree = disks["ext4"].parent / "tree"
    for kind in EVERY:
        with disks[kind].open("rb") as file:
            contents = open_contents(file, kind.split()[0])
            for place, folders, files in os.walk(tree):
                path = f"/{Path(place).relative_to(tree)}"
                found = contents.find(path)
                assert found is not None and found.is_folder
                names = {name.decode() for name in contents.names(found)} - {".", "..", "lost+found"}
                assert names == {*folders, *files}


def damaged(data: bytes, seed: int) -> bytes:
    """Some bytes of what describes files are others."""
    chance = random.Random(seed)
    out = bytearray(data)
    for _ in range(chance.randrange(1, 200)):
        place = chance.randrange(1024, len(out))
        out[place : place + 4] = chance.choice([bytes(4), b"\xff" * 4, chance.randbytes(4)])
    return bytes(out)


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32), kind=st.sampled_from(EVERY))
def test_disks_of_a_stranger(disks: dict[str, Path], seed: int, kind: str) -> None:
    """There, not there, or not known: in bounded time, and no other error."""
    path = disks[kind].parent / "damaged"
    path.write_bytes(damaged(disks[kind].read_bytes(), seed))
    for unit in ("nginx.service", "nothing.service"):
        try:
            check(path, kind, unit)
        except ConfigError as error:
            assert "unit on the disk" in error.message or "masked" in error.message


def test_an_address_that_no_file_has(tmp_path: Path, disks: dict[str, Path]) -> None:
    data = bytearray(disks["erofs"].read_bytes())
    data[1064:1068] = b"\xff" * 4  # where inodes begin
    (tmp_path / "disk").write_bytes(data)
    check(tmp_path / "disk", "erofs", "nothing.service")


def test_a_tree_of_extents_without_end(tmp_path: Path, disks: dict[str, Path]) -> None:
    """Each of 340 rows leads to a block with as many: what is read is bounded, whatever it seems to be."""
    data = bytearray(disks["ext4"].read_bytes())
    with disks["ext4"].open("rb") as file:
        contents = Ext4(file)
        root = contents.inode(2)
    (table,) = struct.unpack_from("<I", data, 4096 + 8)
    where = table * 4096 + struct.unpack_from("<H", data, 1024 + 0x58)[0]
    assert data[where : where + 2] == root.head[:2]
    struct.pack_into("<I", data, where + 4, MIB)
    last = len(data) // 4096
    for level in range(5):  # blocks behind the file system's end, each of rows that lead to the next
        rows = b"".join(struct.pack("<IIHH", 0, last + level + 1, 0, 0) for _ in range(340))
        head = struct.pack("<HHHHI", 0xF30A, 340, 340, 4 - level, 0)
        data += (head + (rows if level < 4 else b"")).ljust(4096, b"\0")
    struct.pack_into("<HHHHIIIHH", data, where + 0x28, 0xF30A, 1, 4, 5, 0, 0, last, 0, 0)
    (tmp_path / "disk").write_bytes(data)
    with (tmp_path / "disk").open("rb") as file:
        hostile = Ext4(file)
        hostile._left = 8 * MIB
        with pytest.raises(Unreadable):
            hostile.names(hostile.inode(2))
        assert hostile._left < 0
