"""The claims' wire format, the insecure stand-in and the session where there is no TrustZone."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from vambrace.attest.claims import CACHE_PARTITIONS, DOMAIN_CLASSES
from vambrace.errors import TrustZoneError
from vambrace.suite import SM, SUITES
from vambrace.trustzone import RealmClaims, SealingClaims, TrustZone, session
from vambrace.trustzone.insecure import InsecurePlatform

FIRMWARE = Path(__file__).parents[2] / "firmware"

CLAIMS = RealmClaims(
    instance=bytes(range(16)),
    rim=b"M" * 32,
    rems=(b"1" * 32, b"2" * 32, b"3" * 32, b"4" * 32),
    personalization=b"P" * 64,
    challenge=b"C" * 64,
)


def field_offsets(header: str, struct: str) -> dict[str, int]:
    """What the comments of ``protocol.h`` say where each field of a request is."""
    fields = header.split(f"struct {struct} {{")[1].split("};")[0]
    return {name: int(at) for name, at in re.findall(r"(\w+)(?:\[\d+\])*;\s+/\* (\d+)", fields)}


def test_a_sealing_request_has_the_layout_of_protocol_h() -> None:
    at = field_offsets((FIRMWARE / "ta/protocol.h").read_text(), "sealing_request")
    owner = SealingClaims(CLAIMS.personalization, name="patients", version=7, debug=True).encode()
    measured = SealingClaims(CLAIMS.personalization, rim=CLAIMS.rim, suite=SM).encode()
    assert owner[: at["policy"]] == bytes.fromhex("0100000001000000")
    assert (owner[at["policy"]], measured[at["policy"]]) == (2, 1)
    assert (owner[at["suite"]], measured[at["suite"]]) == (0, 2)
    assert owner[at["domain_class"]] == measured[at["domain_class"]] == 1
    for request in (owner, measured):
        assert request[at["personalization"] : at["rim"]] == CLAIMS.personalization
    assert measured[at["rim"] : at["name"]] == CLAIMS.rim and not any(owner[at["rim"] : at["name"]])
    assert owner[at["name"] : at["image_version"]] == b"patients".ljust(32, b"\0")
    assert owner[at["image_version"] : at["reserved_too"]] == b"\x07\0\0\0"


def test_the_request_has_the_layout_of_protocol_h() -> None:
    wire = replace(CLAIMS, debug=True, suite=SM).encode()
    header = (FIRMWARE / "ta/protocol.h").read_text()
    offsets = field_offsets(header, "realm_request")
    assert len(wire) == 320
    assert wire[:8] == bytes.fromhex("0100000001000000")
    assert wire[offsets["suite"]] == 2
    assert wire[offsets["key_storage"]] == 1
    assert wire[offsets["cache_partition"]] == 0
    assert not any(wire[offsets["reserved"] : offsets["instance"]])
    for domain_class in DOMAIN_CLASSES:
        found = re.search(rf"^#define REQUEST_CLASS_{domain_class.upper()} (\d+)$", header, re.MULTILINE)
        stated = replace(CLAIMS, domain_class=domain_class).encode()[offsets["domain_class"]]
        assert found and stated == int(found[1])
    for suite in SUITES.values():
        found = re.search(rf"^#define REQUEST_SUITE_{suite.name.upper()} (\d+)$", header, re.MULTILINE)
        assert found and replace(CLAIMS, suite=suite).encode()[offsets["suite"]] == int(found[1])
    for partition in CACHE_PARTITIONS:
        word = partition.upper().replace("-", "_")
        found = re.search(rf"^#define REQUEST_PARTITION_{word} (\d+)$", header, re.MULTILINE)
        stated = replace(CLAIMS, cache_partition=partition).encode()[offsets["cache_partition"]]
        assert found and stated == int(found[1])
    for name in ("instance", "personalization", "challenge", "rim"):
        value = getattr(CLAIMS, name)
        assert wire[offsets[name] : offsets[name] + len(value)] == value
    assert wire[offsets["rems"] :] == b"".join(CLAIMS.rems)


def test_commands_are_those_of_protocol_h() -> None:
    header = (FIRMWARE / "ta/protocol.h").read_text()
    for name in ("PLATFORM_KEY", "LIFECYCLE", "ADVANCE", "RANDOM", "EVIDENCE"):
        found = re.search(rf"^#define CMD_{name} (\d+)$", header, re.MULTILINE)
        assert found and int(found[1]) == getattr(session, f"_{name}")
    assert f"#define RANDOM_MAX {session.RANDOM_MAX}\n" in header
    platform = (FIRMWARE / "common/vambrace_platform.h").read_text()
    assert str(session.APPLICATION) in platform
    assert str(session.APPLICATION) in (FIRMWARE / "ta/Makefile").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"instance": bytes(15)},
        {"rim": bytes(48)},
        {"rems": (bytes(32),) * 3},
        {"rems": (bytes(32),) * 3 + (bytes(31),)},
        {"personalization": bytes(63)},
        {"challenge": b""},
        {"key_storage": "trustzone"},
        {"cache_partition": "colours"},
        {"domain_class": "normal"},
    ],
    ids=lambda change: "-".join(change),
)
def test_claims_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrustZoneError):
        replace(CLAIMS, **change)


def test_without_the_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LIBRARY", "libteec-that-nobody-has.so.2")
    with pytest.raises(TrustZoneError) as caught:
        TrustZone()
    assert caught.value.hint == "install libteec2"


def test_the_package_imports_no_cryptography() -> None:
    program = "import sys, vambrace.trustzone; assert not {'cryptography', 'cbor2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def _verify(token: bytes, cose_key: bytes) -> dict[int, Any]:
    message = cbor2.loads(token)
    assert message.tag == 18
    protected, unprotected, payload, signature = message.value
    assert (protected, unprotected) == (bytes.fromhex("a10126"), {})
    key = cbor2.loads(cose_key)
    assert (key[1], key[-1]) == (2, 1)
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(key[-2], "big"), int.from_bytes(key[-3], "big"), ec.SECP256R1()
    )
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    signed = cbor2.dumps(["Signature1", protected, b"", payload], canonical=True)
    numbers.public_key().verify(der, signed, ec.ECDSA(hashes.SHA256()))
    claims = cbor2.loads(payload)
    assert cbor2.dumps(claims, canonical=True) == payload
    assert isinstance(claims, dict)
    return claims


def test_the_insecure_platform_signs_and_says_that_it_is_insecure() -> None:
    with InsecurePlatform() as platform:
        collection = cbor2.loads(platform.evidence(CLAIMS))
        assert collection.tag == 907
        (kind, device_half), (_, realm_half) = collection.value[44234], collection.value[44241]
        assert kind == 263
        device = _verify(device_half, platform.platform_key())
        rak = cbor2.loads(cbor2.loads(realm_half).value[2])[44237]
        realm = _verify(realm_half, rak)
    assert device[10] == hashlib.sha256(rak).digest()
    assert device[256] == b"\x01" + hashlib.sha256(platform.platform_key()).digest()
    assert device[2395] == platform.lifecycle() == 0x1000
    assert realm[-70004] is True
    assert (realm[10], realm[44238], realm[44235], realm[-70001]) == (
        CLAIMS.challenge,
        CLAIMS.rim,
        CLAIMS.personalization,
        CLAIMS.instance,
    )
    with pytest.raises(InvalidSignature):
        _verify(collection.value[44241][1], platform.platform_key())


def test_the_insecure_platform_cannot_be_secured() -> None:
    with pytest.raises(TrustZoneError):
        InsecurePlatform().advance(0x3000)


def test_two_insecure_platforms_share_no_key() -> None:
    assert InsecurePlatform().platform_key() != InsecurePlatform().platform_key()
    assert len(InsecurePlatform().random(33)) == 33
