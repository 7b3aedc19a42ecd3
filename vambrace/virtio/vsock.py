"""The socket device (virtio 1.2, section 5.10), served by the kernel's vhost-vsock.

Guest data passes through the host kernel's socket buffers only, never through this process.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence

from vambrace.errors import KvmError
from vambrace.virtio.device import VERSION_1, KernelDevice, Ring
from vambrace.virtio.memory import GuestFault, GuestMemory
from vambrace.virtio.queue import Queue

FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE  # smaller ones are the hypervisor's and the host's

_SET_FEATURES = 0x4008AF00
_SET_OWNER, _SET_MEMORY = 0xAF01, 0x4008AF03
_SET_RING_SIZE, _SET_RING_ADDRESSES, _SET_RING_BASE = 0x4008AF10, 0x4028AF11, 0x4008AF12
_SET_RING_KICK, _SET_RING_CALL = 0x4008AF20, 0x4008AF21
_SET_CID, _SET_RUNNING = 0x4008AF60, 0x4004AF61

_RINGS = 2  # received, sent; the third queue, for events, never has any


class Vsock(KernelDevice):
    """``device`` is an open /dev/vhost-vsock, closed with this.

    Raises ``KvmError``: it is something else, or ``cid`` is wrong or taken.
    """

    kind = 19
    queues = 3

    def __init__(self, device: int, cid: int) -> None:
        self._fd = device
        try:
            if not FIRST_CID <= cid <= LAST_CID:
                raise KvmError(f"vsock: {cid} is not the address of a guest")
            self._call(_SET_OWNER, 0, "take the device")
            self._call(_SET_CID, struct.pack("<Q", cid), f"take address {cid}")
        except KvmError:
            self.close()
            raise
        self.config = struct.pack("<Q", cid)
        self.features = VERSION_1
        self._features = VERSION_1
        self._running = False

    def close(self) -> None:
        os.close(self._fd)

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        self._features = features

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        pass  # only the event queue comes here, and there are no events

    def connect(
        self, memory: GuestMemory, rings: Sequence[Ring | None], kicks: Sequence[int], interrupt: int
    ) -> None:
        try:
            self._call(_SET_FEATURES, struct.pack("<Q", self._features), "accept features")
            table = struct.pack("<IIQQQQ", 1, 0, memory.base, memory.size, memory.host, 0)
            self._call(_SET_MEMORY, table, "map guest memory")
            for index in range(_RINGS):
                ring = rings[index]
                if ring is None:
                    raise GuestFault("socket driver started without its queues")
                self._ring(memory, index, ring)
                self._call(_SET_RING_KICK, struct.pack("<Ii", index, kicks[index]), "connect a notification")
                self._call(_SET_RING_CALL, struct.pack("<Ii", index, interrupt), "connect an interrupt")
            self._call(_SET_RUNNING, struct.pack("<i", 1), "start")
        except KvmError as error:
            # What the kernel refuses here came from the guest.
            raise GuestFault(error.message) from error
        self._running = True

    def _ring(self, memory: GuestMemory, index: int, ring: Ring) -> None:
        self._call(_SET_RING_SIZE, struct.pack("<II", index, ring.size), "set a ring's size")
        self._call(_SET_RING_BASE, struct.pack("<II", index, 0), "set a ring's position")
        descriptors = memory.host_address(ring.descriptors, 16 * ring.size)
        available = memory.host_address(ring.available, 6 + 2 * ring.size)
        used = memory.host_address(ring.used, 6 + 8 * ring.size)
        addresses = struct.pack("<IIQQQQ", index, 0, descriptors, used, available, 0)
        self._call(_SET_RING_ADDRESSES, addresses, "set a ring's addresses")

    def reset(self) -> None:
        if self._running:
            self._running = False
            self._call(_SET_RUNNING, struct.pack("<i", 0), "stop")

    def _call(self, request: int, argument: int | bytes, what: str) -> None:
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise KvmError(f"vsock: cannot {what}: {error.strerror}") from error
