"""Signatures on images in registries, in the form that cosign and policies of containers-policy.json(5) read.

What is signed (ECDSA on P-256, SHA-256) is a "simple signing" payload that names the digest of the image's manifest.
It is kept beside the image, under a tag that is made of that digest.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from vambrace.attest.suites import PrivateKey, PublicKey
from vambrace.errors import ConfigError, SignatureInvalid

_KIND: Final = "cosign container image signature"


def sign_manifest(key: PrivateKey, digest: str, reference: str) -> tuple[bytes, str]:
    """The payload for the manifest with SHA-256 ``digest`` (hex), known as ``reference`` (registry/name:tag), and the
    signature (base64). Raises ``ConfigError`` for a key of another kind."""
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError("registries' signatures are by ECDSA P-256", hint="sign with such a key")
    identity, image = {"docker-reference": reference}, {"docker-manifest-digest": f"sha256:{digest}"}
    statement = {"critical": {"identity": identity, "image": image, "type": _KIND}, "optional": {}}
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    return payload, base64.b64encode(key.sign(payload, ECDSA(SHA256()))).decode()


def verify_manifest(key: PublicKey, digest: str, payload: bytes, signature: Any) -> None:
    """Raises ``SignatureInvalid`` unless ``signature`` (base64) is by ``key`` and says that it is for ``digest``."""
    if not isinstance(key, EllipticCurvePublicKey):
        raise SignatureInvalid("registries' signatures are by ECDSA P-256, and this key is of another kind")
    try:
        if not isinstance(signature, str) or not re.fullmatch(r"[A-Za-z0-9+/=]{1,200}", signature):
            raise ValueError
        key.verify(base64.b64decode(signature, validate=True), payload, ECDSA(SHA256()))
    except (InvalidSignature, ValueError, binascii.Error):
        raise SignatureInvalid("the signature in the registry is not by this key") from None
    try:
        said = json.loads(payload)["critical"]
        matches = said["image"]["docker-manifest-digest"] == f"sha256:{digest}" and said["type"] == _KIND
    except (ValueError, RecursionError, LookupError, TypeError):
        matches = False
    if not matches:
        raise SignatureInvalid("the signature in the registry is for another image")
