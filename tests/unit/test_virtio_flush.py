"""When a guest may believe that what it wrote is on the disk: what stands behind every fsync in it."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from virtio_driver import Driver

from vambrace.virtio.block import Block
from vambrace.virtio.device import VERSION_1

WRITE = 2
FLUSH, DISCARD = 1 << 9, 1 << 13
OK, IO_ERROR = 0, 1
OUT, FLUSH_OUT, DROP = 1, 4, 11


class Disk:
    """A disk of 16 blocks; what happens to its file is in ``order``: as the guest sees it answered, and synced."""

    def __init__(self, path: Path, features: int, patch: pytest.MonkeyPatch) -> None:
        path.write_bytes(bytes(64 << 10))
        self.order: list[str] = []
        self.failures = 0
        real = os.fdatasync

        def fdatasync(file: int) -> None:
            real(file)
            self.order.append("synced")
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EIO, "the disk is broken")

        patch.setattr(os, "fdatasync", fdatasync)
        self.driver = Driver(Block(os.open(path, os.O_RDWR), "root", writable=True))
        self.driver.start(VERSION_1 | features)

    def ask(self, kind: int, data: bytes = b"") -> int:
        parts = [(struct.pack("<IIQ", kind, 0, 0), 0), *([(data, 0)] if data else []), (b"\xff", WRITE)]
        head = self.driver.ask(0, parts)
        self.order.append("answered")
        return self.driver.answer(0, head, len(parts) - 1, 1)[0]


def test_a_flush_is_answered_when_everything_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path / "disk", FLUSH, monkeypatch)
    assert disk.ask(OUT, bytes(512)) == OK
    assert disk.order == ["answered"]  # the guest knows that it must ask
    assert disk.ask(FLUSH_OUT) == OK
    assert disk.order == ["answered", "synced", "answered"]
    disk.driver.close()


def test_a_driver_without_flushes_is_given_them_with_each_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path / "disk", DISCARD, monkeypatch)
    assert disk.ask(OUT, bytes(512)) == OK
    assert disk.ask(DROP, struct.pack("<QII", 8, 8, 0)) == OK
    assert disk.order == ["synced", "answered"] * 2
    assert disk.ask(OUT, bytes(100)) == IO_ERROR
    assert disk.order[4:] == ["answered"]
    disk.driver.close()


@pytest.mark.parametrize("features", [FLUSH, 0])
def test_after_a_failed_flush_nothing_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: int
) -> None:
    """The host's kernel says once that it lost pages, and then forgets it."""
    disk = Disk(tmp_path / "disk", features, monkeypatch)
    disk.failures = 1
    asked = (FLUSH_OUT,) if features else (OUT, bytes(512))
    assert disk.ask(*asked) == IO_ERROR
    assert disk.ask(*asked) == IO_ERROR
    disk.driver.close()
