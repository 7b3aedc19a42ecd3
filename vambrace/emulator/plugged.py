"""PCI devices of the emulated server for its domains: an NVMe disk and a network card, plugged in while it runs.

QEMU's NVMe cannot be saved, so a saved state is of a machine with empty slots, and what starts or resumes gets its
devices at the gate. The card's peer is QEMU: whoever connects to PEER gets back what they send.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vambrace.emulator.qemu import Monitor
from vambrace.errors import ServerError

#: By vendor:device, as the host's settings name them.
IDENTITIES: Final = ("1b36:0010", "1af4:1041")
DISK_BYTES: Final = 64 << 20
#: The card's network, and where somebody answers: an address for a domain, address and port of the peer.
ADDRESS: Final = "10.0.3.15/24"
PEER: Final = ("10.0.3.100", 7)
_BUFFER_MIB: Final = 1


def plug(monitor: Monitor, disk: Path) -> None:
    """Both devices, each below a root port of its own; ``disk`` is made where it is not there. Raises ServerError."""
    try:
        disk.touch(mode=0o600)
        if not disk.stat().st_size:
            os.truncate(disk, DISK_BYTES)
    except OSError as error:
        raise ServerError(f"{disk}: {error.strerror}", hint="free some space, or set VAMBRACE_SERVER") from error
    monitor.execute(
        "blockdev-add", driver="raw", **{"node-name": "nvme"}, file={"driver": "file", "filename": str(disk)}
    )
    # With a memory buffer of its own, as many have: what a guest puts there, the device reads without the IOMMU's help.
    monitor.execute(
        "device_add",
        driver="nvme",
        id="disk",
        serial="vambrace",
        drive="nvme",
        bus="slot0",
        cmb_size_mb=_BUFFER_MIB,
    )
    forward = {"str": f"tcp:{PEER[0]}:{PEER[1]}-cmd:cat"}
    monitor.execute("netdev_add", type="user", id="card", net="10.0.3.0/24", restrict=True, guestfwd=[forward])
    monitor.execute(
        "device_add",
        driver="virtio-net-pci",
        id="nic",
        netdev="card",
        bus="slot1",
        romfile="",
        iommu_platform=True,
        **{"disable-legacy": "on"},
    )
