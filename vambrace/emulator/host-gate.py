#!/usr/bin/python3
"""The emulated server waits here for the time and for fresh entropy, before any key is made.

The board's own clock and generator are not relied on: the kernel's generator takes what the emulator brings beside the
processor's entropy, and reseeds. Protocol on the port "vambrace.gate": we say "ready", we are told
"go EPOCH_SECONDS 64_HEX_BYTES", we say "going".
"""

import fcntl
import os
import struct
import sys
import time
from pathlib import Path

# linux/random.h
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207


def main() -> int:
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == "vambrace.gate":
            device = os.open(f"/dev/{name.parent.name}", os.O_RDWR)
            break
    else:
        return 0
    await_reader(sys.argv[1])
    os.write(device, b"ready\n")
    line = b""
    while not line.endswith(b"\n"):
        # Nothing, as long as nobody is connected. No sleep: the timer of a state that is resumed may never fire.
        line += os.read(device, 512)
    word, epoch, entropy = line.split()
    if word != b"go":
        return 1
    set_timers()
    time.clock_settime(time.CLOCK_REALTIME, float(epoch))
    fresh = bytes.fromhex(entropy.decode())
    with Path("/dev/random").open("wb", buffering=0) as pool:
        fcntl.ioctl(pool, RNDADDENTROPY, struct.pack("ii", len(fresh) * 8, len(fresh)) + fresh)
        fcntl.ioctl(pool, RNDRESEEDCRNG)
    os.write(device, b"going\n")
    return 0


def await_reader(fifo: str) -> None:
    """Return when the daemon, loaded, waits at ``fifo`` (or after a minute: it may have failed, and will be restarted).

    A state that is saved now has done all the slow work.
    """
    for _ in range(600):
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            return
        except OSError:
            time.sleep(0.1)


def set_timers() -> None:
    """Bring the timers of a resumed state back to life.

    The emulator does not save the timer of EL2, and Linux does not set it anew where it believes it to be set already
    for the next event: such a processor would wait for ever. An alarm that was due at the very beginning comes before
    any event, so that it is set on each processor.
    """
    processors = sorted(os.sched_getaffinity(0))
    for processor in processors:
        os.sched_setaffinity(0, {processor})
        # Python 3.13, as on the host.
        alarm = os.timerfd_create(time.CLOCK_MONOTONIC)  # type: ignore[attr-defined]
        absolute = os.TFD_TIMER_ABSTIME  # type: ignore[attr-defined]
        os.timerfd_settime_ns(alarm, flags=absolute, initial=1)  # type: ignore[attr-defined]
        os.read(alarm, 8)
        os.close(alarm)
    os.sched_setaffinity(0, processors)


if __name__ == "__main__":
    sys.exit(main())
