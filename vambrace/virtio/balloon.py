"""The memory balloon (virtio 1.2, section 5.5), for one thing only: the guest reports pages that it has freed.

The device never asks for memory: its queues for that are there because the driver wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vambrace.virtio.device import VERSION_1, Device
from vambrace.virtio.queue import MAX_SIZE, Chain, Queue

PAGE = 4096
#: What is given back at a turn; Linux waits for each report, of at most 32 blocks of at most 4 MiB. Of what is reported
#: beyond that nothing happens: a report obliges to nothing.
LIMIT, MOST_RANGES = 256 << 20, MAX_SIZE

_REPORTING = 1 << 5
# The specification gives the reporting queue number 4, whatever else is offered. Linux (6.12, and 6.15 still) leaves no
# gaps: virtio_balloon has no name for the queue of a feature that was not negotiated, and vm_find_vqs() of virtio_mmio
# counts names only. Without statistics (2) and hints (3) it takes number 2, as QEMU does. A change to the
# specification's number was proposed in July 2024 ("virtio: fix vq # for balloon"). Nothing else is behind either
# number here, so both are served.
REPORTING_QUEUES = (2, 4)

Discard = Callable[[int, int], None]


class Balloon(Device):
    """``discard`` gets an offset in guest memory and a length, whole pages, which it may make zero.

    A guest that reports what it still uses loses that, and nothing else: ranges lie in its own memory.
    """

    kind = 5
    queues = 5
    features = VERSION_1 | _REPORTING
    config = bytes(8)  # pages that are wanted: none; what the driver says it gave is not kept

    def __init__(self, discard: Discard) -> None:
        self._discard = discard
        self._reporting = False

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        self._reporting = bool(features & _REPORTING)

    def reset(self) -> None:
        self._reporting = False

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        queue = queues[index]
        if queue is None:
            return
        report = _Turn(self._discard) if self._reporting and index in REPORTING_QUEUES else None
        for chain in queue.requests():
            if report is not None:
                report.serve(chain)
            queue.push(chain, 0)


class _Turn:
    """What may still be given back until the next kick."""

    def __init__(self, discard: Discard) -> None:
        self._discard = discard
        self._bytes, self._ranges = LIMIT, MOST_RANGES

    def serve(self, chain: Chain) -> None:
        for offset, length in chain.places[: self._ranges]:
            self._ranges -= 1
            start = -(-offset // PAGE) * PAGE
            whole = min((offset + length) // PAGE * PAGE - start, self._bytes)
            if whole > 0:
                self._bytes -= whole
                self._discard(start, whole)
