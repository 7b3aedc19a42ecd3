"""Opens what the broker encrypts to a key of ours: JWE (RFC 7516), ECDH-ES+A256KW with A256GCM (RFC 7518), and no
other algorithm, whatever it says."""

from __future__ import annotations

import base64
import hashlib
import json

from vambrace_agent import AgentError
from vambrace_agent.libcrypto import ExchangeKey, decrypt, unwrap

ALGORITHM = "ECDH-ES+A256KW"
ENCRYPTION = "A256GCM"
CURVE = "P-256"
_COORDINATE = 32


def public_jwk(key: ExchangeKey) -> dict[str, str]:
    """The public half, as the KBS protocol wants it."""
    x, y = key.public[1 : 1 + _COORDINATE], key.public[1 + _COORDINATE :]
    return {"kty": "EC", "crv": CURVE, "alg": ALGORITHM, "x": _encode(x), "y": _encode(y)}


def thumbprint(jwk: dict[str, str]) -> bytes:
    """SHA-256 of a key, RFC 7638."""
    text = json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def open_envelope(envelope: object, key: ExchangeKey) -> tuple[dict[str, object], bytes]:
    """The protected header and the contents of a flattened JWE. Raises ``AgentError``."""
    if not isinstance(envelope, dict):
        raise AgentError("the broker's answer is no JWE")
    protected = envelope.get("protected")
    try:
        header = json.loads(_decode(protected))
    except (ValueError, RecursionError):
        header = None
    loose = envelope.get("header", {})
    if not isinstance(header, dict) or not isinstance(loose, dict) or header.keys() & loose.keys():
        raise AgentError("the broker's answer is no JWE")
    if header.get("alg") != ALGORITHM or header.get("enc") != ENCRYPTION or loose.keys() - {"epk"}:
        raise AgentError("the broker's answer is encrypted in another way")
    # Not authenticated by itself: with another key in its place the wrapped key does not open.
    shared = key.agree(_point(loose.get("epk", header.get("epk"))))
    wrapping = _concat_kdf(shared, ALGORITHM)
    content = unwrap(wrapping, _decode(envelope.get("encrypted_key")))
    iv, ciphertext, tag = (_decode(envelope.get(name)) for name in ("iv", "ciphertext", "tag"))
    return header, decrypt(content, iv, ciphertext, tag, str(protected).encode())


def _concat_kdf(shared: bytes, algorithm: str) -> bytes:
    """32 bytes by the Concat KDF as RFC 7518, 4.6.2 uses it, with empty apu and apv: one round of SHA-256."""
    name = algorithm.encode()
    info = len(name).to_bytes(4, "big") + name + bytes(4) + bytes(4) + (256).to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + shared + info).digest()


def _point(jwk: object) -> bytes:
    if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or jwk.get("crv") != CURVE:
        raise AgentError("the broker's key is of another kind")
    coordinates = [_decode(jwk.get(name)) for name in ("x", "y")]
    if any(len(coordinate) != _COORDINATE for coordinate in coordinates):
        raise AgentError("the broker's key is no point")
    return b"\x04" + b"".join(coordinates)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(value: object) -> bytes:
    """Raises ``AgentError``."""
    try:
        return base64.b64decode(str(value).encode() + b"=" * (-len(str(value)) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise AgentError("the broker's answer is no JWE") from None
