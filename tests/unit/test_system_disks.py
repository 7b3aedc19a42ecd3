"""Disks of the VM form: read as they are, refused in one line where they are broken or hostile."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, SECTOR, SWAP, gpt, mbr, qcow2, root_disk, sample_system
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.debian.tools import run
from vambrace.errors import ConfigError, ImageError, VambraceError
from vambrace.image.systems.disk import MAX_DISK, data_ranges
from vambrace.image.systems.partitions import LINUX_DATA, ROOT_ARM64
from vambrace.image.systems.system import SystemDisk, build_system


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_system(tmp_path_factory.mktemp("system"))


def build(disk: Path | bytes, tmp_path: Path, partition: int | None = None) -> SystemDisk:
    if not isinstance(disk, Path):
        path = tmp_path / "disk.raw"
        path.write_bytes(disk)
        disk = path
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return build_system(disk, partition, work)


def data(found: SystemDisk) -> bytes:
    """Without the hash tree."""
    return found.path.read_bytes()[: found.verity.data_size]


def test_a_file_system_alone(system: Path, tmp_path: Path) -> None:
    found = build(system, tmp_path)
    assert (found.filesystem, data(found)) == ("ext4", system.read_bytes())
    assert found.verity.size == found.path.stat().st_size > found.verity.data_size


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "compat=0.10"), ("-o", "cluster_size=4096")])
def test_qcow2_is_what_it_was_made_of(system: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "raw").write_bytes(root_disk(system))
    found = build(qcow2(tmp_path / "raw", tmp_path / "disk.qcow2", *options), tmp_path)
    assert data(found) == system.read_bytes()
    assert not (tmp_path / "work/disk.raw").exists()


def test_the_same_disk_the_same_root(system: Path, tmp_path: Path) -> None:
    """Whatever the file is called, whatever format it is in, and whatever lies around the root."""
    roots = set()
    for number, disk in enumerate([root_disk(system), root_disk(system, LINUX_DATA), system.read_bytes()]):
        folder = tmp_path / str(number)
        folder.mkdir()
        roots.add(build(bytes(disk), folder).verity.verity_root)
    (tmp_path / "raw").write_bytes(root_disk(system))
    roots.add(build(qcow2(tmp_path / "raw", tmp_path / "x.qcow2"), tmp_path).verity.verity_root)
    assert len(roots) == 1


@pytest.mark.parametrize("kind", ["erofs", "squashfs"])
def test_other_file_systems(system: Path, tmp_path: Path, kind: str) -> None:
    tree, out = system.parent / "tree", tmp_path / "root"
    if kind == "erofs":
        run(["mkfs.erofs", "--quiet", out, tree])
    else:
        run(["mksquashfs", tree, out, "-quiet", "-no-progress", "-nopad"])
    found = build(out, tmp_path)
    assert found.filesystem == kind
    assert data(found)[: out.stat().st_size] == out.read_bytes()
    assert found.verity.data_size % 4096 == 0


def test_the_root_is_found(system: Path, tmp_path: Path) -> None:
    content, other = system.read_bytes(), b"x" * MIB
    rows = [(LINUX_DATA, MIB, MIB, 0), (ROOT_ARM64, 2 * MIB, 4 * MIB, 0), (LINUX_DATA, 6 * MIB, MIB, 0)]
    disk = gpt(8 * MIB, rows)
    disk[MIB : 2 * MIB] = other
    disk[2 * MIB : 6 * MIB] = content
    assert data(build(bytes(disk), tmp_path)) == content
    assert data(build(bytes(disk), tmp_path, 2)) == content
    with pytest.raises(ImageError, match="no file system that is known"):
        build(bytes(disk), tmp_path, 1)
    with pytest.raises(ConfigError, match="there is none on the disk") as caught:
        build(bytes(disk), tmp_path, 4)
    assert caught.value.hint == "there are 1, 2, 3"


def test_sectors_of_4096_bytes(system: Path, tmp_path: Path) -> None:
    content = system.read_bytes()
    disk = gpt(8 * MIB, [(ROOT_ARM64, MIB, 4 * MIB, 0)], sector=4096)
    disk[MIB : 5 * MIB] = content
    assert data(build(bytes(disk), tmp_path)) == content


def test_mbr(system: Path, tmp_path: Path) -> None:
    content = system.read_bytes()
    disk = mbr(8 * MIB, [(0x82, MIB, MIB), (0x83, 2 * MIB, 4 * MIB), (0x05, 6 * MIB, MIB)])
    disk[2 * MIB : 6 * MIB] = content
    assert data(build(bytes(disk), tmp_path)) == content


@pytest.mark.parametrize(
    "rows",
    [
        [(SWAP, MIB, MIB, 0)],
        [(ROOT_ARM64, MIB, MIB, 0), (ROOT_ARM64, 2 * MIB, MIB, 0)],
        [(LINUX_DATA, MIB, MIB, 0), (LINUX_DATA, 2 * MIB, MIB, 0)],
        [(ROOT_ARM64, MIB, MIB, 1 << 63)],
    ],
)
def test_a_root_that_is_not_to_be_seen(tmp_path: Path, rows: list[tuple[object, int, int, int]]) -> None:
    with pytest.raises(ImageError, match="which of the disk's partitions") as caught:
        build(bytes(gpt(4 * MIB, rows)), tmp_path)  # type: ignore[arg-type]
    assert caught.value.hint is not None and "partition: N" in caught.value.hint


def test_a_file_system_with_partitions(system: Path, tmp_path: Path) -> None:
    disk = bytearray(system.read_bytes())
    table = mbr(len(disk), [(0x83, MIB, MIB)])
    disk[:512] = table[:512]
    with pytest.raises(ImageError, match="has partitions as well"):
        build(bytes(disk), tmp_path)


def _header(change: Callable[[bytearray], None]) -> Callable[[bytearray], None]:
    """A change to a GPT's header, with the checksum that belongs to it."""
    import zlib

    def changed(disk: bytearray) -> None:
        header = disk[SECTOR : SECTOR + 92]
        change(header)
        header[16:20] = bytes(4)
        header[16:20] = struct.pack("<I", zlib.crc32(header))
        disk[SECTOR : SECTOR + 92] = header

    return changed


