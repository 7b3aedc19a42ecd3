"""What is made of a console on which firmware refused something (the server tests have real ones)."""

from __future__ import annotations

from pathlib import Path

import pytest

from vambrace.emulator.diagnosis import refusal

SAID = {
    "NOTICE:  BL1: v2.12\nERROR:   Failed to load BL2 firmware.\n": "BL_2",
    "ERROR:   BL2: Failed to load image id 3 (-80)\n": "SECURE_RT_EL3",
    "ERROR:   BL2: Failed to load image id 4 (-80)\n": "SECURE_RT_EL1_OPTEE",
    "ERROR:   BL2: Failed to load image id 21 (-80)\n": "SECURE_RT_EL1_OPTEE_EXTRA1",
    "ERROR:   BL2: Failed to load image id 5 (-80)\n": "BL_33",
    "ERROR:   BL2: Failed to load image id 12 (-2)\n": "image 12",
    "vambrace: the host's device tree is not the one that this firmware was built for; halted\r\n": "HOST_DEVICE_TREE",
    "vambrace: the host's kernel is not the one that this firmware was built for; halted\r\n": "HOST_KERNEL",
    "vambrace: the host's initrd is not the one that this firmware was built for; halted\r\n": "HOST_INITRD",
    "[    1.2] device-mapper: verity: 254:0: data block 0 is corrupted\n": "HOST_ROOT",
    "[    1.2] vambrace initrd: dm-verity refuses /dev/vda\n": "HOST_ROOT",
    # What the fuse says comes first: BL1 then does not load BL2 either.
    "ERROR:   vambrace: the fuse is blank or damaged\nERROR:   Failed to load BL2 firmware.\n": "fuse",
    "ERROR:   vambrace: this machine is decommissioned\nERROR:   Failed to load BL2 firmware.\n": "fuse",
}


@pytest.mark.parametrize(("text", "component"), SAID.items(), ids=SAID.values())
def test_what_was_refused_is_named(tmp_path: Path, text: str, component: str) -> None:
    console = tmp_path / "console.log"
    console.write_text(text)
    found = refusal(console)
    assert found is not None and found.component == component
    assert "\n" not in found.message and found.hint


def test_a_console_that_says_nothing_of_the_kind(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    assert refusal(console) is None
    console.write_bytes(b"NOTICE:  BL1: Booting BL2\nNOTICE:  BL2: v2.12\n\xff\n[    0.1] KASLR disabled\n")
    assert refusal(console) is None
