"""The attestation result that ends a session's handshake: an EAR as JWT (``vambrace.attest.ear``)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from vambrace.attest.appraisal import Appraisal
from vambrace.attest.ear import claims_set, sign_jwt
from vambrace.attest.suites import load_p256
from vambrace.broker.envelope import TeeKey
from vambrace.errors import ConfigError


class ResultSigner:
    """Signs with the broker's own key (PEM, P-256), which its certificate names. Raises ``ConfigError``."""

    def __init__(self, key: Path, seconds: int) -> None:
        self._lifetime = timedelta(seconds=seconds)
        try:
            self._key = load_p256(key.read_bytes())
        except OSError as error:
            raise ConfigError(f"the broker's key {key}: {error.strerror}", hint="see key in broker.toml") from None
        except ValueError:
            raise ConfigError(
                f"the broker's key {key} is no private key on P-256", hint="'vambrace broker init' makes one"
            ) from None

    def sign(self, appraisal: Appraisal, key: TeeKey) -> str:
        """What was found of a Realm. It says nothing of any secret, and none is released for it: a session is."""
        claims = {**claims_set(appraisal, lifetime=self._lifetime), "tee-pubkey": key.jwk()}
        return sign_jwt(claims, self._key)
