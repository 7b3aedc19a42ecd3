"""The same inputs give the same bits, wherever, whenever and by whomever they are built.

The quick tests build parts twice. The long one builds all that the emulated server boots once more and compares it with
what the user's cache holds, which was built in another folder at another time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vambrace.debian.cache import Cache
from vambrace.debian.erofs import make_erofs
from vambrace.debian.initrd import cpio
from vambrace.emulator import build, firmware, provision
from vambrace.emulator.build import ServerBuild
from vambrace.emulator.firmware import HostFiles

#: Two builders: where they build, their umask, their surroundings, and how old their files are.
BUILDERS = (
    ("here", 0o022, {"TZ": "UTC", "LANG": "C"}, 0),
    ("a/longer/way/there", 0o077, {"TZ": "Asia/Tokyo", "LANG": "C.UTF-8"}, 86400 * 400),
)


@contextmanager
def builder(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int]]:
    """A folder to build in, as one of ``BUILDERS`` has it, and the time of its files."""
    name, mask, surroundings, age = BUILDERS[number]
    place = tmp_path / name
    place.mkdir(parents=True)
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            for variable, value in surroundings.items():
                patch.setenv(variable, value)
            time.tzset()
            yield place, int(time.time()) - age
    finally:
        os.umask(before)
        time.tzset()


def write_tree(top: Path, age: int) -> None:
    for name, mode in (("usr/bin/tool", 0o755), ("etc/settings", 0o644), ("etc/secret", 0o600)):
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode() * 3000)
        file.chmod(mode)
        os.utime(file, (age, age))
    (top / "usr/bin/link").symlink_to("tool")
    for folder in (top, *(path for path in top.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
        os.utime(folder, (age, age))


def built_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, int], bytes]) -> set[str]:
    """The digests of what two builders make."""
    digests = set()
    for number in range(len(BUILDERS)):
        with builder(tmp_path, number, monkeypatch) as (place, age):
            digests.add(hashlib.sha256(make(place, age)).hexdigest())
    return digests


def test_a_root_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(place: Path, age: int) -> bytes:
        write_tree(place / "tree", age)
        verity = make_erofs(place / "tree", place / "root.img")
        return (place / "root.img").read_bytes() + verity.verity_root.encode()

    assert len(built_twice(tmp_path, monkeypatch, make)) == 1


def test_an_initrd_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(place: Path, age: int) -> bytes:
        write_tree(place / "tree", age)
        return cpio(place / "tree")

    assert len(built_twice(tmp_path, monkeypatch, make)) == 1


def test_the_stub_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(place: Path, age: int) -> bytes:
        files = []
        for name, content in (("Image", bytes(56) + b"ARM\x64" + bytes(4036)), ("initrd", b"i" * 99), ("dtb", b"d")):
            (place / name).write_bytes(content)
            os.utime(place / name, (age, age))
            files.append(place / name)
        firmware.build_stub(HostFiles(files[0], files[1], files[2], bytes(32)), place / "out")
        return (place / "out/stub.bin").read_bytes()

    assert len(built_twice(tmp_path, monkeypatch, make)) == 1


def test_a_product_s_permissions_are_not_its_builder_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(place: Path, age: int) -> bytes:
        product = Cache(place).build("product", {}, lambda work: (work / "file").touch())
        return oct((product / "file").stat().st_mode).encode()

    assert built_twice(tmp_path, monkeypatch, make) == {hashlib.sha256(b"0o100644").hexdigest()}


@pytest.mark.soak
def test_everything_that_boots_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Firmware, OP-TEE, trusted application, stub, kernel, initrd, root, device tree, from Debian's packages on.

    Whoever signs: the second builder has a key of its own for firmware. Its root has the first vendor's certificate in
    it, as any root of that vendor's.
    """
    kept = Cache()
    authority, rot_key = provision.vendor(kept.root / "test-vendor")
    first = build.build(kept, print, rot_key=rot_key, vendor_root=authority.certificate_pem)
    with builder(tmp_path, 1, monkeypatch) as (place, _):
        cache = Cache(place / "cache")
        (cache.root / "archive").symlink_to(kept.root / "archive")
        _, another_key = provision.vendor(place / "vendor")
        second = build.build(cache, print, rot_key=another_key, vendor_root=authority.certificate_pem)
        try:
            assert parts(second) == parts(first)
        finally:
            shutil.rmtree(cache.products)


def parts(built: ServerBuild) -> dict[str, str]:
    """The digest of everything that runs, and of each file of the firmware that is no certificate."""
    assert built.firmware is not None
    files = {"kernel": built.host.kernel.image, "initrd": built.host.initrd, "root": built.host.disk}
    files |= {"device tree": built.firmware.device_tree}
    out = built.firmware.image.parent / "out"
    files |= {file.name: file for file in sorted(out.iterdir()) if file.suffix in (".bin", ".elf")}
    del files["fip.bin"]  # with the certificates: each has a salted signature and a date
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    return {**digests, **dict(built.firmware.components)}
