"""Uses little memory again and again, then much of it: what a percentage costs changes."""

import mmap
import time

MIB = 1 << 20
PAGE = 4096
SMALL, LARGE = 4 * MIB, 34 * MIB
SMALL_SECONDS = 180

memory = mmap.mmap(-1, LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for start in range(0, LARGE, PAGE):
    memory[start] = 1


def use(size: int, seconds: float) -> None:
    """Touch each page of the first ``size`` bytes in turn."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for start in range(0, size, PAGE):
            memory[start] = 2


use(SMALL, 1)  # so that what is said to be used has come back into the window
print("small", flush=True)
use(SMALL, SMALL_SECONDS)
print("large", flush=True)
use(LARGE, 100_000)
