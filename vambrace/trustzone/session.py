"""A session with the trusted application, through OP-TEE's client library (GlobalPlatform TEE Client API 1.0)."""

from __future__ import annotations

import ctypes
import threading
import uuid
from types import TracebackType
from typing import Final

from vambrace.errors import TrustZoneError
from vambrace.suite import NIST, Suite
from vambrace.trustzone.claims import RealmClaims, SealingClaims

APPLICATION: Final = uuid.UUID("8b27ba22-915c-4834-b205-619451c0766a")
RANDOM_MAX: Final = 4096

_LIBRARY: Final = "libteec.so.2"
_COSE_KEY_BYTES: Final = 96
_EVIDENCE_BYTES: Final = 8192
_SEALING_KEY_BYTES: Final = 32

# Commands: firmware/ta/protocol.h
_PLATFORM_KEY, _LIFECYCLE, _ADVANCE, _RANDOM, _EVIDENCE, _SEALING_KEY = range(6)

_LOGIN_PUBLIC: Final = 0
_VALUE_INPUT, _VALUE_OUTPUT, _TEMP_INPUT, _TEMP_OUTPUT = 1, 2, 5, 6

_ORIGINS: Final = {1: "the client library", 2: "the driver", 3: "OP-TEE", 4: "the trusted application"}
_RESULTS: Final = {
    0xFFFF0000: "generic error",
    0xFFFF0001: "access denied",
    0xFFFF0006: "bad parameters",
    0xFFFF0007: "no way leads to that state",
    0xFFFF0008: "item not found",
    0xFFFF000C: "out of memory",
    0xFFFF000F: "security violation",
    0xFFFF0010: "short buffer",
    0xFFFF3024: "the trusted application crashed",
}
_SECURITY: Final = 0xFFFF000F


class _Uuid(ctypes.Structure):
    _fields_ = (
        ("time_low", ctypes.c_uint32),
        ("time_mid", ctypes.c_uint16),
        ("time_hi_and_version", ctypes.c_uint16),
        ("clock_seq_and_node", ctypes.c_uint8 * 8),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Value(ctypes.Structure):
    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint32))


class _Registered(ctypes.Structure):
    """TEEC_RegisteredMemoryReference, which gives the parameter its size; not used otherwise."""

    _fields_ = (("parent", ctypes.c_void_p), ("size", ctypes.c_size_t), ("offset", ctypes.c_size_t))


class _Parameter(ctypes.Union):
    _fields_ = (("buffer", _Buffer), ("registered", _Registered), ("value", _Value))


class _Operation(ctypes.Structure):
    _fields_ = (
        ("started", ctypes.c_uint32),
        ("types", ctypes.c_uint32),
        ("parameters", _Parameter * 4),
        ("session", ctypes.c_void_p),
    )


class _Opaque(ctypes.Structure):
    """TEEC_Context and TEEC_Session: the library's own, of at most this size (their real sizes are below 64 bytes)."""

    _fields_ = (("room", ctypes.c_uint64 * 32),)


