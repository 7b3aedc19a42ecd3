"""Between the agent and a disk that the host has: what is changed, put back, mixed or cut off (docs/volumes.md)."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from machine import eventually
from plain_guest import Guest, sparse
from user import PROGRAMS

from vambrace.image.base import RuntimeBase

CUTS = int(os.environ.get("VAMBRACE_SOAK_CUTS", "20"))
CHANGED = "refused: volume records: what is on its disk was changed, or is older than its header"


def test_what_a_host_does_to_a_volume(base: RuntimeBase, tmp_path: Path) -> None:
    disks = {"volume_0": sparse(tmp_path / "volume", 32 << 20), "large": sparse(tmp_path / "large", 160 << 20)}
    guest = Guest(tmp_path, base, PROGRAMS / "disks/scenes.py", **disks)
    guest.run()
    said = dict(guest.said)
    older = "refused: volume records: the host gives an older copy of it, or another volume"
    another = "refused: volume records: the disk holds another volume, or this one with another key"
    assert said.pop("plaintext") == "False, False"
    assert said.pop("an older copy").startswith(older)
    for scene in (
        "the newest header and tags, older data",
        "the newest header, older tags and data",
        "a bit of each block",
        "a bit of the superblock of the tags",
    ):
        assert said.pop(scene) == CHANGED
    assert said.pop("a header that is not committed") == "refused: volume records: nobody answers"
    assert said.pop("after that") == said.pop("an answer that is lost") == "opens: third"
    assert said.pop("another key").startswith(another)
    assert said.pop("a new volume on a used disk") == "opens: No such file or directory"
    assert said.pop("a disk with copies of the superblock") == "opens: No such file or directory"
    assert said == {"end": "of it"}


@pytest.mark.soak
def test_power_cuts(base: RuntimeBase, tmp_path: Path) -> None:
    """At any moment, from the first header on: it opens again, and what was confirmed is there."""
    chance = random.Random(2026)
    disks = {"volume_0": sparse(tmp_path / "volume", 32 << 20), "broker": sparse(tmp_path / "broker", 1 << 20)}
    guest = Guest(tmp_path, base, PROGRAMS / "disks/cut.py", **disks)
    kept = opened = 0
    for cut in range(CUTS + 1):
        with guest.running():
            assert eventually(lambda: ("opening", "now") in guest.said, 120)
            # It takes some two seconds to open.
            time.sleep(chance.uniform(0, 5) if cut < CUTS else 10)
        for name, text in guest.said:
            if name == "found":
                count, whole, _ = text.split()
                assert whole == "True" and kept <= int(count), (cut, kept, text)
                opened += 1
            elif name == "kept":
                kept = int(text)
        print(f"cut {cut}: {guest.said[-1]}, opened {opened} times, {kept} records confirmed")
    assert opened > CUTS // 3 and kept
    assert dict(guest.said).keys() >= {"found", "kept"}
