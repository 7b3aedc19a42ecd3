"""Python's face of the C core in core/: contract in docs/architecture.md, section 4."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from mmap import mmap
from types import TracebackType
from typing import Any

from vambrace.errors import PageAuthenticationError, PagerError
from vambrace.pager import _core
from vambrace.record import Record

PAGE_SIZE = 4096
#: Pages: no zone's window is smaller, unless the zone itself is.
MINIMUM_WINDOW = _core.MINIMUM_WINDOW
#: Pages of a window that can never be pinned: the guest needs some to run.
PIN_HEADROOM = _core.PIN_HEADROOM
#: Exit status of a process whose window failed and was not closed within five seconds.
EXIT_FAILED = _core.EXIT_FAILED
#: ``Failure.reason`` of a page whose ciphertext was changed.
AUTHENTICATION = "authentication"

_HINTS = {
    _core.NO_USERFAULTFD: "run as root",
    _core.NO_MOVE: "run Linux 6.8 or newer",
    _core.NO_CIPHER: "use cipher 'aes-256-gcm', or a libcrypto that has the other one (OpenSSL 3.1 or newer)",
    _core.SWAP: "turn swap off, or give CAP_IPC_LOCK",
    _core.BUDGET: "release pages that devices hold, or give the zone a larger pin budget",
    -errno.EPERM: "run as root, or give CAP_IPC_LOCK",
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
    open: bool  # at 0 percent: the kernel maps pages, and the counts of faults and evictions stand still
    window: int
    plaintext: int
    plaintext_max: int
    standby: int  # plaintext pages that are aside, not encrypted yet
    pinned: int
    pin_budget: int
    faults: int  # page faults that were answered
    zero_faults: int  # of them, of pages that had never been touched
    standby_hits: int  # of them, of pages on standby: no cipher was needed
    demotions: int  # to standby
    evictions: int  # encrypted
    discarded: int  # given back by the guest
    bytes_encrypted: int
    bytes_decrypted: int
    busy: int  # moves that found their page held by the kernel
    rekeys: int
    handler_ns: int  # nanoseconds that the handlers have spent
    #: Faults by the time until they were answered: element i counts those below 2^i / 4 µs, the last one all others.
    histogram: tuple[int, ...]


class Reuse(Record):
    """How soon a zone's pages were touched again, by sampling one page of ``2 ** shift`` (core/sample.h)."""

    on: bool
    shift: int
    ns: int  # nanoseconds that sampling has taken
    touches: int  # of sampled pages
    #: Of these touches, by the number of different pages touched since the one before, in percent of the zone's pages:
    #: 101 counts. A page's first touch is in none.
    reuse: tuple[int, ...]


class Failure(Record):
    """Why the window stopped, at ``page`` (index within ``zone``). ``reason`` is "authentication" when its
    ciphertext, tag or version was changed, else what the system said."""

    zone: int
    page: int
    reason: str


class Place(Record):
    """How a window gets page frames that somebody else chooses, before it is used.

    ``choose(address, pages)`` looks at the frames of so many pages of this process from ``address`` on, and gives
    those to keep: bit i % 8 of byte i // 8 stands for page i. It is asked again for other pages until there are enough.
    What it raises ends the window. ``most`` pages are drawn in all: those that are not kept stay in use until the end.
    """

    choose: Callable[[int, int], bytes]
    most: int
    #: Most pages of one question; its answer must fit into a packet of the control socket.
    step: int = 1 << 17


