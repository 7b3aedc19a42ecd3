"""The launch measurement (docs/architecture.md, section 3), in the form of the RMM's RIM.

A chain of hashes over fixed 256-byte descriptors, laid out as in the Realm Management Monitor's
specification (RmmMeasurementDescriptorData), little-endian, reserved bytes zero::

    0x00  u64        type: 0 memory, 1 vCPU, 3 parameters
    0x08  u64        length of the descriptor, 0x100
    0x10  64 bytes   the measurement so far (zero-padded; all zero for the parameters)
    0x50  u64        guest-physical address (memory only)
    0x58  u64        length of the content in bytes
    0x60  64 bytes   hash of the content (zero-padded)

Each new measurement is the hash of one descriptor. Memory's content hash is the hash of the concatenated
hashes of its 4 KiB pages, so that it can be computed page by page as the pages are loaded.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from vambrace.errors import ConfigError
from vambrace.suite import SUITES

PAGE: Final = 4096
# Name in the configuration → name in hashlib. SM3 is there where OpenSSL was built with it.
ALGORITHMS: Final[Mapping[str, str]] = {suite.hash: suite.digests[0] for suite in SUITES.values()}

_MEMORY, _VCPU, _PARAMETERS = 0, 1, 3
_DESCRIPTOR: Final = struct.Struct("<QQ64sQQ64s96x")
_REGISTER_BYTES: Final = 16  # the widest registers of a vCPU, SIMD, have 128 bits


class SegmentLike(Protocol):
    """Initial memory: ``data`` at the page-aligned guest-physical address ``gpa``."""

    @property
    def gpa(self) -> int: ...
    @property
    def data(self) -> bytes | memoryview: ...


class VcpuLike(Protocol):
    """Initial state of a vCPU; registers by name, unsigned."""

    @property
    def index(self) -> int: ...
    @property
    def registers(self) -> Mapping[str, int]: ...
    @property
    def powered_on(self) -> bool: ...


class PlanLike(Protocol):
    @property
    def segments(self) -> Sequence[SegmentLike]: ...
    @property
    def vcpus(self) -> Sequence[VcpuLike]: ...


class ConfigLike(Protocol):
    @property
    def hash(self) -> str: ...
    def encode(self) -> bytes: ...


class LaunchMeasurement:
    """The running measurement. The order of calls counts: parameters, memory, vCPUs.

    Raises ``ConfigError`` for a hash algorithm that is unknown or not to be had here.
    """

    def __init__(self, algorithm: str, parameters: bytes) -> None:
        try:
            self.algorithm = ALGORITHMS[algorithm]  # hashlib's name
            self._empty = hashlib.new(self.algorithm)
        except KeyError:
            raise ConfigError(f"hash: {algorithm[:40]!r} is not known") from None
        except ValueError:
            raise ConfigError(
                f"hash: {algorithm} is not to be had here", hint="it needs a Python whose OpenSSL has it"
            ) from None
        self._value = b""
        self._extend(_PARAMETERS, 0, len(parameters), self._hash(parameters))

    def data(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Add initial memory: ``data`` at ``gpa``; the last page is measured padded with zeros.

        Raises ``ConfigError`` if ``gpa`` is not page-aligned or does not fit in 64 bits.
        """
        view = memoryview(data).cast("B")
        size = len(view)
        whole = size - size % PAGE
        # Copying a ready context costs less than making one, and this loop runs for every loaded page.
        fresh = self._empty.copy
        digests = []
        for start in range(0, whole, PAGE):
            page = fresh()
            page.update(view[start : start + PAGE])
            digests.append(page.digest())
        if whole != size:
            digests.append(self._hash(bytes(view[whole:]).ljust(PAGE, b"\0")))
        self.pages(gpa, size, b"".join(digests))

    def pages(self, gpa: int, size: int, digests: bytes) -> None:
        """The same by the hashes of its pages, one after the other: ``data`` for whoever computes these faster.

        Raises ``ConfigError`` as ``data`` does.
        """
        if gpa % PAGE or not 0 <= gpa < 1 << 64:
            raise ConfigError(f"memory at {gpa:#x} cannot be measured: not the address of a page")
        if len(digests) != -(-size // PAGE) * self._empty.digest_size:
            raise ConfigError(f"memory at {gpa:#x} cannot be measured: not a hash for each page")
        self._extend(_MEMORY, gpa, size, self._hash(digests))

    def vcpu(self, state: VcpuLike) -> None:
        """Add the initial state of one vCPU. Raises ``ConfigError`` for a register out of range."""
        parts = [struct.pack("<QQ", state.index, bool(state.powered_on))]
        for name in sorted(state.registers):
            encoded = name.encode()
            try:
                value = state.registers[name].to_bytes(_REGISTER_BYTES, "little")
            except OverflowError:
                raise ConfigError(f"vCPU {state.index}: register {name} is out of range") from None
            parts.append(struct.pack("<Q", len(encoded)) + encoded + value)
        content = b"".join(parts)
        self._extend(_VCPU, 0, len(content), self._hash(content))

    def digest(self) -> bytes:
        """The measurement so far: 32 bytes."""
        return self._value

    def _hash(self, data: bytes) -> bytes:
        context = self._empty.copy()
        context.update(data)
        return context.digest()

    def _extend(self, kind: int, gpa: int, length: int, content: bytes) -> None:
        self._value = self._hash(_DESCRIPTOR.pack(kind, _DESCRIPTOR.size, self._value, gpa, length, content))


def measure_launch(config: ConfigLike, plan: PlanLike) -> bytes:
    """The measurement of a Realm with ``config`` (a ``DomainConfig``) started as ``plan`` (a ``BootPlan``).

    Raises ``ConfigError`` as ``LaunchMeasurement`` does.
    """
    measurement = LaunchMeasurement(config.hash, config.encode())
    for segment in plan.segments:
        measurement.data(segment.gpa, segment.data)
    for vcpu in plan.vcpus:
        measurement.vcpu(vcpu)
    return measurement.digest()
