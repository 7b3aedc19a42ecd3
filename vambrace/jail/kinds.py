"""What is handed into the jail: kinds of descriptors, and what may be asked of those that are devices.

**One more thing for domains** is one more row of KINDS, and its name for those domains that have it in
``vambrace/machine/descriptors.py``. The filter allows the requests (ioctls) of all rows, and no others: it cannot tell
descriptors from each other, but a process has only those that it was given.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vambrace.kvm import abi
from vambrace.vfio import abi as vfio
from vambrace.virtio import block, net, vsock

# linux/userfaultfd.h: of the device, then of what it makes (core/uffd.c)
_USERFAULTFD: Final = (
    *(0xAA00,),
    *(0xC018AA3F, 0xC020AA00, 0x8010AA01),  # API, REGISTER, UNREGISTER
    *(0x8010AA02, 0xC028AA03, 0xC028AA05),  # WAKE, COPY, MOVE
)


class Kind(NamedTuple):
    """What a descriptor of this kind must be: a device, which has the name ``device`` below /dev, or a file, to read or
    ``writable``.

    ``hint`` is what to do where the device cannot be opened; ``requests`` are the ioctls on it, and on what it makes.
    ``handed``: it has no name there, and comes from whoever gives domains their PCI devices.
    """

    device: str = ""
    hint: str = ""
    requests: tuple[int, ...] = ()
    writable: bool = False
    handed: bool = False


KINDS: Final = {
    "config": Kind(),
    "kernel": Kind(),
    "initrd": Kind(),
    "disk": Kind(),
    "volume": Kind(requests=block.REQUESTS, writable=True),
    "kvm": Kind("kvm", "the host must be arm64 Linux started at EL2, with KVM", abi.REQUESTS),
    "userfaultfd": Kind("userfaultfd", "run Linux 6.8 or newer, with userfaultfd", _USERFAULTFD),
    "vhost-vsock": Kind("vhost-vsock", "load the module vhost_vsock", vsock.REQUESTS),
    "net": Kind("net/tun", "load the module tun", net.TAP_REQUESTS),
    "vhost-net": Kind("vhost-net", "load the module vhost_net", net.REQUESTS),
    # A PCI device, its IOMMU group and the container that this is in.
    "vfio": Kind(requests=vfio.DEVICE_REQUESTS, handed=True),
    "vfio-group": Kind(handed=True),
    "vfio-container": Kind(requests=vfio.CONTAINER_REQUESTS, handed=True),
}
