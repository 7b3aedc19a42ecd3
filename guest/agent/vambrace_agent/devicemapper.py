"""The kernel's device mapper, by its ioctls (linux/dm-ioctl.h): a table with a key is in no program's arguments.

Keys in tables are the kernel's once they are loaded; ``DM_SECURE_DATA_FLAG`` has it wipe what it copied of the request.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from vambrace_agent import AgentError

CONTROL = "/dev/mapper/control"
SECTOR = 512
_CREATE, _REMOVE, _SUSPEND, _LOAD = 3, 4, 6, 9
_READ_ONLY, _SECURE_DATA = 1 << 0, 1 << 15
_VERSION = (4, 0, 0)
# version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid, data
_HEADER = struct.Struct("=3IIIIiIIIQ128s129s7s")
_TARGET = struct.Struct("=QQiI16s")  # first sector, sectors, status, next, type; behind it the parameters and a NUL
_NUMBER = 0xC138FD00  # _IOWR(0xfd, 0, struct dm_ioctl)
_MOST_TABLE = 4096
_BUSY_SECONDS = 10.0


class Device:
    """A device of one target, at ``path``, which is there until ``remove``."""

    def __init__(self, name: str, sectors: int, target: str, parameters: str, *, read_only: bool = False) -> None:
        """Raises ``AgentError``: the kernel refuses; which device it is says the message, not the parameters."""
        self.name = name
        self.sectors = sectors
        flags = _READ_ONLY if read_only else 0
        (number,) = _call(_CREATE, name, flags)
        self.path = f"/dev/dm-{(number & 0xFF) | ((number >> 12) & 0xFFF00)}"
        try:
            table = bytearray(_TARGET.pack(0, sectors, 0, 0, target.encode()))
            table += parameters.encode() + b"\0"
            table += bytes(-len(table) % 8)
            struct.pack_into("=I", table, 20, len(table))  # where the next target would be
            _call(_LOAD, name, flags | _SECURE_DATA, table)
            _call(_SUSPEND, name, flags)  # without the flag of that name: resume
        except AgentError:
            self.remove()
            raise

    def remove(self) -> None:
        """Once what was written is below it. Raises ``AgentError``: it is still in use."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                _call(_REMOVE, self.name, 0)
            except Busy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


class Busy(AgentError):
    """Somebody has the device open."""


class Forged(AgentError):
    """What is on the disk is not what was written with these keys."""




def _call(operation: int, name: str, flags: int, table: bytearray | None = None) -> tuple[int]:
    """One ioctl about the device ``name``; its number, as the kernel gives it."""
    size = _HEADER.size + (len(table) if table else 0)
    request = bytearray(max(size, _HEADER.size + 64))
    targets = 1 if table else 0
    fields = (*_VERSION, len(request), _HEADER.size, targets, 0, flags, 0, 0, 0, name.encode(), b"", b"")
    _HEADER.pack_into(request, 0, *fields)
    if table:
        if len(table) > _MOST_TABLE:
            raise AgentError(f"the table of {name} is too long")
        request[_HEADER.size : size] = table
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, _NUMBER + operation, request, True)
    except OSError as error:
        kind = Busy if error.errno == errno.EBUSY else AgentError
        raise kind(f"the kernel refuses the device {name}: {error.strerror}") from None
    finally:
        os.close(control)
        if table:
            request[_HEADER.size :] = bytes(len(request) - _HEADER.size)
            table[:] = bytes(len(table))
    return (_HEADER.unpack_from(request)[10],)
