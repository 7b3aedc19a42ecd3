"""What a verifier is told: CoRIMs, revocation lists, policies, questions, results; also by those who may sign them."""

from __future__ import annotations

import base64
import contextlib
import json

from attest_factory import INSTANCE, MEASUREMENT, NONCE, NOW, PERSONALIZATION, Platform, new_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ReasonFlags, load_pem_x509_crl
from evidence import changed
from jsons import packet
from script import Script, demand

from vambrace.attest import ccavalues, corim, cose, ear
from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import appraise
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.corim import Corim, Environment, KeyTriple, Measurement, ReferenceTriple
from vambrace.attest.policy import Policy
from vambrace.attest.revocation import Revocation, load_list
from vambrace.errors import ConfigError, UsageError, VerificationError
from vambrace.verifier.questions import MAX_REQUEST, parse_question

PLATFORM, ENDORSER, VERIFIER = Platform(), new_key(), new_key()
PEM = ENDORSER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
ENVIRONMENT = Environment(bytes(32), b"\x01" + bytes(32))
PART = Measurement("cca.software-component", digests=(("sha-256", bytes(32)),), name="x", version="1", signer=bytes(32))
CONFIG = Measurement("cca.platform-config", raw=b"\x01\x02", mask=b"\xff\x00")
RIM = Measurement("cca.rim", digests=(("sha-256", bytes(32)),))
REALM = (RIM, Measurement("cca.rem1", digests=(("sha-256", bytes(32)),)), Measurement("cca.rpv", raw=b"x"))
CORIMS = [
    corim.encode_corim(value)
    for value in (
        Corim(
            b"platform",
            ccavalues.PLATFORM_PROFILE,
            (1, 1 << 40),
            (ReferenceTriple(Environment(bytes(32)), (PART, CONFIG)),),
            (KeyTriple(ENVIRONMENT, PLATFORM.pak.public_key()),),
        ),
        Corim(b"realm", ccavalues.REALM_PROFILE, None, (ReferenceTriple(Environment(bytes(32)), REALM),)),
    )
]
HEADER = {3: corim.CONTENT_TYPE}
LIST = load_pem_x509_crl(
    PLATFORM.authority.revocation_list(revoke={4711: ReasonFlags.key_compromise}, now=NOW)
).public_bytes(Encoding.DER)
POLICY = f"""schema = "vambrace.policy/1"
id = "x"
[platform]
profiles = ["cca", "vambrace"]
lifecycles = ["secured"]
revocation = "check"
revocation-days = 7
[realm]
measurements = ["{MEASUREMENT.hex()}"]
owners = ["{PERSONALIZATION.hex()}"]
cache = "divided"
registers = {{ "0" = ["{"00" * 32}"] }}
""".encode()
TOKEN = PLATFORM.token()
QUESTION = {
    "evidence": base64.b64encode(TOKEN).decode(),
    "policy": "default",
    "binding": {"kind": "launch", "nonce": NONCE.hex()},
    "expect": {"measurement": MEASUREMENT.hex(), "owner": PERSONALIZATION.hex()},
    "nonce": base64.b64encode(bytes(8)).decode(),
}
ANCHORS = Anchors(tuple(PLATFORM.roots), (PLATFORM.references,))
APPRAISAL = appraise(
    TOKEN,
    anchors=ANCHORS,
    policy=Policy(measurements=frozenset({MEASUREMENT})),
    challenge=launch_challenge(NONCE, INSTANCE),
    now=NOW,
)
CLAIMS = ear.claims_set(APPRAISAL, nonce=NONCE, now=NOW)
JWT, CWT = ear.sign_jwt(CLAIMS, VERIFIER), ear.sign_cwt(CLAIMS, VERIFIER)
CWT_PAYLOAD = cose.decode_sign1(CWT, "it").payload


def run(data: bytes) -> None:
    script = Script(data)
    script.of(WAYS)(script)


def endorsements(script: Script) -> None:
    """CoRIMs of a signer that is believed, over anything: read, or refused; what is read is written the same way."""
    data = changed(script, script.of(CORIMS))
    with contextlib.suppress(VerificationError):
        read = corim.decode_corim(data)
        demand(corim.decode_corim(corim.encode_corim(read)) == read, "a CoRIM is another when it is written")
    with contextlib.suppress(VerificationError):
        anchors = Anchors.load(corims=[cose.sign1(ENDORSER, data, protected=HEADER)], signers=[PEM], now=NOW)
        demand(all(values.components for values in anchors.cca_platforms), "a platform without components")
        demand(all(key.ueid[0] == 1 for key in anchors.cca_keys), "a key for no machine")


def envelopes(script: Script) -> None:
    data = cose.sign1(ENDORSER, script.of(CORIMS), protected=HEADER)
    altered = changed(script, data)
    with contextlib.suppress(VerificationError):
        read = corim.verify(altered, roots=(), now=NOW, signers=[ENDORSER.public_key()])
        demand(read in [corim.decode_corim(known) for known in CORIMS], "a changed CoRIM is taken")


def lists(script: Script) -> None:
    """A changed list reads, or not; it is never the vendor's any more."""
    data = changed(script, LIST)
    with contextlib.suppress(ConfigError):
        found = load_list(data)
        if found.signed_by(PLATFORM.authority.certificate):
            demand(found.revoked == {4711: "keyCompromise"}, "a changed list is the vendor's")
        with contextlib.suppress(VerificationError):
            Revocation((found,), required=True).check(list(PLATFORM.roots) * 2, NOW)


def policies(script: Script) -> None:
    data = changed(script, POLICY) if script.number() & 1 else script.rest()
    with contextlib.suppress(ConfigError):
        policy = Policy.parse(data)
        demand(Policy.from_table(policy.table()) == policy, "a policy is another when it is written")
        demand(policy.measurements is not None or policy.owners is not None, "a policy accepts everybody")


def questions(script: Script) -> None:
    altered = script.number() & 1
    body = changed(script, json.dumps(QUESTION).encode()) if altered else packet(script, [QUESTION])
    if len(body) > MAX_REQUEST:
        return
    with contextlib.suppress(UsageError, VerificationError):
        question = parse_question(body)
        demand(len(question.challenge) == 64, "a challenge of another length")
        policy = Policy(measurements=frozenset({MEASUREMENT}))
        appraise(question.evidence, anchors=ANCHORS, policy=policy, challenge=question.challenge, now=NOW)


def results(script: Script) -> None:
    """Changed results are refused; what the verifier itself signs is read or refused."""
    for token, verify in ((JWT.encode(), ear.verify_jwt), (CWT, ear.verify_cwt)):
        with contextlib.suppress(VerificationError):
            claims = verify(changed(script, token), VERIFIER.public_key(), now=NOW)
            demand(claims == CLAIMS, "a changed result is taken")
    with contextlib.suppress(VerificationError):
        ear.verify_cwt(cose.sign1(VERIFIER, changed(script, CWT_PAYLOAD)), VERIFIER.public_key(), now=NOW)


WAYS = (endorsements, envelopes, lists, policies, questions, results)
