"""The part of the kernel's vhost interface that every device in it has (include/uapi/linux/vhost.h).

The kernel's thread belongs to the process that takes the device: it reads and writes guest memory through that
process's addresses, runs on its processors and in its cgroup.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence

from vambrace.errors import KvmError
from vambrace.virtio.device import Ring
from vambrace.virtio.memory import GuestFault, GuestMemory

_GET_FEATURES, _SET_FEATURES = 0x8008AF00, 0x4008AF00
_SET_OWNER, _SET_MEMORY = 0xAF01, 0x4008AF03
_SET_RING_SIZE, _SET_RING_ADDRESSES, _SET_RING_BASE = 0x4008AF10, 0x4028AF11, 0x4008AF12
_SET_RING_KICK, _SET_RING_CALL = 0x4008AF20, 0x4008AF21
#: All that every such device is asked: a VMM in its jail can ask nothing else (vambrace/jail/kinds.py).
REQUESTS = (
    *(_GET_FEATURES, _SET_FEATURES, _SET_OWNER, _SET_MEMORY, _SET_RING_SIZE, _SET_RING_ADDRESSES, _SET_RING_BASE),
    *(_SET_RING_KICK, _SET_RING_CALL),
)


class Vhost:
    """An open vhost device, ``fd``, which belongs to this object; ``what`` it is called in errors.

    Every method raises ``KvmError``: the kernel refuses.
    """

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what

    def close(self) -> None:
        os.close(self._fd)

    def take(self) -> None:
        """Make the device this process's."""
        self.call(_SET_OWNER, 0, "take the device")

    def offered(self) -> int:
        """Feature bits that the kernel has."""
        answer = bytearray(8)
        self.call(_GET_FEATURES, answer, "ask for its features")
        return int.from_bytes(answer, "little")

    def connect(
        self, memory: GuestMemory, features: int, rings: Sequence[Ring], kicks: Sequence[int], interrupt: int
    ) -> None:
        """Give the kernel guest memory and the rings in their order. Also raises ``GuestFault``."""
        self.call(_SET_FEATURES, struct.pack("<Q", features), "accept features")
        table = struct.pack("<IIQQQQ", 1, 0, memory.base, memory.size, memory.host, 0)
        self.call(_SET_MEMORY, table, "map guest memory")
        for index, ring in enumerate(rings):
            self._ring(memory, index, ring)
            self.call(_SET_RING_KICK, struct.pack("<Ii", index, kicks[index]), "connect a notification")
            self.call(_SET_RING_CALL, struct.pack("<Ii", index, interrupt), "connect an interrupt")

    def _ring(self, memory: GuestMemory, index: int, ring: Ring) -> None:
        self.call(_SET_RING_SIZE, struct.pack("<II", index, ring.size), "set a ring's size")
        self.call(_SET_RING_BASE, struct.pack("<II", index, 0), "set a ring's position")
        # The kernel takes these addresses as they are, so what it may touch is checked here: with the two bytes at the
        # end of either ring that the feature of event indexes uses.
        descriptors = memory.host_address(ring.descriptors, 16 * ring.size)
        available = memory.host_address(ring.available, 6 + 2 * ring.size)
        used = memory.host_address(ring.used, 6 + 8 * ring.size)
        addresses = struct.pack("<IIQQQQ", index, 0, descriptors, used, available, 0)
        self.call(_SET_RING_ADDRESSES, addresses, "set a ring's addresses")

    def call(self, request: int, argument: int | bytes | bytearray, doing: str) -> None:
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise KvmError(f"{self._what}: cannot {doing}: {error.strerror}") from error


def all_set_up(rings: Sequence[Ring | None], what: str) -> list[Ring]:
    """The rings, none of which may be missing. Raises ``GuestFault``."""
    found = [ring for ring in rings if ring is not None]
    if len(found) != len(rings):
        raise GuestFault(f"{what} driver started without its queues")
    return found
