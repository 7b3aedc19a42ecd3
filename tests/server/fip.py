"""Firmware packages (FIP: TF-A's docs/design/firmware-design.rst) taken apart and put together.

A table of contents (magic, serial number, flags; then for each image its UUID, offset, size, flags; a null UUID at its
end, whose offset is that of the package's end) and the images behind it.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping

HEADER = struct.Struct("<IIQ")
ENTRY = struct.Struct("<16sQQQ")
MAGIC = 0xAA640001

#: What belongs together, by a token's names: an image or two, the certificate of its key, and its own certificate
#: (include/tools_share/firmware_image_package.h).
PARTS = {
    "BL_2": ("5ff9ec0b-4d22-3e4d-a544-c39d81c73f0a", "d6e269ea-5d63-e411-8d8c-9fbabe9956a5"),
    "SECURE_RT_EL3": (
        *("47d4086d-4cfe-9846-9b95-2950cbbd5a00", "8ab8becc-f960-e411-9ad0-eb4822d8dcf8"),
        "e2b20c20-5e63-e411-9ce8-abccf92bb666",
    ),
    "SECURE_RT_EL1_OPTEE": (
        *("05d0e189-53dc-1347-8d2b-500a4b7a3e38", "0b70c29b-2a5a-7840-9f65-0a5682738288"),
        *("9477d603-fb60-e411-85dd-b7105b8cee04", "a49f4411-5e63-e411-8728-3f05722af33d"),
    ),
    "BL_33": (
        *("d6d0eea7-fcea-d54b-9782-9934f234b6e4", "8ad5832a-fb60-e411-8aaf-df30bbc49859"),
        "8ec4c1f3-5d63-e411-a7a9-87ee40b23fa7",
    ),
}


def images(package: bytes) -> dict[uuid.UUID, bytes]:
    """Each image by its UUID, in the order of the table."""
    magic, _, _ = HEADER.unpack_from(package)
    assert magic == MAGIC
    found = {}
    for start in range(HEADER.size, len(package), ENTRY.size):
        name, offset, size, _ = ENTRY.unpack_from(package, start)
        if name == bytes(16):
            return found
        found[uuid.UUID(bytes=name)] = package[offset : offset + size]
    raise AssertionError("the table has no end")


def package(contents: Mapping[uuid.UUID, bytes]) -> bytes:
    """The reverse of ``images``."""
    offset = HEADER.size + ENTRY.size * (len(contents) + 1)
    table = HEADER.pack(MAGIC, 0x12345678, 0)
    for name, content in contents.items():
        table += ENTRY.pack(name.bytes, offset, len(content), 0)
        offset += len(content)
    return table + ENTRY.pack(bytes(16), offset, 0, 0) + b"".join(contents.values())


def with_part(into: bytes, source: bytes, name: str) -> bytes:
    """The package ``into`` with one component as ``source`` has it, certificates and all."""
    contents, others = images(into), images(source)
    for text in PARTS[name]:
        contents[uuid.UUID(text)] = others[uuid.UUID(text)]
    return package(contents)
