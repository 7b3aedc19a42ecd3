"""Tokens of Arm CCA: genuine ones that were changed, and claims, keys and headers of anybody that are signed."""

from __future__ import annotations

import contextlib
import hashlib

import cbor2
from cca_factory import PROFILES, REALM, Cca, bare, cose_key, records, sign1
from cca_vectors import VECTORS
from cryptography.hazmat.primitives.asymmetric import ec
from evidence import changed
from script import Script, demand

from vambrace.attest import profiles
from vambrace.attest.claims import DIGEST_BYTES, UnverifiedCcaRealm
from vambrace.attest.diagnostic import diagnostic
from vambrace.attest.show import describe
from vambrace.attest.signatures import check_signatures
from vambrace.attest.token import UnverifiedToken, decode_evidence, decode_token
from vambrace.errors import MalformedEvidence, SignatureInvalid, UnknownProfile

# On a curve on which signing takes little time; the legacy profile knows no other than P-384 for its realm key.
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in "pr"]
PLATFORMS = [Cca(version, *KEYS) for version in PROFILES if version != "legacy"]
ORIGINALS = [decode_token(vector.token) for vector in VECTORS]


def run(data: bytes) -> None:
    script = Script(data)
    script.of(WAYS)(script)


def genuine(script: Script) -> None:
    """Whatever is done to a token, what is still signed says what it said."""
    which = script.below(len(VECTORS))
    token, original = changed(script, VECTORS[which].token), ORIGINALS[which]
    if (decoded := read(token)) is None:
        return
    with contextlib.suppress(MalformedEvidence, SignatureInvalid):
        check_signatures(decoded, VECTORS[which].platform_key)
        demand((decoded.platform, decoded.realm) == (original.platform, original.realm), "a wrong yes")


def claims(script: Script) -> None:
    """Claims of either half, signed by their platform."""
    cca = script.of(PLATFORMS)
    halves = cca.halves()
    if script.number() & 1:
        halves[REALM] = sign1(cca.rak, changed(script, cbor2.dumps(cca.realm_claims())))
    else:
        halves[44234] = sign1(cca.cpak, changed(script, cbor2.dumps(cca.platform_claims())))
    decoded = read(records(halves) if script.number() & 1 else bare(halves))
    if decoded is not None:
        well_formed(decoded)
        with contextlib.suppress(MalformedEvidence, SignatureInvalid):
            check_signatures(decoded, cca.cpak.public_key())
            demand(decoded.platform.challenge == hashlib.sha256(decoded.realm.rak).digest(), "a wrong yes")


def realm_key(script: Script) -> None:
    """A realm key of any form: only one that encodes the key that signed is taken."""
    cca = script.of(PLATFORMS)
    key = changed(script, cose_key(cca.rak.public_key()))
    decoded = read(Cca(cca.version, cca.cpak, cca.rak, key).token())
    if decoded is not None:
        with contextlib.suppress(MalformedEvidence, SignatureInvalid):
            check_signatures(decoded, cca.cpak.public_key())
            demand(decoded.profile.decode_rak(key) == cca.rak.public_key(), "a wrong yes")


def header(script: Script) -> None:
    cca = script.of(PLATFORMS)
    half = sign1(cca.rak, cbor2.dumps(cca.realm_claims()), protected=changed(script, b"\xa1\x01\x26"))
    read(records({**cca.halves(), REALM: half}))


def anything(script: Script) -> None:
    read(script.rest())


def read(token: bytes) -> UnverifiedToken | None:
    """Never another error; and never one of Arm's where only ours will do."""
    with contextlib.suppress(MalformedEvidence):
        demand(diagnostic(token).isascii(), "a notation beyond ASCII")
    with contextlib.suppress(MalformedEvidence):
        describe(token)
    try:
        decoded = decode_token(token)
    except MalformedEvidence:
        return None
    if decoded.profile is not profiles.VAMBRACE:
        with contextlib.suppress(UnknownProfile):
            decode_evidence(token)
            demand(False, "a token of Arm's is taken for one of ours")
    return decoded


def well_formed(token: UnverifiedToken) -> None:
    platform, realm = token.platform, token.realm
    demand(isinstance(realm, UnverifiedCcaRealm), "another type of realm")
    demand(len(platform.ueid) == 33 and platform.ueid[0] == 1 and len(platform.implementation_id) == 32, "strange ids")
    digests = (platform.challenge, realm.measurement, *realm.rems, *(part.digest for part in platform.components))
    demand(all(len(digest) in DIGEST_BYTES for digest in digests), "a strange digest")
    demand(len(realm.rems) == 4 and len(realm.challenge) == len(realm.personalization) == 64, "a strange realm")


WAYS = (genuine, claims, realm_key, header, anything)
