"""The counting of marked pages in a dump, against dumps that are made by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed import census
from testbed.census import Census
from vambrace.errors import UsageError

PAGE = 4096
MARKER = bytes(range(1, 17))


def dump(folder: Path, *frames: bytes) -> Path:
    file = folder / "dump"
    file.write_bytes(b"".join(frames))
    return file


def page(number: int, marker: bytes = MARKER) -> bytes:
    return census.record(marker, number) * (PAGE // census.RECORD.size)


def test_pages_are_counted_once_and_what_is_there_again_is_a_copy(tmp_path: Path) -> None:
    noise = os.urandom(PAGE)
    file = dump(tmp_path, noise, page(7), page(8), noise, page(7))
    assert census.take(file, MARKER) == Census(pages=2, whole=2, copies=1)


def test_a_page_on_its_way_through_the_cipher_is_the_zones(tmp_path: Path) -> None:
    half = page(9)[:2048] + os.urandom(2048)
    assert census.take(dump(tmp_path, page(7), half), MARKER) == Census(pages=2, whole=1, copies=0)
    # Of a page that is elsewhere as a whole, the same half is a copy: also where it comes first.
    assert census.take(dump(tmp_path, half, page(9)), MARKER) == Census(pages=1, whole=1, copies=1)


def test_what_lies_askew_is_a_copy_in_each_frame_that_it_reaches(tmp_path: Path) -> None:
    askew = bytes(100) + page(1) + page(2) + bytes(PAGE - 100)
    assert census.take(dump(tmp_path, askew), MARKER) == Census(pages=0, whole=0, copies=3)
    alone = bytes(PAGE - 8) + MARKER + bytes(PAGE - 8)
    assert census.take(dump(tmp_path, alone), MARKER) == Census(pages=0, whole=0, copies=2)


def test_other_markers_and_numbers_that_are_none_do_not_count_as_pages(tmp_path: Path) -> None:
    torn = (MARKER + os.urandom(16)) * 128
    file = dump(tmp_path, page(3, marker=bytes(16)[:15] + b"x"), torn)
    assert census.take(file, MARKER) == Census(pages=0, whole=0, copies=1)


def test_it_is_a_program_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = dump(tmp_path, page(0), page(1), page(1))
    assert census.main([str(file), MARKER.hex()]) == 0
    assert capsys.readouterr().out == "2 pages (2 of them whole), 1 copies\n"
    assert census.main([str(file), "0102"]) == 1
    assert "16 bytes" in capsys.readouterr().err
    with pytest.raises(UsageError, match="missing"):
        census.take(tmp_path / "missing", MARKER)