class Window:
    """Owns guest memory; of each zone no more than ``window_pages`` pages are ever plaintext.

    ``zones`` are (pages of 4096 bytes, percent), contiguous in order, at most 16; ``key`` has 32 bytes and
    ``instance`` 16, both unique to this run of the Realm (a key must never serve two windows: nonces would
    repeat). A zone's third number, where it has one, is how many of its pages may be pinned at a time. For each of
    ``handler_cpus``, best those of the vCPUs, a thread on this CPU answers page faults; none: one thread, anywhere.

    Threads, vCPUs and vhost workers just use the memory. When a page fails authentication the window stops:
    ``failure_fd`` becomes readable, and whoever touches an absent page waits until ``close``. A Python
    thread may so wait with the GIL held; hence, if ``close`` does not come within five seconds, the window
    wipes keys and memory itself and ends the process with ``EXIT_FAILED``.

    ``userfaultfd`` is an open /dev/userfaultfd, which stays the caller's; without it, this process must be allowed the
    system call of that name.

    With ``place``, every page has one frame for the window's whole life, chosen by it: a frame goes with its page
    wherever that is, in guest memory or at the same offset from ``side`` on. All of these frames are in use from the
    start, and pages that are discarded give none back.

    All methods raise PagerError when the window is closed or failed.
    """

    def __init__(
        self,
        zones: Sequence[tuple[int, int] | tuple[int, int, int]],
        key: bytes,
        instance: bytes,
        *,
        cipher: str = "aes-256-gcm",
        handler_cpus: Sequence[int] = (),
        place: Place | None = None,
        userfaultfd: int = 0,
    ) -> None:
        """Raises PagerError: an argument out of range, no userfaultfd, no UFFDIO_MOVE, no such cipher; with ``place``,
        too few pages of those that it may draw were chosen."""
        try:
            self._core = _core.Window(zones, key, instance, cipher, handler_cpus, place is not None, userfaultfd)
        except _core.Error as error:
            raise _pager_error(error) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise PagerError(f"the window's arguments are wrong: {error}") from None
        self.address: int = self._core.address
        self.size: int = self._core.size
        self.side: int = self._core.side
        self.failure_fd: int = self._core.failure_fd
        if place is not None:
            try:
                _place(self._core, self.size // PAGE_SIZE, place)
            except BaseException:
                self._core.close()
                raise
        self.placed = place is not None
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
        with self._errors():
            self._core.write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of guest memory from ``offset`` on. Raises as ``load`` does."""
        with self._errors():
            return self._core.read(offset, length)

    def digests(self, offset: int, length: int, algorithm: str) -> bytes:
        """The hash (32 bytes, ``algorithm`` by hashlib's name) of each page of ``length`` bytes from the page at
        ``offset`` on, one after the other, the last padded with zeros. Raises as ``load`` does."""
        with self._errors():
            return self._core.digests(offset, length, algorithm)

    def set_percent(self, zone: int, percent: int) -> None:
        """Returns when the invariant holds at the new value (0..100); lowering is immediate.

        Raises PagerError: out of range, or so many pages pinned by devices that it is impossible; then the
        percentage stays as it was.
        """
        try:
            self._core.set_percent(zone, percent)
        except _core.Error as error:
            if error.args[0] != _core.PINNED:
                raise self._error(error) from None
            stats = self.stats(zone)
            raise PagerError(
                f"{percent} % cannot be encrypted: {stats.pinned} pages are pinned for devices, "
                f"and the window would have {window_pages(stats.pages, percent)}",
                hint=_HINTS[_core.PINNED],
            ) from None
        except OverflowError as error:
            raise self._error(error) from None

    def stats(self, zone: int) -> ZoneStats:
        """Raises PagerError: no such zone."""
        with self._errors():
            values = self._core.stats(zone)
        counts = len(ZoneStats.FIELDS) - 1
        named: dict[str, Any] = dict(zip(ZoneStats.FIELDS, values[:counts], strict=False))
        return ZoneStats(**named | {"open": bool(named["open"]), "histogram": values[counts:]})

    def sample(self, zone: int, on: bool) -> None:
        """Begins sampling anew, or ends it. Meanwhile touches of the sampled pages are faults, also at 0 percent.

        Raises PagerError: no such zone.
        """
        with self._errors():
            self._core.sample(zone, on)

    def reuse(self, zone: int) -> Reuse:
        """What sampling has found. Raises PagerError: no such zone."""
        with self._errors():
            return Reuse(*self._core.reuse(zone))

    def pin(self, offset: int, length: int) -> None:
        """Keeps the whole pages of a range in guest memory, for a device, until as many ``unpin``; all or none.

        Raises PagerError: beyond the zone's budget, or out of range.
        """
        with self._errors():
            self._core.pin(offset, length)

    def unpin(self, offset: int, length: int) -> None:
        """Raises PagerError: a page is not pinned (the others are let go), or out of range."""
        with self._errors():
            self._core.unpin(offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Drops whole pages that the guest does not need any more: they read as zeros. Pinned ones stay as they are,
        and so do all pages of a zone at 0 percent.

        Raises PagerError: out of range.
        """
        with self._errors():
            self._core.discard(offset, length)

    def memory(self) -> memoryview:
        """All guest memory, writable: one and the same view, valid until ``close``.

        An access may wait for a page with the GIL held (handlers need no GIL). A slice that is still
        kept when the window closes must not be used any more.
        """
        return self._view

    def close(self) -> None:
        """Stops the handlers, wipes keys and plaintext, gives the memory back. May be called twice.

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

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises the core's errors as PagerError."""
        try:
            yield
        except (_core.Error, OverflowError) as error:
            raise self._error(error) from None

    def _error(self, error: _core.Error | OverflowError) -> PagerError:
        if isinstance(error, OverflowError):
            return PagerError("the encrypted window: a number is out of range")
        if error.args[0] in (_core.AUTHENTICATION, _core.FAILED) and (found := self.failure()) is not None:
            if found.reason == AUTHENTICATION:
                return PageAuthenticationError(found.zone, found.page)
            return PagerError(f"the window failed at page {found.page} of zone {found.zone}: {found.reason}")
        return _pager_error(error)


def address_of(memory: bytearray | mmap) -> int:
    """Where this process has a mapping or another writable buffer; it is not kept from going away."""
    return _core.address_of(memory)


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


def restrict_calls(program: bytes) -> None:
    """Binds this process, which has one thread yet, for good to the system calls that ``program`` allows, a filter as
    the kernel takes it (seccomp(2)). Raises PagerError: it is none."""
    try:
        _core.restrict_calls(program)
    except _core.Error as error:
        raise PagerError("this process cannot be bound to its system calls: the filter is not one") from error


def _place(core: _core.Window, pages: int, place: Place) -> None:
    """Draws and keeps pages until each of the window's has its frame."""
    missing, left = pages, place.most
    try:
        while missing:
            # Little by little towards the end: what is looked at in vain is in use until then.
            step = min(place.step, left, max(1024, 4 * missing))
            if step < 1:
                raise PagerError(
                    f"only {pages - missing} of {pages} pages have got a page frame of the right kind; "
                    f"{place.most} were looked at",
                    hint="give the domain more of the cache, or let it look at more memory",
                )
            left -= step
            missing = core.keep(place.choose(core.draw(step), step))
        core.settle()
    except _core.Error as error:
        raise _pager_error(error) from None


def _pager_error(error: _core.Error) -> PagerError:
    status, message = error.args
    text = os.strerror(-status) if status < 0 else message
    return PagerError(f"the encrypted window: {text}", hint=_HINTS.get(status))