def _put(place: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place : place + len(value)] = value

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_put(SECTOR + 20, b"x"), "GPT is damaged"),
        (_put(2 * SECTOR + 40, b"x"), "GPT is damaged"),
        (_header(_put(80, struct.pack("<I", 0xFFFFFFFF))), "GPT is damaged"),
        (_header(_put(84, struct.pack("<I", 1))), "GPT is damaged"),
        (_header(_put(72, struct.pack("<Q", 1 << 63))), "GPT is damaged"),
        (_header(_put(40, struct.pack("<Q", 1 << 62))), "GPT is damaged"),
        (_header(_put(48, struct.pack("<Q", 1 << 62))), "ends before its partitions do"),
        (_put(SECTOR, b"no table"), "says that it has a GPT"),
    ],
)
def test_damaged_tables(
    system: Path, tmp_path: Path, change: Callable[[bytearray], None], error: str
) -> None:
    disk = root_disk(system)
    change(disk)
    with pytest.raises(ImageError, match=error):
        build(bytes(disk), tmp_path)


def test_partitions_out_of_place(system: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="in another's place"):
        build(bytes(gpt(4 * MIB, [(SWAP, MIB, 2 * MIB, 0), (ROOT_ARM64, 2 * MIB, MIB, 0)])), tmp_path)
    with pytest.raises(ImageError, match="beyond the disk's end"):
        build(bytes(mbr(4 * MIB, [(0x83, MIB, 1 << 30)])), tmp_path)
    with pytest.raises(ImageError, match="ends before its partitions do"):
        build(bytes(root_disk(system)[: 4 * MIB]), tmp_path)


EXT4 = 1024


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        (EXT4 + 0x3A, b"\x00\x00", "was not unmounted"),
        (EXT4 + 0x3A, b"\x03\x00", "was not unmounted"),
        (EXT4 + 0x60, struct.pack("<I", 0x2C6), "was not unmounted"),
        (EXT4 + 0x60, struct.pack("<I", 1 << 30), "features that are not known"),
        (EXT4 + 0x18, struct.pack("<I", 0), "not of 4096"),
        (EXT4 + 0x18, struct.pack("<I", 6), "not of 4096"),
        (EXT4 + 0x04, struct.pack("<I", 0xFFFFFFFF), "its place"),
        (EXT4 + 0x04, struct.pack("<I", 0), "its place"),
        (EXT4 + 0x38, b"\0\0", "no file system that is known"),
        (0, b"XFSB", "ext4"),
    ],
)
def test_file_systems_that_no_realm_mounts(
    system: Path, tmp_path: Path, place: int, value: bytes, error: str
) -> None:
    disk = bytearray(system.read_bytes())
    disk[place : place + len(value)] = value
    if error == "ext4":  # what stands in its boot block does not matter
        assert build(bytes(disk), tmp_path).filesystem == error
        return
    with pytest.raises(ImageError, match=error):
        build(bytes(disk), tmp_path)


@pytest.mark.parametrize(
    ("place", "magic", "name"),
    [(0, b"XFSB", "XFS"), (0x10040, b"_BHRfS_M", "btrfs"), (512, b"LABELONE", "LVM"), (0x8001, b"CD001", "ISO 9660")],
)
def test_other_formats_have_names(tmp_path: Path, place: int, magic: bytes, name: str) -> None:
    disk = bytearray(MIB)
    disk[place : place + len(magic)] = magic
    with pytest.raises(ImageError, match=f"in the format {name}"):
        build(bytes(disk), tmp_path)


@pytest.mark.parametrize("start", [b"KDMV", b"vhdxfile", b"QED\0", b"conectix", b"LUKS\xba\xbe", b"QFI\xfc"])
def test_other_containers_of_disks(tmp_path: Path, start: bytes) -> None:
    with pytest.raises(ImageError, match="is in the format"):
        build(start.ljust(MIB, b"\0"), tmp_path)


