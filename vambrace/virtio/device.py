"""What every virtio device is to the transport."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

from vambrace.virtio.memory import GuestMemory
from vambrace.virtio.queue import Queue

VERSION_1 = 1 << 32


class Device(ABC):
    """All methods are called with the transport's lock held, from vCPU threads or the I/O thread.

    Those that look at guest memory raise ``GuestFault``; the transport then stops the device.
    """

    kind: int  # virtio device number
    queues: int
    features: int = VERSION_1
    config: bytes = b""
    #: Served where the driver notifies, in the vCPU's thread: for a driver that waits for each answer.
    direct: bool = False

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:  # noqa: B027
        """The driver is ready; queues it did not set up are None."""

    @abstractmethod
    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        """Serve queue ``index`` for at most its size in requests (``Queue.requests``)."""

    def reset(self) -> None:  # noqa: B027
        """Forget everything about the driver."""

    def close(self) -> None:  # noqa: B027
        """Free what the device holds. May be called once, also if the device never ran."""


class KernelDevice(Device):
    """A device whose queues are served inside the kernel (vhost)."""

    @abstractmethod
    def connect(
        self, memory: GuestMemory, rings: Sequence[Ring | None], kicks: Sequence[int], interrupt: int
    ) -> None:
        """Hand validated rings, their kick eventfds and the interrupt's eventfd to the kernel."""


class Ring:
    """Addresses (guest-physical) of one queue as the driver set it up."""

    def __init__(self, size: int, descriptors: int, available: int, used: int) -> None:
        self.size = size
        self.descriptors = descriptors
        self.available = available
        self.used = used


def signal(eventfd: int) -> None:
    os.eventfd_write(eventfd, 1)
