"""SM2 keys (GB/T 32918.2), their signatures, and certificates signed with them: by OpenSSL's libcrypto.

``cryptography`` has no SM2. This is a ctypes face of the few calls that are needed (OpenSSL 3.0 and later); what goes
in and out is DER. ``vambrace/attest/suites.py`` is for everybody else.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_void_p
from typing import Final, cast

from vambrace.errors import ConfigError

_NAMES: Final = ("libcrypto.so.3", "libcrypto.3.dylib", "libcrypto-3-x64.dll", "libcrypto.so.4", "libcrypto.4.dylib")
#: The signer's identity that enters each signature: the default of GB/T 35276, as in certificates.
IDENTITY: Final = b"1234567812345678"
_MAX_DER: Final = 1 << 20

_P = c_void_p
_DER = POINTER(c_void_p)
# Name, what comes back, what goes in.
_CALLS: Final[tuple[tuple[str, object, tuple[object, ...]], ...]] = (
    ("ERR_clear_error", None, ()),
    ("CRYPTO_clear_free", None, (_P, c_size_t, c_char_p, c_int)),
    ("EVP_sm3", _P, ()),
    ("EVP_PKEY_Q_keygen", _P, (_P, c_char_p, c_char_p)),
    ("EVP_PKEY_free", None, (_P,)),
    ("EVP_PKEY_is_a", c_int, (_P, c_char_p)),
    ("EVP_PKEY_CTX_new", _P, (_P, _P)),
    ("EVP_PKEY_CTX_free", None, (_P,)),
    ("EVP_PKEY_CTX_set1_id", c_int, (_P, c_char_p, c_int)),
    ("EVP_PKEY_public_check", c_int, (_P,)),
    ("EVP_PKEY_check", c_int, (_P,)),
    ("EVP_MD_CTX_new", _P, ()),
    ("EVP_MD_CTX_free", None, (_P,)),
    ("EVP_MD_CTX_set_pkey_ctx", None, (_P, _P)),
    ("EVP_DigestSignInit", c_int, (_P, _P, _P, _P, _P)),
    ("EVP_DigestSign", c_int, (_P, c_char_p, POINTER(c_size_t), c_char_p, c_size_t)),
    ("EVP_DigestVerifyInit", c_int, (_P, _P, _P, _P, _P)),
    ("EVP_DigestVerify", c_int, (_P, c_char_p, c_size_t, c_char_p, c_size_t)),
    ("d2i_PUBKEY", _P, (_P, POINTER(c_char_p), c_long)),
    ("i2d_PUBKEY", c_int, (_P, _DER)),
    ("d2i_AutoPrivateKey", _P, (_P, POINTER(c_char_p), c_long)),
    ("EVP_PKEY2PKCS8", _P, (_P,)),
    ("PKCS8_PRIV_KEY_INFO_free", None, (_P,)),
    ("i2d_PKCS8_PRIV_KEY_INFO", c_int, (_P, _DER)),
    ("d2i_X509", _P, (_P, POINTER(c_char_p), c_long)),
    ("i2d_X509", c_int, (_P, _DER)),
    ("X509_free", None, (_P,)),
    ("X509_set_pubkey", c_int, (_P, _P)),
    ("X509_sign_ctx", c_int, (_P, _P)),
    ("d2i_X509_CRL", _P, (_P, POINTER(c_char_p), c_long)),
    ("i2d_X509_CRL", c_int, (_P, _DER)),
    ("X509_CRL_free", None, (_P,)),
    ("X509_CRL_sign_ctx", c_int, (_P, _P)),
)


@functools.cache
def _library() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for call, result, arguments in _CALLS:
            function = getattr(library, call)
            function.restype, function.argtypes = result, list(arguments)
        return library
    raise ConfigError("SM2 needs OpenSSL's libcrypto, 3.0 or later", hint="install libssl3, or your system's openssl")


class Key:
    """An EVP_PKEY with an SM2 key."""

    def __init__(self, pointer: int) -> None:
        """Takes ``pointer``. Raises ``ValueError``: another kind of key, or one that is not valid."""
        library = _library()
        self.pointer = pointer
        weakref.finalize(self, library.EVP_PKEY_free, pointer)
        if not library.EVP_PKEY_is_a(pointer, b"SM2"):
            raise ValueError("not a key on the curve of SM2")
        context = _done(library.EVP_PKEY_CTX_new(pointer, None))
        good = self._check(library)(context) == 1
        library.EVP_PKEY_CTX_free(context)
        library.ERR_clear_error()
        if not good:
            raise ValueError("not a valid key on the curve of SM2")

    def _check(self, library: ctypes.CDLL) -> Callable[[int], int]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self.spki() == other.spki() if isinstance(other, Key) and type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.spki())

    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        return _encoded(_library().i2d_PUBKEY, self.pointer)


class Sm2PublicKey(Key):
    @classmethod
    def load(cls, spki: bytes) -> Sm2PublicKey:
        """The key of a SubjectPublicKeyInfo (DER). Raises ``ValueError``, also for a point off the curve."""
        library = _library()
        return cls(_decoded(library.d2i_PUBKEY, spki, library.EVP_PKEY_free))

    def _check(self, library: ctypes.CDLL) -> Callable[[int], int]:
        return cast(Callable[[int], int], library.EVP_PKEY_public_check)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether ``signature`` (DER) is this key's over ``data``."""
        library = _library()
        with _Context(self, library.EVP_DigestVerifyInit) as context:
            good = library.EVP_DigestVerify(context, signature, len(signature), data, len(data)) == 1
        library.ERR_clear_error()
        return bool(good)


