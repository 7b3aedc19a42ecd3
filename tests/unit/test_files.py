"""Files are there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from vambrace.files import write_whole


def test_write_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_whole(path, b"1")
    write_whole(path, b"2")
    assert path.read_bytes() == b"2" and stat.S_IMODE(path.stat().st_mode) == 0o600
    write_whole(path, b"3", mode=0o644)
    assert path.read_bytes() == b"3" and stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(OSError):
        write_whole(tmp_path / "none" / "x", b"1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_device_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(FileExistsError, match="no regular file"):
        write_whole(tmp_path / "x", b"1")
    assert (tmp_path / "x").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_whole(path, b"1", replace=False)
    with pytest.raises(FileExistsError):
        write_whole(path, b"2", replace=False)
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write_whole(link, b"2", replace=False)
    assert path.read_bytes() == b"1" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "x"]


@pytest.mark.parametrize("replace", [True, False])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    path = tmp_path / "x"
    if replace:
        write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new", replace=replace)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == ([("x", b"old")] if replace else [])


def test_the_folder_is_synced_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a power cut could take the name away again."""
    synced: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "x", b"1")
    assert len(synced) == 2 and synced[0].startswith(f"{tmp_path}/.x.") and synced[1] == str(tmp_path)
