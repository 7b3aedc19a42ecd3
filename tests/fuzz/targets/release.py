"""What passes between a Realm and its broker, at both ends, and what was sealed: no other error, no wrong yes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from jsons import edited, packet
from script import Script, demand

from vambrace.broker.envelope import TeeKey, encrypt
from vambrace.broker.names import ResourceName
from vambrace.broker.policy import ReleasePolicy
from vambrace.broker.release import read_evidence
from vambrace.errors import VambraceError

sys.path.insert(0, str(Path(__file__).parents[3] / "guest" / "agent"))

from vambrace_agent import AgentError  # noqa: E402
from vambrace_agent.jwe import open_envelope, public_jwk  # noqa: E402
from vambrace_agent.libcrypto import ExchangeKey  # noqa: E402
from vambrace_agent.release import Volume  # noqa: E402
from vambrace_agent.sealing import Sealing  # noqa: E402

KEY = ExchangeKey()
JWK = public_jwk(KEY)
SECRET = b"what is in the envelope"
HEADER: dict[str, str | int] = {"resource": "a/b/c", "generation": 3}
ENVELOPE = json.loads(encrypt(SECRET, TeeKey.parse(JWK), HEADER))
EVIDENCE = {"primary_evidence": {"token": "aGVsbG8="}, "additional_evidence": "{}"}
POLICY = {
    "schema": "vambrace.policy/1",
    "id": "x",
    "platform": {"revocation": "check", "lifecycles": ["secured"]},
    "realm": {"measurements": [64 * "0"], "owners": [128 * "0"], "hash": "sha-256", "cache": "any", "debug": False},
}
VOLUME = {"key": "AAAA", "generation": 3, "state": "", "ticket": "AAAA"}
SEALING = Sealing(2, lambda version: hashlib.sha256(bytes([version])).digest())
SEALED = SEALING.seal("analysis", SECRET)


def run(data: bytes) -> None:
    script = Script(data)
    script.of(WAYS)(script)


def envelope(script: Script) -> None:
    """Anything in place of what the broker sent: it opens as it was sent, or not at all."""
    changed = edited(script, ENVELOPE)
    try:
        header, value = open_envelope(changed, KEY)
    except AgentError:
        return
    demand(value == SECRET and header.get("resource") == "a/b/c" and header.get("generation") == 3, "another secret")


def key(script: Script) -> None:
    with contextlib.suppress(VambraceError):
        found = TeeKey.parse(_parsed(script, JWK))
        demand(len(found.thumbprint()) == 32, "a strange key")
        demand(TeeKey.parse({**found.jwk(), "alg": JWK["alg"]}) == found, "two spellings of a key")


def evidence(script: Script) -> None:
    with contextlib.suppress(VambraceError):
        read_evidence(_parsed(script, EVIDENCE))


def policy(script: Script) -> None:
    with contextlib.suppress(VambraceError):
        found = ReleasePolicy.parse("default", _parsed(script, POLICY))
        demand(found.policy.measurements, "a policy that admits every image, or none")
        stored = json.loads(found.encode())
        demand(ReleasePolicy.parse(stored["platform"], stored["policy"]) == found, "it is not read back as it was")


def name(script: Script) -> None:
    text = script.rest().decode("utf-8", "surrogateescape")
    with contextlib.suppress(VambraceError):
        demand(str(ResourceName.parse(text)) == text and text.isascii(), "a strange name")


def volume(script: Script) -> None:
    with contextlib.suppress(AgentError):
        Volume(None, "a/volume/b", 3, packet(script, [VOLUME]))  # type: ignore[arg-type]


def sealed(script: Script) -> None:
    at = script.number(2) % (len(SEALED) + 1)
    data = SEALED[:at] + script.text(40) + SEALED[at + script.below(4) :]
    with contextlib.suppress(AgentError):
        demand(SEALING.unseal("analysis", data) == SECRET and data == SEALED, "what was changed opens")


def _parsed(script: Script, sample: Any) -> Any:
    """JSON like ``sample``, as the server has read it."""
    try:
        return json.loads(packet(script, [sample]))
    except ValueError:
        return None


WAYS = (envelope, key, evidence, policy, name, volume, sealed)
