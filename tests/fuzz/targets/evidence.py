"""Tokens, reference values, owners' messages: as they come over the network, and signed by who may sign anything."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from attest_factory import INSTANCE, MEASUREMENT, NONCE, NOW, PERSONALIZATION, Platform, dumps, published, verify
from script import Script, demand

from vambrace.attest import cbor, cose, references
from vambrace.attest.owner import Bounds, OwnerIdentity, verify_bounds, verify_percent, verify_verdict
from vambrace.attest.show import describe
from vambrace.attest.token import collect
from vambrace.attest.verify import verify_launch
from vambrace.errors import MessageRefused, VerificationError

PLATFORM = Platform()
TOKEN, CORIM = PLATFORM.token(), published(PLATFORM)
OWNER = OwnerIdentity.create(Path(tempfile.mkdtemp()) / "owner")
DIGEST = hashlib.sha256(b"token").digest()
MESSAGES = (
    OWNER.sign_verdict(INSTANCE, DIGEST, yes=True),
    OWNER.sign_percent(INSTANCE, 1, 50, 7),
    OWNER.sign_bounds(INSTANCE, 1, Bounds(30, 90, 50), 7),
)
PAYLOADS = [cose.decode_sign1(message, "it").payload for message in MESSAGES]
#: Pieces of CBOR at which a decoder changes its mind.
PIECES = (
    *(bytes([value]) for value in (0, 1, 0x17, 0x18, 0x1F, 0x20, 0x30, 0x5F, 0x7F, 0x80, 0x9F, 0xA0, 0xBF, 0xD2, 0xF4)),
    *(b"\xf6", b"\xf7", b"\xf9\x7e\x00", b"\xfb" + bytes(8), b"\xff", b"\x9b" + b"\xff" * 8, b"\x5b\x7f" + b"\xff" * 7),
    *(b"\x18\x17", b"\x19\x00\x01", b"\xc0", b"\xd9\x03\x8b", b"\xc2\x41\x01", b"\x81" * 40, b"\x41\x00", b"\x61\xff"),
)


def run(data: bytes) -> None:
    script = Script(data)
    script.of(WAYS)(script)


def changed(script: Script, data: bytes) -> bytes:
    """``data`` with some bytes exchanged, put in and taken out."""
    for _ in range(1 + script.below(4)):
        at = script.number(2) % (len(data) + 1)
        end = at + script.of((0, 1, 1, 2, 4, 8, 32, 64))
        piece = script.of(PIECES) if script.number() & 1 else script.text(12)
        data = data[:at] + piece + data[end:]
    return data


def decoded(script: Script) -> None:
    """What is decoded is deterministic: it is written again as it was read."""
    data = script.rest()
    with contextlib.suppress(VerificationError):
        demand(cbor.encode(cbor.decode(data, limit=1 << 20)) == data, "another encoding of the same")
    readers: tuple[Callable[[], object], ...]
    readers = (lambda: cose.decode_sign1(data, "it"), lambda: cose.decode_key(data), lambda: describe(data))
    for read in readers:
        with contextlib.suppress(VerificationError):
            read()


def token(script: Script) -> None:
    judged(changed(script, TOKEN))


def claims(script: Script) -> None:
    """Claims, of either half, that a certified platform signs."""
    halves = PLATFORM.halves()
    if script.number() & 1:
        halves[44234] = cose.sign1(
            PLATFORM.pak, changed(script, dumps(PLATFORM.platform_claims())), unprotected={33: PLATFORM.endorsement[0]}
        )
    else:
        halves[44241] = cose.sign1(PLATFORM.rak, changed(script, dumps(PLATFORM.realm_claims())))
    judged(collect(halves[44234], halves[44241]))


def judged(evidence: bytes) -> None:
    """Never another error, never a wrong yes."""
    with contextlib.suppress(VerificationError):
        describe(evidence)
    with contextlib.suppress(VerificationError):
        realm = verify(evidence, PLATFORM)
        demand(realm.measurement == MEASUREMENT and realm.personalization == PERSONALIZATION, "a wrong yes")
        demand(realm.lifecycle == 0x3000 and not realm.insecure and not realm.debug, "a wrong yes")
    with contextlib.suppress(VerificationError):
        verify_launch(
            evidence,
            nonce=NONCE,
            roots=PLATFORM.roots,
            references=PLATFORM.references,
            measurement=MEASUREMENT,
            personalization=PERSONALIZATION,
            now=NOW,
        )


def reference_values(script: Script) -> None:
    data = changed(script, CORIM)
    if data != CORIM:
        try:
            references.load(data, PLATFORM.roots, now=NOW)
        except VerificationError:
            return
        demand(False, "changed reference values are taken")


def message(script: Script) -> None:
    ordered(changed(script, script.of(MESSAGES)))


def order(script: Script) -> None:
    """By the owner's own key, over anything."""
    ordered(cose.sign1(OWNER.key, changed(script, script.of(PAYLOADS))))


def ordered(data: bytes) -> None:
    pem = OWNER.certificate_pem
    with contextlib.suppress(MessageRefused, VerificationError):
        verify_verdict(data, owner=pem, instance=INSTANCE, token_digest=DIGEST)
    with contextlib.suppress(MessageRefused, VerificationError):
        percent = verify_percent(data, owner=pem, instance=INSTANCE, last_counter=6)
        demand(percent.counter > 6 and 0 <= percent.percent <= 100 and percent.zone >= 0, "a strange percentage")
    with contextlib.suppress(MessageRefused, VerificationError):
        bounds = verify_bounds(data, owner=pem, instance=INSTANCE, last_counter=6)
        demand(bounds.counter > 6 and bounds.zone >= 0, "strange bounds")
        wide = bounds.bounds
        demand(wide is None or 1 <= wide.lowest <= wide.highest <= 100, "strange bounds")


WAYS = (decoded, claims, order, token, message, reference_values)