class Sm2PrivateKey(Key):
    @classmethod
    def generate(cls) -> Sm2PrivateKey:
        """Raises ``ConfigError``: no libcrypto, or none with SM2."""
        return cls(_done(_library().EVP_PKEY_Q_keygen(None, None, b"SM2")))

    @classmethod
    def load(cls, pkcs8: bytes) -> Sm2PrivateKey:
        """The key of an unencrypted PKCS #8 (DER). Raises ``ValueError``."""
        library = _library()
        return cls(_decoded(library.d2i_AutoPrivateKey, pkcs8, library.EVP_PKEY_free))

    def _check(self, library: ctypes.CDLL) -> Callable[[int], int]:
        return cast(Callable[[int], int], library.EVP_PKEY_check)

    def public_key(self) -> Sm2PublicKey:
        return Sm2PublicKey.load(self.spki())

    def pkcs8(self) -> bytes:
        """The private key, unencrypted, DER."""
        library = _library()
        info = _done(library.EVP_PKEY2PKCS8(self.pointer))
        try:
            return _encoded(library.i2d_PKCS8_PRIV_KEY_INFO, info)
        finally:
            library.PKCS8_PRIV_KEY_INFO_free(info)

    def sign(self, data: bytes) -> bytes:
        """Signature over ``data`` with SM3 and ``IDENTITY``, DER (GM/T 0009)."""
        library = _library()
        with _Context(self, library.EVP_DigestSignInit) as context:
            length = c_size_t()
            _done(library.EVP_DigestSign(context, None, byref(length), data, len(data)))
            signature = ctypes.create_string_buffer(length.value)
            _done(library.EVP_DigestSign(context, signature, byref(length), data, len(data)))
            return signature.raw[: length.value]

    def sign_certificate(self, template: bytes, subject: Sm2PublicKey) -> bytes:
        """``template`` (X.509, DER) with ``subject``'s key in the place of its own, signed by this one."""
        library = _library()
        certificate = _decoded(library.d2i_X509, template, library.X509_free)
        try:
            _done(library.X509_set_pubkey(certificate, subject.pointer))
            with _Context(self, library.EVP_DigestSignInit) as context:
                _done(library.X509_sign_ctx(certificate, context))
            return _encoded(library.i2d_X509, certificate)
        finally:
            library.X509_free(certificate)

    def sign_revocations(self, template: bytes) -> bytes:
        """``template`` (an X.509 CRL, DER) signed by this key."""
        library = _library()
        crl = _decoded(library.d2i_X509_CRL, template, library.X509_CRL_free)
        try:
            with _Context(self, library.EVP_DigestSignInit) as context:
                _done(library.X509_CRL_sign_ctx(crl, context))
            return _encoded(library.i2d_X509_CRL, crl)
        finally:
            library.X509_CRL_free(crl)


class _Context:
    """A digest context that signs or verifies with ``key``, SM3 and ``IDENTITY``."""

    def __init__(self, key: Key, begin: Callable[..., int]) -> None:
        library = _library()
        self._digest = _done(library.EVP_MD_CTX_new())
        self._key = library.EVP_PKEY_CTX_new(key.pointer, None)
        try:
            _done(self._key)
            _done(library.EVP_PKEY_CTX_set1_id(self._key, IDENTITY, len(IDENTITY)))
            library.EVP_MD_CTX_set_pkey_ctx(self._digest, self._key)
            _done(begin(self._digest, None, library.EVP_sm3(), None, key.pointer))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> int:
        return self._digest

    def __exit__(self, *_: object) -> None:
        library = _library()
        library.EVP_MD_CTX_free(self._digest)
        library.EVP_PKEY_CTX_free(self._key)


def _done(result: int) -> int:
    """``result`` of a call that fails for want of memory or of the algorithm only."""
    if not result or result < 0:
        _library().ERR_clear_error()
        raise ConfigError("libcrypto cannot do SM2 here", hint="install Debian's or your system's OpenSSL")
    return result


def _decoded(read: Callable[..., int], der: bytes, free: Callable[[int], None]) -> int:
    """What ``der`` encodes, as a pointer. Raises ``ValueError``: something else, or bytes behind it."""
    at = c_char_p(der)
    start = ctypes.cast(at, c_void_p).value or 0
    pointer = read(None, byref(at), len(der)) if 0 < len(der) <= _MAX_DER else 0
    _library().ERR_clear_error()
    if not pointer:
        raise ValueError("not DER of the expected kind")
    end = ctypes.cast(at, c_void_p).value or 0
    if end - start != len(der):
        free(pointer)
        raise ValueError("bytes follow the DER")
    return pointer


def _encoded(write: Callable[..., int], pointer: int) -> bytes:
    out = c_void_p()
    length = write(pointer, byref(out))
    _done(length if length > 0 else 0)
    data = ctypes.string_at(out, length)
    _library().CRYPTO_clear_free(out, length, None, 0)
    return data