class TrustZone:
    """A context manager; safe to use from several threads, one call at a time. Every call raises TrustZoneError.

    ``suite`` is this host's.

    Opening raises it, too: where there is no TrustZone, no driver, or another OP-TEE without our application.
    """

    def __init__(self, suite: Suite = NIST) -> None:
        self._suite = suite
        self._lock = threading.Lock()
        self._open = False
        self._library = _load()
        self._context, self._session = _Opaque(), _Opaque()
        status = self._library.TEEC_InitializeContext(None, ctypes.byref(self._context))
        if status:
            raise TrustZoneError(
                f"TrustZone cannot be reached ({_result(status)})",
                hint="it takes OP-TEE in the firmware, the kernel module optee, and access to /dev/tee0",
            )
        origin = ctypes.c_uint32()
        status = self._library.TEEC_OpenSession(
            ctypes.byref(self._context),
            ctypes.byref(self._session),
            ctypes.byref(_uuid(APPLICATION)),
            ctypes.c_uint32(_LOGIN_PUBLIC),
            None,
            None,
            ctypes.byref(origin),
        )
        if status:
            self._library.TEEC_FinalizeContext(ctypes.byref(self._context))
            raise TrustZoneError(
                f"the trusted application does not open: {_result(status)}, says {_origin(origin.value)}",
                hint="the firmware must be vambrace's own",
            )
        self._open = True

    def __enter__(self) -> TrustZone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; the trusted application and its keys stay until reset."""
        with self._lock:
            if self._open:
                self._open = False
                self._library.TEEC_CloseSession(ctypes.byref(self._session))
                self._library.TEEC_FinalizeContext(ctypes.byref(self._context))

    def platform_key(self) -> bytes:
        """COSE_Key of the platform attestation key of this host's suite."""
        return self._buffer(_PLATFORM_KEY, _COSE_KEY_BYTES, self._suite.number)

    def lifecycle(self) -> int:
        """0x1000 not provisioned, 0x3000 secured, 0x5000 debug, 0x6000 decommissioned."""
        operation = _Operation(types=_VALUE_OUTPUT)
        self._invoke(_LIFECYCLE, operation)
        return int(operation.parameters[0].value.a)

    def advance(self, lifecycle: int) -> None:
        """Go to another state of the life cycle, for ever: secured from not provisioned, debug from either of these,
        decommissioned from anywhere. Both attestation keys are made anew: debug has another platform key, and a
        decommissioned machine none."""
        operation = _Operation(types=_VALUE_INPUT)
        operation.parameters[0].value.a = lifecycle
        self._invoke(_ADVANCE, operation)

    def random(self, length: int) -> bytes:
        """``length`` bytes from the secure world's generator."""
        if length < 0:
            raise TrustZoneError("a number of random bytes is not negative")
        pieces = [
            self._buffer(_RANDOM, min(RANDOM_MAX, length - start), exact=True) for start in range(0, length, RANDOM_MAX)
        ]
        return b"".join(pieces)

    def evidence(self, request: RealmClaims) -> bytes:
        """The CMW collection of platform and realm token for ``request`` (docs/architecture.md section 9)."""
        return self._buffer(_EVIDENCE, _EVIDENCE_BYTES, request.encode())

    def sealing_key(self, request: SealingClaims) -> bytes:
        """32 bytes, the same again for the same ``request`` on this machine with the same firmware and host."""
        return self._buffer(_SEALING_KEY, _SEALING_KEY_BYTES, request.encode(), exact=True)

    def _buffer(self, command: int, size: int, request: bytes | int | None = None, *, exact: bool = False) -> bytes:
        """Invoke ``command`` with an output of at most ``size`` bytes (of just that many if ``exact``)."""
        answer = ctypes.create_string_buffer(size)
        at = 0 if request is None else 1
        operation = _Operation(types=_TEMP_OUTPUT << 4 * at)
        if isinstance(request, int):
            operation.types |= _VALUE_INPUT
            operation.parameters[0].value = _Value(request, 0)
        elif request is not None:
            given = ctypes.create_string_buffer(request, len(request))
            operation.types |= _TEMP_INPUT
            operation.parameters[0].buffer = _Buffer(ctypes.addressof(given), len(request))
        operation.parameters[at].buffer = _Buffer(ctypes.addressof(answer), size)
        self._invoke(command, operation)
        length = int(operation.parameters[at].buffer.size)
        if not 0 < length <= size or (exact and length != size):
            raise TrustZoneError(f"the trusted application answers with {length} bytes")
        data = answer.raw[:length]
        ctypes.memset(answer, 0, size)
        return data

    def _invoke(self, command: int, operation: _Operation) -> None:
        origin = ctypes.c_uint32()
        with self._lock:
            if not self._open:
                raise TrustZoneError("the session with TrustZone is closed")
            status = self._library.TEEC_InvokeCommand(
                ctypes.byref(self._session), ctypes.c_uint32(command), ctypes.byref(operation), ctypes.byref(origin)
            )
        if status:
            hint = "no measured boot, or a blank or damaged fuse" if status == _SECURITY else None
            raise TrustZoneError(f"TrustZone refuses: {_result(status)}, says {_origin(origin.value)}", hint=hint)


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise TrustZoneError(f"{_LIBRARY} cannot be loaded", hint="install libteec2") from error
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    library.TEEC_InitializeContext.argtypes = [ctypes.c_char_p, pointer]
    library.TEEC_OpenSession.argtypes = [pointer, pointer, pointer, number, pointer, pointer, pointer]
    library.TEEC_InvokeCommand.argtypes = [pointer, number, pointer, pointer]
    library.TEEC_CloseSession.argtypes = [pointer]
    library.TEEC_FinalizeContext.argtypes = [pointer]
    for name in ("TEEC_InitializeContext", "TEEC_OpenSession", "TEEC_InvokeCommand"):
        getattr(library, name).restype = number
    library.TEEC_CloseSession.restype = None
    library.TEEC_FinalizeContext.restype = None
    return library


def _uuid(value: uuid.UUID) -> _Uuid:
    low, middle, high = value.fields[:3]
    return _Uuid(low, middle, high, (ctypes.c_uint8 * 8)(*value.bytes[8:]))


def _result(status: int) -> str:
    return _RESULTS.get(status, f"error {status:#010x}")


def _origin(origin: int) -> str:
    return _ORIGINS.get(origin, f"origin {origin}")
