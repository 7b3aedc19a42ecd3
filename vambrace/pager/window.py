"""Python's face of the C core in core/: contract in docs/architecture.md, section 4."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from vambrace.errors import PageAuthenticationError, PagerError
from vambrace.pager import _core
from vambrace.record import Record

PAGE_SIZE = 4096
#: Pages: no zone's window is smaller, unless the zone itself is.
MINIMUM_WINDOW = _core.MINIMUM_WINDOW
#: Exit status of a process whose window failed and was not closed within five seconds.
EXIT_FAILED = _core.EXIT_FAILED
#: ``Failure.reason`` of a page whose ciphertext was changed.
AUTHENTICATION = "authentication"

_HINTS = {
    _core.NO_USERFAULTFD: "run as root, or with access to /dev/userfaultfd",
    _core.NO_MOVE: "run Linux 6.8 or newer",
    _core.NO_CIPHER: "use cipher 'aes-256-gcm', or a libcrypto that has the other one (OpenSSL 3.1 or newer)",
    _core.SWAP: "turn swap off, or give CAP_IPC_LOCK",
    _core.PINNED: "release pages that devices hold, or ask for a lower percentage",
}


_LOCK_HINTS = {
    -errno.EPERM: "run as root, or give CAP_IPC_LOCK",
    -errno.ENOMEM: "give CAP_IPC_LOCK, or allow more locked memory (RLIMIT_MEMLOCK, 'ulimit -l')",
}


def window_pages(pages: int, percent: int) -> int:
    """How many of a zone's ``pages`` may be plaintext when ``percent`` of them must be encrypted."""
    return min(pages, max((100 - percent) * pages // 100, MINIMUM_WINDOW))


class ZoneStats(Record):
    """Counts of one zone, in pages unless said. ``plaintext_max`` is since the last change of percentage;
    ``window`` is what is allowed at this instant (while a rise is under way, more than its target)."""

    pages: int
    percent: int
    window: int
    plaintext: int
    plaintext_max: int
    faults: int
    zero_faults: int
    evictions: int
    bytes_encrypted: int
    bytes_decrypted: int


class Failure(Record):
    """Why the window stopped, at ``page`` (index within ``zone``). ``reason`` is "authentication" when its
    ciphertext, tag or version was changed, else what the system said."""

    zone: int
    page: int
    reason: str


class Window:
    """Owns guest memory; of each zone no more than ``window_pages`` pages are ever plaintext.

    ``zones`` are (pages of 4096 bytes, percent), contiguous in order, at most 16; ``key`` has 32 bytes and
    ``instance`` 16, both unique to this run of the Realm (a key must never serve two windows: nonces would
    repeat). ``handler_cpu`` pins the thread that answers page faults, best to the vCPU's own CPU.

    Threads, vCPUs and vhost workers just use the memory. When a page fails authentication the window stops:
    ``failure_fd`` becomes readable, and whoever touches an absent page waits until ``close``. A Python
    thread may so wait with the GIL held; hence, if ``close`` does not come within five seconds, the window
    wipes keys and memory itself and ends the process with ``EXIT_FAILED``.

    All methods raise PagerError when the window is closed or failed.
    """

    def __init__(
        self,
        zones: Sequence[tuple[int, int]],
        key: bytes,
        instance: bytes,
        *,
        cipher: str = "aes-256-gcm",
        handler_cpu: int | None = None,
    ) -> None:
        """Raises PagerError: an argument out of range, no userfaultfd, no UFFDIO_MOVE, no such cipher."""
        try:
            self._core = _core.Window(
                zones, key, instance, cipher, -1 if handler_cpu is None else handler_cpu
            )
        except _core.Error as error:
            raise _pager_error(error) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise PagerError(f"the window's arguments are wrong: {error}") from None
        self.address: int = self._core.address
        self.size: int = self._core.size
        self.failure_fd: int = self._core.failure_fd
        self._view = memoryview(self._core)
        self._failure: Failure | None = None
        self._closed = False

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def failure(self) -> Failure | None:
        """What stopped the window, also after ``close``; None while all is well."""
        if self._failure is None and not self._closed and (found := self._core.failure()) is not None:
            zone, page, status, message = found
            self._failure = Failure(zone, page, AUTHENTICATION if status == _core.AUTHENTICATION else message)
        return self._failure

    def load(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes ``data`` at ``offset`` bytes, evicting as it goes; other threads run meanwhile.

        Raises PagerError (out of range, or ``data`` lies in guest memory), PageAuthenticationError.
        """
        try:
            self._core.write(offset, data)
        except (_core.Error, OverflowError) as error:
            raise self._error(error) from None

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of guest memory from ``offset`` on. Raises as ``load`` does."""
        try:
            return self._core.read(offset, length)
        except (_core.Error, OverflowError) as error:
            raise self._error(error) from None

    def digests(self, offset: int, length: int, algorithm: str) -> bytes:
        """The hash (32 bytes, ``algorithm`` by hashlib's name) of each page of ``length`` bytes from the page at
        ``offset`` on, one after the other, the last padded with zeros. Raises as ``load`` does."""
        try:
            return self._core.digests(offset, length, algorithm)
        except (_core.Error, OverflowError) as error:
            raise self._error(error) from None

    def set_percent(self, zone: int, percent: int) -> None:
        """Returns when the invariant holds at the new value (0..100); lowering is immediate.

        Raises PagerError: out of range, or so many pages pinned by devices that it is impossible; then the
        percentage stays as it was.
        """
        try:
            self._core.set_percent(zone, percent)
        except (_core.Error, OverflowError) as error:
            raise self._error(error) from None

    def stats(self, zone: int) -> ZoneStats:
        """Raises PagerError: no such zone."""
        try:
            return ZoneStats(*self._core.stats(zone))
        except (_core.Error, OverflowError) as error:
            raise self._error(error) from None

    def memory(self) -> memoryview:
        """All guest memory, writable: one and the same view, valid until ``close``.

        An access may wait for a page with the GIL held (the handler needs no GIL). A slice that is still
        kept when the window closes must not be used any more.
        """
        return self._view

    def close(self) -> None:
        """Stops the handler, wipes keys and plaintext, gives the memory back. May be called twice.

        Stop the vCPUs first: whoever waits for a page or comes later gets EFAULT (kernel) or SIGSEGV.
        """
        if self._closed:
            return
        self.failure()
        self._closed = True
        # BufferError: somebody holds a slice. The addresses stay reserved, inaccessible, until it is gone.
        with suppress(BufferError):
            self._view.release()
        self._core.close()

    def _error(self, error: _core.Error | OverflowError) -> PagerError:
        if isinstance(error, OverflowError):
            return PagerError("the encrypted window: a number is out of range")
        if error.args[0] in (_core.AUTHENTICATION, _core.FAILED) and (found := self.failure()) is not None:
            if found.reason == AUTHENTICATION:
                return PageAuthenticationError(found.zone, found.page)
            return PagerError(f"the window failed at page {found.page} of zone {found.zone}: {found.reason}")
        return _pager_error(error)


def lock_process() -> None:
    """Keeps all memory of this process, as it comes into use, out of swap, and debuggers away: libcrypto's key
    schedules lie on the heap. For a process that owns a window. Raises PagerError."""
    try:
        _core.lock_process()
    except _core.Error as error:
        status = error.args[0]
        raise PagerError(
            f"this process cannot be kept out of swap: {os.strerror(-status)}", hint=_LOCK_HINTS.get(status)
        ) from None


def _pager_error(error: _core.Error) -> PagerError:
    status, message = error.args
    text = os.strerror(-status) if status < 0 else message
    return PagerError(f"the encrypted window: {text}", hint=_HINTS.get(status))
