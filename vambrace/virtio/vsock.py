"""The socket device (virtio 1.2, section 5.10), served by the kernel's vhost-vsock.

Guest data passes through the host kernel's socket buffers only, never through this process.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vambrace.errors import KvmError
from vambrace.virtio import vhost
from vambrace.virtio.device import VERSION_1, KernelDevice, Ring
from vambrace.virtio.memory import GuestFault, GuestMemory
from vambrace.virtio.queue import Queue
from vambrace.virtio.vhost import Vhost, all_set_up

FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE  # smaller ones are the hypervisor's and the host's

_SET_CID, _SET_RUNNING = 0x4008AF60, 0x4004AF61
#: All that this device is asked (vambrace/jail/kinds.py).
REQUESTS = (*vhost.REQUESTS, _SET_CID, _SET_RUNNING)

_RINGS = 2  # received, sent; the third queue, for events, never has any


class Vsock(KernelDevice):
    """``device`` is an open /dev/vhost-vsock, closed with this.

    Raises ``KvmError``: it is something else, or ``cid`` is wrong or taken.
    """

    kind = 19
    queues = 3

    def __init__(self, device: int, cid: int) -> None:
        self._vhost = Vhost(device, "vsock")
        try:
            if not FIRST_CID <= cid <= LAST_CID:
                raise KvmError(f"vsock: {cid} is not the address of a guest")
            self._vhost.take()
            self._vhost.call(_SET_CID, struct.pack("<Q", cid), f"take address {cid}")
        except KvmError:
            self.close()
            raise
        self.config = struct.pack("<Q", cid)
        self.features = VERSION_1
        self._features = VERSION_1
        self._running = False

    def close(self) -> None:
        self._vhost.close()

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        self._features = features

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        pass  # only the event queue comes here, and there are no events

    def connect(
        self, memory: GuestMemory, rings: Sequence[Ring | None], kicks: Sequence[int], interrupt: int
    ) -> None:
        try:
            self._vhost.connect(memory, self._features, all_set_up(rings[:_RINGS], "socket"), kicks, interrupt)
            self._vhost.call(_SET_RUNNING, struct.pack("<i", 1), "start")
        except KvmError as error:
            # What the kernel refuses here came from the guest.
            raise GuestFault(error.message) from error
        self._running = True

    def reset(self) -> None:
        if self._running:
            self._running = False
            self._vhost.call(_SET_RUNNING, struct.pack("<i", 0), "stop")
