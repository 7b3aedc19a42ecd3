"""The contract of the C core (core/python). Use vambrace.pager instead."""

from collections.abc import Sequence

from typing_extensions import Buffer

MINIMUM_WINDOW: int  # pages: no zone's window is smaller, unless the zone is
MAXIMUM_ZONES: int
PIN_HEADROOM: int  # pages of a window that can never be pinned
EXIT_FAILED: int  # exit status of a process that left a failed window open for 5 s

# Statuses, as in Error.args[0]; negative ones are −errno.
INVALID: int
CLOSED: int
FAILED: int
AUTHENTICATION: int
PINNED: int
NO_CIPHER: int
NO_USERFAULTFD: int
NO_MOVE: int
SWAP: int
BUDGET: int

class Error(Exception):
    """args = (status, message)."""

    args: tuple[int, str]

class Window(Buffer):
    """All methods raise Error. Its buffer is guest memory, writable."""

    def __new__(
        cls,
        zones: Sequence[tuple[int, int] | tuple[int, int, int]],  # pages, percent, pin budget (0)
        key: Buffer,
        instance: Buffer,
        cipher: str,
        handler_cpus: Sequence[int],  # none: one handler, anywhere
        placed: bool,  # page frames are chosen: draw and keep until none is missing, then settle, before anything else
        userfaultfd: int,  # an open /dev/userfaultfd; 0: by the system call
    ) -> Window: ...
    def draw(self, pages: int) -> int: ...  # address
    def keep(self, pages: Buffer) -> int: ...  # bit i % 8 of byte i // 8 is page i; how many are missing still
    def settle(self) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def side(self) -> int: ...  # where frames of pages that are not in guest memory lie, at the same offsets
    @property
    def size(self) -> int: ...
    @property
    def failure_fd(self) -> int: ...
    def failure(self) -> tuple[int, int, int, str] | None: ...  # zone, page, status, message
    def write(self, offset: int, data: Buffer) -> None: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def digests(self, offset: int, length: int, algorithm: str) -> bytes: ...
    def set_percent(self, zone: int, percent: int) -> None: ...
    def stats(self, zone: int) -> tuple[int, ...]: ...  # ZoneStats in order, the histogram behind
    def sample(self, zone: int, on: bool) -> None: ...
    def reuse(self, zone: int) -> tuple[bool, int, int, int, tuple[int, ...]]: ...  # Reuse in order
    def pin(self, offset: int, length: int) -> None: ...
    def unpin(self, offset: int, length: int) -> None: ...
    def discard(self, offset: int, length: int) -> None: ...
    def close(self) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def lock_process() -> None: ...

# This process may from now on make only the system calls that the kernel's filter (struct sock_filter …) lets pass.
def restrict_calls(program: Buffer) -> None: ...
def address_of(memory: Buffer) -> int: ...  # where this process has it, valid as long as the memory is there

# How many ns it takes to read lines of page `target` of `memory` (page-aligned, zeros) after those of `pages` (an array
# of type I) were read so many times, and so many ns have passed (core/timing.h).
def time_walk(memory: Buffer, target: int, pages: Buffer, rounds: int, wait_ns: int) -> int: ...
