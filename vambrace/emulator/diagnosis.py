"""Why a machine did not start, from what its firmware said: which component was refused.

Firmware that refuses something stops and says so once on the console; waiting longer changes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from vambrace.errors import BootRefused

#: TF-A's numbers of images (include/export/common/tbbr/tbbr_img_def_exp.h), and their names in a token.
_IMAGES: Final = {
    3: "SECURE_RT_EL3",
    4: "SECURE_RT_EL1_OPTEE",
    5: "BL_33",
    21: "SECURE_RT_EL1_OPTEE_EXTRA1",
    22: "SECURE_RT_EL1_OPTEE_EXTRA2",
}
_PINNED: Final = {"device tree": "HOST_DEVICE_TREE", "kernel": "HOST_KERNEL", "initrd": "HOST_INITRD"}

_BL2: Final = re.compile(r"ERROR: +Failed to load BL2 firmware")
_LOADED_BY_BL2: Final = re.compile(r"ERROR: +BL2: Failed to load image id (\d+)")
_STUB: Final = re.compile(r"vambrace: the host's (device tree|kernel|initrd) is not the one")
_ROOT: Final = re.compile(r"vambrace initrd: (dm-verity refuses )?/dev/vda|device-mapper: verity: .* is corrupted")
_FUSE: Final = re.compile(r"ERROR: +vambrace: (the fuse is blank or damaged|this machine is decommissioned)")

_NOT_TAKEN: Final = "it was changed, signed with another key, or is older than the fuse allows"
_HINT: Final = "'vambrace server build' makes what this machine starts; 'vambrace server reset' makes a new machine"


def refusal(console: Path) -> BootRefused | None:
    """What the firmware or the host refused to start, by the console's log; None where it said nothing of the kind."""
    try:
        text = console.read_text(errors="replace")
    except OSError:
        return None
    if found := _FUSE.search(text):
        return BootRefused(f"the machine does not start: {found[1]}", component="fuse", hint=_HINT)
    if _BL2.search(text):
        return BootRefused(f"BL1 does not start BL_2: {_NOT_TAKEN}", component="BL_2", hint=_HINT)
    if found := _LOADED_BY_BL2.search(text):
        name = _IMAGES.get(int(found[1]), f"image {found[1]}")
        return BootRefused(f"BL2 does not start {name}: {_NOT_TAKEN}", component=name, hint=_HINT)
    if found := _STUB.search(text):
        name = _PINNED[found[1]]
        return BootRefused(f"the stub does not start {name}: it pins another", component=name, hint=_HINT)
    if _ROOT.search(text):
        return BootRefused("HOST_ROOT is not what was measured: it was changed", component="HOST_ROOT", hint=_HINT)
    return None
