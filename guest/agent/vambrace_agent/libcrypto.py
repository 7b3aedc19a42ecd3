"""What the agent needs of libcrypto (OpenSSL 3) beside TLS: ECDH on P-256, AES key wrap, AES-256-GCM.

By ctypes: a Realm's Python has the library and no binding of it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from vambrace_agent import AgentError

KEY_BYTES = 32
IV_BYTES = 12
TAG_BYTES = 16
POINT_BYTES = 65  # uncompressed: 4, x, y
_SECRET_BYTES = 32
_WRAP_ALLOW, _SET_TAG, _GET_TAG = 1, 0x11, 0x10

_pointer, _number, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_FUNCTIONS = {
    "EVP_PKEY_Q_keygen": (_pointer, [_pointer, _pointer, ctypes.c_char_p]),
    "EVP_PKEY_new": (_pointer, []),
    "EVP_PKEY_free": (None, [_pointer]),
    "EVP_PKEY_copy_parameters": (_number, [_pointer, _pointer]),
    "EVP_PKEY_set1_encoded_public_key": (_number, [_pointer, ctypes.c_char_p, _size]),
    "EVP_PKEY_get1_encoded_public_key": (_size, [_pointer, ctypes.POINTER(_pointer)]),
    "EVP_PKEY_CTX_new": (_pointer, [_pointer, _pointer]),
    "EVP_PKEY_CTX_free": (None, [_pointer]),
    "EVP_PKEY_derive_init": (_number, [_pointer]),
    "EVP_PKEY_derive_set_peer": (_number, [_pointer, _pointer]),
    "EVP_PKEY_derive": (_number, [_pointer, _pointer, ctypes.POINTER(_size)]),
    "EVP_CIPHER_fetch": (_pointer, [_pointer, ctypes.c_char_p, ctypes.c_char_p]),
    "EVP_CIPHER_free": (None, [_pointer]),
    "EVP_CIPHER_CTX_new": (_pointer, []),
    "EVP_CIPHER_CTX_free": (None, [_pointer]),
    "EVP_CIPHER_CTX_set_flags": (None, [_pointer, _number]),
    "EVP_CIPHER_CTX_ctrl": (_number, [_pointer, _number, _number, _pointer]),
    "EVP_CipherInit_ex2": (_number, [_pointer, _pointer, ctypes.c_char_p, ctypes.c_char_p, _number, _pointer]),
    "EVP_CipherUpdate": (_number, [_pointer, _pointer, ctypes.POINTER(_number), ctypes.c_char_p, _number]),
    "EVP_CipherFinal_ex": (_number, [_pointer, _pointer, ctypes.POINTER(_number)]),
    "CRYPTO_free": (None, [_pointer, ctypes.c_char_p, _number]),
}


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL("libcrypto.so.3")
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_libcrypto = _load()


class ExchangeKey:
    """A fresh key pair on P-256 for one exchange; ``close`` forgets it."""

    def __init__(self) -> None:
        self._key = _libcrypto.EVP_PKEY_Q_keygen(None, None, b"EC", ctypes.c_char_p(b"P-256"))
        if not self._key:
            raise AgentError("no key could be made")
        place = _pointer()
        length = _libcrypto.EVP_PKEY_get1_encoded_public_key(self._key, ctypes.byref(place))
        self.public = ctypes.string_at(place, length) if place.value else b""
        _libcrypto.CRYPTO_free(place, b"", 0)
        if len(self.public) != POINT_BYTES:
            raise AgentError("no key could be made")

    def close(self) -> None:
        if self._key:
            _libcrypto.EVP_PKEY_free(self._key)  # which clears it
            self._key = None

    def agree(self, point: bytes) -> bytes:
        """The secret (32 bytes) shared with whoever has the key of ``point``. Raises ``AgentError``: no such point."""
        with _freed(_libcrypto.EVP_PKEY_new(), _libcrypto.EVP_PKEY_free) as peer:
            _check(_libcrypto.EVP_PKEY_copy_parameters(peer, self._key))
            _check(_libcrypto.EVP_PKEY_set1_encoded_public_key(peer, point, len(point)), "the broker's key is no point")
            with _freed(_libcrypto.EVP_PKEY_CTX_new(self._key, None), _libcrypto.EVP_PKEY_CTX_free) as context:
                _check(_libcrypto.EVP_PKEY_derive_init(context))
                _check(_libcrypto.EVP_PKEY_derive_set_peer(context, peer), "the broker's key is no point")
                shared, length = ctypes.create_string_buffer(_SECRET_BYTES), _size(_SECRET_BYTES)
                _check(_libcrypto.EVP_PKEY_derive(context, shared, ctypes.byref(length)))
                secret = shared.raw[: length.value]
                ctypes.memset(shared, 0, _SECRET_BYTES)
        if len(secret) != _SECRET_BYTES:
            raise AgentError("no secret could be agreed on")
        return secret


def unwrap(key: bytes, wrapped: bytes) -> bytes:
    """AES key wrap (RFC 3394) undone. Raises ``AgentError``: another key, or changed."""
    if len(wrapped) != KEY_BYTES + 8:
        raise AgentError("a wrapped key has another length")
    with _cipher(b"AES-256-WRAP", key, None, encrypt=False) as context:
        return _update(context, wrapped, "the wrapped key does not open")


def decrypt(key: bytes, iv: bytes, ciphertext: bytes, tag: bytes, additional: bytes) -> bytes:
    """AES-256-GCM. Raises ``AgentError``: another key, or changed."""
    if len(iv) != IV_BYTES or len(tag) != TAG_BYTES:
        raise AgentError("what is encrypted has no nonce or tag")
    with _cipher(b"AES-256-GCM", key, iv, encrypt=False) as context:
        _check(_libcrypto.EVP_CIPHER_CTX_ctrl(context, _SET_TAG, TAG_BYTES, tag))
        _add(context, additional)
        plaintext = _update(context, ciphertext, "what is encrypted does not open")
        length = _number()
        rest = ctypes.create_string_buffer(TAG_BYTES)
        _check(_libcrypto.EVP_CipherFinal_ex(context, rest, ctypes.byref(length)), "what is encrypted was changed")
    return plaintext


def encrypt(key: bytes, iv: bytes, plaintext: bytes, additional: bytes) -> bytes:
    """AES-256-GCM: ciphertext and tag. A key and ``iv`` (12 bytes) go together once."""
    if len(iv) != IV_BYTES:
        raise AgentError("a nonce has another length")
    with _cipher(b"AES-256-GCM", key, iv, encrypt=True) as context:
        _add(context, additional)
        ciphertext = _update(context, plaintext, "it cannot be encrypted")
        length, tag = _number(), ctypes.create_string_buffer(TAG_BYTES)
        _check(_libcrypto.EVP_CipherFinal_ex(context, tag, ctypes.byref(length)))
        _check(_libcrypto.EVP_CIPHER_CTX_ctrl(context, _GET_TAG, TAG_BYTES, tag))
        return ciphertext + tag.raw


@contextlib.contextmanager
def _cipher(name: bytes, key: bytes, iv: bytes | None, *, encrypt: bool) -> Iterator[int]:
    if len(key) != KEY_BYTES:
        raise AgentError("a key has another length")
    with (
        _freed(_libcrypto.EVP_CIPHER_fetch(None, name, None), _libcrypto.EVP_CIPHER_free) as cipher,
        # Freeing a context clears its key schedule.
        _freed(_libcrypto.EVP_CIPHER_CTX_new(), _libcrypto.EVP_CIPHER_CTX_free) as context,
    ):
        _libcrypto.EVP_CIPHER_CTX_set_flags(context, _WRAP_ALLOW)
        _check(_libcrypto.EVP_CipherInit_ex2(context, cipher, key, iv, int(encrypt), None))
        yield context


def _add(context: int, additional: bytes) -> None:
    length = _number()
    _check(_libcrypto.EVP_CipherUpdate(context, None, ctypes.byref(length), additional, len(additional)))


def _update(context: int, data: bytes, wrong: str) -> bytes:
    out, length = ctypes.create_string_buffer(len(data) + TAG_BYTES), _number()
    try:
        _check(_libcrypto.EVP_CipherUpdate(context, out, ctypes.byref(length), data, len(data)), wrong)
        return out.raw[: length.value]
    finally:
        ctypes.memset(out, 0, len(out))


@contextlib.contextmanager
def _freed(handle: int | None, free: object) -> Iterator[int]:
    if not handle:
        raise AgentError("libcrypto refuses")
    try:
        yield handle
    finally:
        free(handle)  # type: ignore[operator]


def _check(result: int, wrong: str = "libcrypto refuses") -> None:
    if result != 1:
        raise AgentError(wrong)
