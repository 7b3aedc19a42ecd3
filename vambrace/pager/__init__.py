"""The encrypted window: guest memory of which only a bounded part is plaintext (docs/architecture.md, section 4)."""

from vambrace.pager.window import (
    MINIMUM_WINDOW,
    PAGE_SIZE,
    PIN_HEADROOM,
    Failure,
    Place,
    Reuse,
    Window,
    ZoneStats,
    address_of,
    lock_process,
    restrict_calls,
    window_pages,
)

__all__ = [
    "MINIMUM_WINDOW",
    "PAGE_SIZE",
    "PIN_HEADROOM",
    "Failure",
    "Place",
    "Reuse",
    "Window",
    "ZoneStats",
    "address_of",
    "lock_process",
    "restrict_calls",
    "window_pages",
]
