"""The console device with two ports (virtio 1.2, section 5.3): the guest's console and the agent's port."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from vambrace.virtio.device import VERSION_1, Device
from vambrace.virtio.memory import GuestFault
from vambrace.virtio.queue import Chain, Queue

AGENT_PORT = "vambrace.agent"
REQUEST_LIMIT = 1 << 20  # bytes in one request of the guest
PENDING_LIMIT = 1 << 20  # bytes that wait for the guest, at each port
CHUNK = 32 << 10

RX_CONSOLE, TX_CONSOLE, RX_CONTROL, TX_CONTROL, RX_AGENT, TX_AGENT = range(6)
_CONSOLE, _AGENT = 0, 1

_MULTIPORT = 1 << 1
_CONTROL = struct.Struct("<IHH")
_DEVICE_READY, _PORT_ADD, _PORT_READY, _CONSOLE_PORT, _PORT_OPEN, _PORT_NAME = 0, 1, 3, 4, 6, 7

Sink = Callable[[bytes], None]


class Console(Device):
    """``agent`` gets what the guest writes to its agent's port, in pieces of at most ``CHUNK`` bytes, and where it is
    None there is no such port; ``console`` gets what the guest prints, or nobody where it is None."""

    kind = 3
    queues = 6
    features = VERSION_1 | _MULTIPORT
    config = struct.pack("<HHII", 0, 0, 2, 0)  # columns, rows, ports, emergency write

    def __init__(self, agent: Sink | None, console: Sink | None) -> None:
        self._sinks = {TX_AGENT: agent, TX_CONSOLE: console}
        self._ports = (_CONSOLE, _AGENT) if agent is not None else (_CONSOLE,)
        self._pending = {RX_CONSOLE: bytearray(), RX_AGENT: bytearray()}
        self._control: list[bytes] = []
        self._open: set[int] = set()  # queues whose port the guest has open

    def reset(self) -> None:
        for pending in self._pending.values():
            pending.clear()
        self._control.clear()
        self._open.clear()

    def send(self, index: int, data: bytes) -> bool:
        """Queue bytes for the reader of queue ``index``: RX_AGENT or RX_CONSOLE. False if too many wait already.

        Have that queue processed afterwards.
        """
        if len(self._pending[index]) + len(data) > PENDING_LIMIT:
            return False
        self._pending[index] += data
        return True

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        queue = queues[index]
        if queue is None:
            return
        if index in self._sinks:
            self._output(queue, self._sinks[index])
        elif index == TX_CONTROL:
            for chain in queue.requests():
                self._command(chain)
                queue.push(chain, 0)
            self._answer(queues)
        elif index == RX_CONTROL:
            self._answer(queues)
        for receiving in self._open:
            self._input(queues, receiving)

    def _output(self, queue: Queue, sink: Sink | None) -> None:
        for chain in queue.requests():
            if sum(len(part) for part in chain.readable) > REQUEST_LIMIT:
                raise GuestFault("console request is too long")
            if sink is not None:
                for part in chain.readable:
                    for start in range(0, len(part), CHUNK):
                        sink(bytes(part[start : start + CHUNK]))
            queue.push(chain, 0)

    def _input(self, queues: Sequence[Queue | None], index: int) -> None:
        """Give a port what waits for it, once it is open: Linux drops what comes before."""
        queue, pending = queues[index], self._pending[index]
        if queue is None:
            return
        for _ in range(queue.size):  # as in ``requests``: buffers without room must not keep this thread
            if not pending or (chain := queue.pop()) is None:
                return
            count = chain.write(bytes(pending[:CHUNK]))
            del pending[:count]
            queue.push(chain, count)

    def _command(self, chain: Chain) -> None:
        message = chain.prefix(_CONTROL.size)
        if len(message) != _CONTROL.size:
            raise GuestFault("console control message is too short")
        port, event, value = _CONTROL.unpack(message)
        if event == _DEVICE_READY and value == 1:
            for added in self._ports:
                self._tell(added, _PORT_ADD, 1)
        elif event == _PORT_READY and value == 1 and port == _CONSOLE:
            self._tell(_CONSOLE, _CONSOLE_PORT, 1)
            self._tell(_CONSOLE, _PORT_OPEN, 1)
        elif event == _PORT_READY and value == 1 and port == _AGENT and _AGENT in self._ports:
            self._tell(_AGENT, _PORT_NAME, 1, AGENT_PORT.encode())
            self._tell(_AGENT, _PORT_OPEN, 1)
        elif event == _PORT_OPEN and port in self._ports:
            receiving = RX_AGENT if port == _AGENT else RX_CONSOLE
            if value == 1:
                self._open.add(receiving)
            else:
                self._open.discard(receiving)
                self._pending[receiving].clear()  # nobody is left who asked for it

    def _tell(self, port: int, event: int, value: int, data: bytes = b"") -> None:
        if len(self._control) >= 64:
            raise GuestFault("console control messages are not taken")
        self._control.append(_CONTROL.pack(port, event, value) + data)

    def _answer(self, queues: Sequence[Queue | None]) -> None:
        queue = queues[RX_CONTROL]
        if queue is None:
            return
        while self._control and (chain := queue.pop()) is not None:
            message = self._control.pop(0)
            if chain.capacity < len(message):
                raise GuestFault("console control buffer is too small")
            queue.push(chain, chain.write(message))
