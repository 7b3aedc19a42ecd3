"""A change of one zone's percentage, in a thread of its own: to raise it may take minutes."""

from __future__ import annotations

import threading

from vambrace.errors import PagerError
from vambrace.pager import Window, window_pages
from vambrace.record import Record


class Progress(Record):
    """How far a change is: ``left`` of ``total`` pages are still to be encrypted; ``done``: the invariant holds."""

    zone: int
    percent: int
    done: bool
    left: int
    total: int


class Change:
    """Begins at once. Raises PagerError: no such zone. The window's ``close`` ends it."""

    def __init__(self, window: Window, zone: int, percent: int) -> None:
        stats = window.stats(zone)
        self._window = window
        self._zone, self._percent = zone, percent
        self._target = window_pages(stats.pages, percent)
        self._total = max(0, stats.plaintext - self._target)
        self._error: PagerError | None = None
        self._thread = threading.Thread(target=self._run, name="change", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._window.set_percent(self._zone, self._percent)
        except PagerError as error:
            self._error = error
        except Exception as error:  # whatever it is, who asks must not take it for done
            self._error = PagerError(f"the change failed: {type(error).__name__}")

    @property
    def under_way(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Return when it has ended, after so many seconds at the latest."""
        self._thread.join(seconds)

    def progress(self) -> Progress:
        """Raises PagerError: it failed, and the percentage is what it was."""
        under_way = self.under_way
        if self._error is not None:
            raise self._error
        left = 0
        if under_way:
            # The guest may meanwhile make more pages plaintext, within what is allowed at this instant.
            left = max(0, self._window.stats(self._zone).plaintext - self._target)
            self._total = max(self._total, left)
        return Progress(self._zone, self._percent, not under_way, left, self._total)
