"""How much memory the machine has to give."""

from __future__ import annotations

from pathlib import Path


def memory_available() -> int:
    """Bytes that the kernel can give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return 0
