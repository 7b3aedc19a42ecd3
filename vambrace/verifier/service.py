"""Answers questions: appraises evidence by a named policy, and signs the result."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vambrace.attest import ear
from vambrace.attest.anchors import Anchors, read_anchors
from vambrace.attest.appraisal import appraise
from vambrace.attest.endorsement import load_or_make_key
from vambrace.attest.policy import Policy
from vambrace.errors import ConfigError, VambraceError
from vambrace.verifier.questions import POLICY_NAME, Question
from vambrace.verifier.settings import Settings

log = logging.getLogger(__name__)


class UnknownPolicy(VambraceError):
    """No policy has this name."""


class NotReady(VambraceError):
    """What the service must know to appraise cannot be loaded: it appraises nothing rather than by what it knew."""


@dataclass(frozen=True)
class _Loaded:
    anchors: Anchors
    policies: dict[str, Policy]
    when: datetime


class Service:
    """``load`` first, and again from time to time: files change, and validity ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = load_or_make_key(settings.signing_key)
        self._loaded: _Loaded | None = None

    def load(self, now: datetime | None = None) -> None:
        """Read anchors and policies anew. Raises what is wrong with them, and is not ready from then on."""
        settings, time = self._settings, now or datetime.now(UTC)
        self._loaded = None
        anchors = read_anchors(
            roots=settings.roots,
            corims=settings.corims,
            lists=settings.revocation_lists,
            signers=settings.signers,
            now=time,
        )
        self._loaded = _Loaded(anchors, _read_policies(settings), time)

    def reload(self) -> None:
        """``load``, whose failure is logged and makes every question be refused."""
        try:
            self.load()
        except VambraceError as error:
            log.error("nothing is appraised until this is mended: %s", error.message)

    def answer(self, question: Question, *, cbor: bool = False, now: datetime | None = None) -> str | bytes:
        """The signed result: a JWT, or with ``cbor`` a CWT.

        Raises ``MalformedEvidence``, ``UnknownPolicy``, ``NotReady``. What is refused has a result that says so.
        """
        loaded = self._ready()
        policy = loaded.policies.get(question.policy)
        if policy is None:
            raise UnknownPolicy(f"there is no policy {question.policy!a}", hint="GET /v1/verifier lists them")
        appraisal = appraise(
            question.evidence,
            anchors=loaded.anchors,
            policy=policy,
            challenge=question.challenge,
            instance=question.instance,
            expected_measurement=question.measurement,
            expected_owner=question.owner,
            now=now,
        )
        claims = ear.claims_set(appraisal, nonce=question.nonce, now=now)
        return ear.sign_cwt(claims, self._key) if cbor else ear.sign_jwt(claims, self._key)

    def describe(self) -> dict[str, Any]:
        """JSON-able: who this is, by which key its results are verified, and by what it appraises."""
        loaded = self._ready()
        identity = ear.VerifierIdentity()
        return {
            "ear_verifier_id": {"developer": identity.developer, "build": identity.build},
            "eat_profile": ear.PROFILE,
            "key": ear.public_jwk(self._key.public_key()),
            "policies": [
                {"name": name, "id": policy.name, "sha256": policy.digest().hex()}
                for name, policy in sorted(loaded.policies.items())
            ],
            "loaded": int(loaded.when.timestamp()),
        }

    def keys(self) -> dict[str, Any]:
        """The verifier's keys as a JWK set (RFC 7517, 5)."""
        return {"keys": [ear.public_jwk(self._key.public_key())]}

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise NotReady("the verifier is not ready", hint="its operator finds the reason in the log")
        return self._loaded


def _read_policies(settings: Settings) -> dict[str, Policy]:
    policies = {}
    for path in sorted(settings.policies.glob("*.toml")):
        if not POLICY_NAME.fullmatch(path.stem):
            raise ConfigError(f"{path} cannot name a policy", hint="use a-z, 0-9 and hyphens")
        try:
            policies[path.stem] = Policy.parse(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None
    if not policies:
        raise ConfigError(f"{settings.policies} has no policies", hint="put one into NAME.toml there")
    return policies
