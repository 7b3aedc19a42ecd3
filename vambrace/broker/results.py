"""The attestation result that ends a session's handshake: a JWT (RFC 7519) as the KBS protocol describes it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from jwcrypto.common import JWException
from jwcrypto.jwk import JWK
from jwcrypto.jwt import JWT

from vambrace.attest.verify import VerifiedRealm
from vambrace.broker.envelope import CURVE, TeeKey
from vambrace.errors import ConfigError

ISSUER: Final = "vambrace broker"
ALGORITHM: Final = "ES256"


class ResultSigner:
    """Signs with the broker's own key (PEM, P-256), which its certificate names. Raises ``ConfigError``."""

    def __init__(self, key: Path, seconds: int) -> None:
        self._seconds = seconds
        try:
            self._key = JWK.from_pem(key.read_bytes())
        except OSError as error:
            raise ConfigError(f"the broker's key {key}: {error.strerror}", hint="see key in broker.toml") from None
        except (ValueError, JWException):
            raise ConfigError(f"the broker's key {key} cannot be read", hint="a private key in PEM") from None
        if self._key.get("kty") != "EC" or self._key.get("crv") != CURVE:
            raise ConfigError(f"the broker's key {key} is not on {CURVE}", hint="'vambrace broker init' makes one")

    def sign(self, realm: VerifiedRealm, key: TeeKey) -> str:
        """What was found of ``realm``. It says nothing of any secret, and none is released for it: a session is."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "iat": now,
            "exp": now + self._seconds,
            "jwk": self._key.export_public(as_dict=True),
            "tee-pubkey": key.jwk(),
            "tcb-status": realm.as_dict(),
        }
        token = JWT(header={"alg": ALGORITHM, "typ": "JWT"}, claims=claims)
        token.make_signed_token(self._key)
        text: str = token.serialize()
        return text