def test_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="No such file"):
        build(tmp_path / "absent", tmp_path)
    with pytest.raises(ImageError):
        build(tmp_path, tmp_path)
    with pytest.raises(ImageError, match="a disk of 0 bytes"):
        build(b"", tmp_path)


# qcow2


def test_nothing_of_another_file_is_read(tmp_path: Path, system: Path) -> None:
    """Backing files and external data files: a disk that names a file of the user's gets nothing of it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 4096)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", tmp_path / "backed.qcow2"])
    with pytest.raises(ImageError, match="has a backing file"):
        build(tmp_path / "backed.qcow2", tmp_path)
    external = ["-o", f"data_file={tmp_path / 'data'},data_file_raw=on", tmp_path / "external.qcow2", "4M"]
    run(["qemu-img", "create", "-q", "-f", "qcow2", *external])
    with pytest.raises(ImageError, match="in another file"):
        build(tmp_path / "external.qcow2", tmp_path)
    # A raw disk whose first sector the system inside has written as a header is no qcow2 that may name files either.
    inner = bytearray(root_disk(system))
    inner[:104] = (tmp_path / "backed.qcow2").read_bytes()[:104]
    with pytest.raises(ImageError, match="has a backing file"):
        build(bytes(inner), tmp_path)


def test_huge_disks(tmp_path: Path) -> None:
    run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "huge.qcow2", str(MAX_DISK + (1 << 30))])
    began = time.monotonic()
    with pytest.raises(ImageError, match="is a disk of"):
        build(tmp_path / "huge.qcow2", tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(MAX_DISK + 4096)
    with pytest.raises(ImageError, match="is a disk of"):
        build(tmp_path / "sparse", tmp_path)
    # One that may be: its zeros are never written.
    run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "large.qcow2", str(MAX_DISK)])
    with pytest.raises(ImageError, match="no file system that is known"):
        build(tmp_path / "large.qcow2", tmp_path)
    assert time.monotonic() - began < 60
    assert sum(path.stat().st_blocks for path in tmp_path.rglob("*")) * 512 < 64 * MIB


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        (4, struct.pack(">I", 9), "no sound qcow2"),
        (20, struct.pack(">I", 63), "no sound qcow2"),
        (24, struct.pack(">Q", 1 << 60), "is a disk of"),
        (36, struct.pack(">I", 0xFFFFFFFF), "no sound qcow2"),
        (32, struct.pack(">I", 2), "is encrypted"),
        (40, struct.pack(">Q", 1), "qemu-img does not read it"),
        (72, struct.pack(">Q", 1), "marked as corrupt"),
        (72, struct.pack(">Q", 2), "marked as corrupt"),
        (72, struct.pack(">Q", 4), "in another file"),
        (72, struct.pack(">Q", 1 << 40), "features that are not known"),
        (100, struct.pack(">I", 0xFFFFFFF8), "no sound qcow2"),
    ],
)
def test_broken_headers(tmp_path: Path, system: Path, place: int, value: bytes, error: str) -> None:
    disk = qcow2(system, tmp_path / "disk.qcow2")
    changed = bytearray(disk.read_bytes())
    changed[place : place + len(value)] = value
    disk.write_bytes(changed)
    with pytest.raises(ImageError, match=error):
        build(disk, tmp_path)


def test_cut_off(tmp_path: Path, system: Path) -> None:
    whole = qcow2(system, tmp_path / "disk.qcow2").read_bytes()
    for length in (50, 103, 4096, len(whole) // 2):
        (tmp_path / "disk.qcow2").write_bytes(whole[:length])
        with pytest.raises(ImageError):
            build(tmp_path / "disk.qcow2", tmp_path)


@pytest.mark.parametrize("kind", ["gpt", "mbr", "ext4"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_other_error(system: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int) -> None:
    """Whatever bytes of the tables are changed: an error of ours, or a disk that is whole."""
    chance = random.Random(seed)
    content = system.read_bytes()
    disk = root_disk(system) if kind == "gpt" else mbr(8 * MIB, [(0x83, MIB, 4 * MIB)])
    if kind != "gpt":
        disk[MIB : 5 * MIB] = content
    for _ in range(chance.randint(1, 6)):
        place = {"gpt": chance.randrange(SECTOR, 3 * SECTOR), "mbr": chance.randrange(440, 512)}.get(
            kind, MIB + 1024 + chance.randrange(0x180)
        )
        disk[place] = chance.randrange(256)
    try:
        found = build(bytes(disk), tmp_path_factory.mktemp("disk"))
    except VambraceError as error:
        assert error.message and "\n" not in error.message
    else:
        assert found.filesystem == "ext4" and found.verity.data_size <= len(disk)


def test_ranges_with_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(2 * MIB)
        file.write(b"x" * 4096)
    with path.open("rb") as file:
        assert list(data_ranges(file, 0, 8 * MIB)) == [(2 * MIB, 4096)]
        assert list(data_ranges(file, 2 * MIB + 100, 1000)) == [(2 * MIB + 100, 1000)]
        assert list(data_ranges(file, 4 * MIB, 4 * MIB)) == []
