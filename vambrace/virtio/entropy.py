"""The entropy device (virtio 1.2, section 5.4): the host kernel's generator."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vambrace.virtio.device import Device
from vambrace.virtio.queue import Queue

LIMIT = 4096  # bytes a request; the driver asks again for more


class Entropy(Device):
    kind = 4
    queues = 1

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        queue = queues[0]
        if queue is None:
            return
        for chain in queue.requests():
            queue.push(chain, chain.write(os.urandom(min(chain.capacity, LIMIT))))
