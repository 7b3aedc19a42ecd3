"""What a request asks: one JSON object, checked value by value, as everything a stranger sends."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from vambrace.attest.challenge import INSTANCE_BYTES, NONCE_BYTES, channel_challenge, launch_challenge
from vambrace.attest.token import MAX_TOKEN, decode_evidence
from vambrace.errors import UsageError

POLICY_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62})")
#: A request has at most these many bytes: evidence in base64, a key, and room for the rest.
MAX_REQUEST: Final = 128 << 10
_MAX_KEY: Final = 8 << 10
_CHALLENGE_BYTES: Final = 64
_RESULT_NONCE: Final = (8, 64)


@dataclass(frozen=True)
class Question:
    """``challenge`` (64 bytes) is what the evidence must answer; ``instance`` the one it must be of, where it is known.
    ``measurement`` and ``owner`` are demanded beside what the policy demands. ``nonce`` is given back in the result."""

    evidence: bytes
    policy: str
    challenge: bytes
    instance: bytes | None = None
    measurement: bytes | None = None
    owner: bytes | None = None
    nonce: bytes | None = None


def parse_question(body: bytes) -> Question:
    """Raises ``UsageError`` for what is not a request, ``MalformedEvidence`` for what is no evidence."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the body is not JSON", hint="see /v1/openapi.json") from None
    top = _Object(value, "the body")
    evidence = top.encoded("evidence", 1, MAX_TOKEN)
    policy = top.text("policy", POLICY_NAME)
    challenge, instance = _binding(evidence, _Object(top.take("binding"), "binding"))
    expected = _Object(top.take("expect", {}), "expect")
    question = Question(
        evidence=evidence,
        policy=policy,
        challenge=challenge,
        instance=instance,
        measurement=expected.hexadecimal("measurement", 32, 48, 64, optional=True),
        owner=expected.hexadecimal("owner", 64, optional=True),
        nonce=top.encoded("nonce", *_RESULT_NONCE) if top.has("nonce") else None,
    )
    expected.finish()
    top.finish()
    return question


def _binding(evidence: bytes, binding: _Object) -> tuple[bytes, bytes | None]:
    """The challenge that binds the evidence to the asker's nonce, and the instance that it must be of."""
    kind = binding.take("kind")
    instance: bytes | None = None
    if kind == "launch":
        nonce = _given(binding.hexadecimal("nonce", NONCE_BYTES))
        decoded = decode_evidence(evidence)
        challenge = launch_challenge(nonce, decoded.realm.instance, decoded.suite)
    elif kind == "channel":
        nonce = _given(binding.hexadecimal("nonce", NONCE_BYTES))
        instance = _given(binding.hexadecimal("instance", INSTANCE_BYTES))
        key = binding.encoded("key", 1, _MAX_KEY)
        challenge = channel_challenge(nonce, key, instance, decode_evidence(evidence).suite)
    elif kind == "challenge":
        challenge = _given(binding.hexadecimal("challenge", _CHALLENGE_BYTES))
    else:
        raise UsageError("binding.kind is launch, channel or challenge")
    binding.finish()
    return challenge, instance


def _given(value: bytes | None) -> bytes:
    assert value is not None  # not optional
    return value


class _Object:
    """Typed access to a JSON object; ``finish`` refuses what was not asked for. Raises ``UsageError``."""

    def __init__(self, value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{name} is not an object", hint="see /v1/openapi.json")
        self._values = value
        self._name = name
        self._left = set(value)

    def has(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = None) -> Any:
        self._left.discard(key)
        return self._values.get(key, default)

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise UsageError(f"{key} of {self._name} is not a text of the form {pattern.pattern}")
        return value

    def encoded(self, key: str, least: int, most: int) -> bytes:
        """Base64."""
        value = self.take(key)
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
        except (binascii.Error, ValueError):
            data = b""
        if not least <= len(data) <= most:
            raise UsageError(f"{key} of {self._name} is not {least} to {most} bytes in base64")
        return data

    def hexadecimal(self, key: str, *sizes: int, optional: bool = False) -> bytes | None:
        value = self.take(key)
        if value is None and optional:
            return None
        if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9a-f]{2})*", value) or len(value) // 2 not in sizes:
            lengths = " or ".join(str(size) for size in sizes)
            raise UsageError(f"{key} of {self._name} is not {lengths} bytes in lower-case hexadecimal")
        return bytes.fromhex(value)

    def finish(self) -> None:
        if self._left:
            raise UsageError(f"{min(self._left)[:40]!a} of {self._name} is not known", hint="see /v1/openapi.json")
