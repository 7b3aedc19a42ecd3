"""The suites: known answers of the standards, keys and certificates in every form, and that none passes as another."""

from __future__ import annotations

import hashlib
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest import cose, suites
from vambrace.attest.chain import UNREADABLE
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.owner import CHANNEL_CERTIFICATE_FILE, CHANNEL_KEY_FILE, KEY_FILE, OwnerIdentity
from vambrace.certificate import check_owner, owner_public_key, owner_suite, personalization
from vambrace.errors import ConfigError, MalformedEvidence, SignatureInvalid
from vambrace.image.certificates import read_owner
from vambrace.suite import NIST, SM, SUITES, Suite, split_spki, suite_named

# GB/T 32918.5-2017, A.2: the curve that everybody uses, and a signature with the identity that everybody uses.
PRIVATE = "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8"
POINT = bytes.fromhex(
    "09f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
    "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)
SIGNATURE = bytes.fromhex(
    "f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3"
    "b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa"
)
MESSAGE = b"message digest"
both = pytest.mark.parametrize("suite", SUITES.values(), ids=str)


def test_the_standard_s_signature_verifies() -> None:
    key = suites.load_public(SM.encode_spki(POINT))
    suites.verify(key, SIGNATURE, MESSAGE)
    for changed in (SIGNATURE[:-1] + b"\xab", SIGNATURE[32:] + SIGNATURE[:32], bytes(64), b"\xff" * 64, SIGNATURE[1:]):
        with pytest.raises(InvalidSignature):
            suites.verify(key, changed, MESSAGE)
    with pytest.raises(InvalidSignature):
        suites.verify(key, SIGNATURE, MESSAGE + b"s")


def test_the_standard_s_hash() -> None:
    # GB/T 32905-2016, A.1
    assert SM.digest(b"abc").hex() == "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    assert SM.wide_digest(b"abc") == SM.digest(b"abc") + bytes(32)
    assert NIST.digest(b"abc") == hashlib.sha256(b"abc").digest()
    assert NIST.wide_digest(b"abc") == hashlib.sha512(b"abc").digest()


def test_a_suite_is_found_by_all_of_its_names() -> None:
    assert {suite_named(suite.name) for suite in SUITES.values()} == {NIST, SM}
    for attribute in ("hash", "cipher", "algorithm", "curve", "number", "key_algorithm"):
        assert len({getattr(suite, attribute) for suite in SUITES.values()}) == len(SUITES), attribute
    with pytest.raises(ConfigError, match="one of nist, sm|not known"):
        suite_named("SM")


@both
def test_keys_in_every_form(suite: Suite) -> None:
    key = suites.generate(suite)
    public = key.public_key()
    assert suites.suite_of(key) == suites.suite_of(public) == suite
    assert split_spki(suites.spki(public)) == (suite, suites.point(public))
    for again in (suites.load_public(suites.spki(public)), cose.decode_key(cose.encode_key(public))):
        assert again == public
    again = suites.load_private(suites.private_pem(key))
    assert again.public_key() == public
    signature = suites.sign(again, b"data")
    suites.verify(public, signature, b"data")
    assert suites.sign(key, b"data") != signature, "a fresh number each time"
    with pytest.raises(InvalidSignature):
        suites.verify(suites.generate(suite).public_key(), signature, b"data")


@both
def test_openssl_s_own_program_agrees(suite: Suite, tmp_path: Path) -> None:
    """Key and signature go to its command line and come from there."""
    key = suites.generate(suite)
    (tmp_path / "key.pem").write_bytes(suites.private_pem(key))
    (tmp_path / "data").write_bytes(b"data")
    identity = ["-sigopt", "distid:1234567812345678"] if suite == SM else []
    digest = ["openssl", "dgst", f"-{suite.digests[0]}", *identity]
    subprocess.run([*digest, "-sign", "key.pem", "-out", "signature", "data"], cwd=tmp_path, check=True)
    r, s = suites.decode_dss_signature((tmp_path / "signature").read_bytes())
    suites.verify(key.public_key(), r.to_bytes(32, "big") + s.to_bytes(32, "big"), b"data")


def bad_keys(suite: Suite) -> dict[str, bytes]:
    good = suites.spki(suites.generate(suite).public_key())
    return {
        "nothing": b"",
        "cut off": good[:-1],
        "longer": good + b"\0",
        "off the curve": good[:-1] + bytes([good[-1] ^ 1]),
        "at infinity": suite.encode_spki(bytes(64)),
        "beyond the field": suite.encode_spki(b"\xff" * 64),
        "compressed": good.replace(b"\0\x04", b"\0\x02", 1),
    }


@both
def test_points_that_are_no_key(suite: Suite) -> None:
    for name, data in bad_keys(suite).items():
        with pytest.raises(ValueError, match=".") as caught:
            suites.load_public(data)
        assert caught.type is ValueError, name
    for point in (bytes(64), b"\xff" * 64):
        encoded = cose.encode({1: 2, -1: suite.curve, -2: point[:32], -3: point[32:]})
        with pytest.raises(MalformedEvidence):
            cose.decode_key(encoded)


def test_a_point_of_one_curve_is_none_of_the_other() -> None:
    with pytest.raises(ValueError, match="."):
        suites.load_public(NIST.encode_spki(POINT))
    point = suites.point(suites.generate(NIST).public_key())
    with pytest.raises(ValueError, match="."):
        suites.load_public(SM.encode_spki(point))


def test_private_keys_that_are_none() -> None:
    pem = suites.private_pem(suites.generate(SM))
    body = pem.splitlines()[1]
    for bad in (b"", pem[:60], pem.replace(body, body[:-4] + b"!!!!"), pem.replace(body, body[::-1])):
        with pytest.raises(ValueError, match="."):
            suites.load_private(bad)
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="P-256"):
        suites.load_private(suites.private_pem(other))


def test_an_encrypted_key_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    command = "openssl genpkey -algorithm SM2 -aes-256-cbc -pass pass:secret -out key.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(ValueError, match="."):
        suites.load_private((tmp_path / "key.pem").read_bytes())


# COSE


@both
def test_a_message_is_of_its_key_s_suite(suite: Suite) -> None:
    key = suites.generate(suite)
    message = cose.decode_sign1(cose.sign1(key, b"payload"), "message")
    assert message.protected == {1: suite.algorithm}
    assert message.verify(key.public_key(), "message") == b"payload"
    for other in SUITES.values():
        with pytest.raises(SignatureInvalid):
            message.verify(suites.generate(other).public_key(), "message")


# Certificates


@both
def test_an_authority_certifies_keys_of_its_suite_only(suite: Suite) -> None:
    authority = VendorAuthority.create(suite=suite)
    assert suites.suite_of(suites.certificate_key(authority.certificate)) == suite
    assert suites.issued(authority.certificate, authority.certificate)
    for other in SUITES.values():
        key = cose.encode_key(suites.generate(other).public_key())
        if other == suite:
            leaf = authority.certify(key)
            assert suites.issued(leaf, authority.certificate)
            assert cose.encode_key(suites.certificate_key(leaf)) == key
            assert leaf.subject.rfc4514_string() == f"CN={suite.digest(key).hex()}"
            assert not suites.issued(leaf, VendorAuthority.create(suite=suite).certificate)
        else:
            with pytest.raises(ConfigError, match="suite"):
                authority.certify(key)


def test_openssl_s_own_program_verifies_a_chain_of_sm2(tmp_path: Path) -> None:
    authority = VendorAuthority.create(suite=SM)
    leaf = authority.certify(cose.encode_key(suites.generate(SM).public_key()))
    (tmp_path / "root.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    command = "openssl verify -vfyopt distid:1234567812345678 -purpose any -CAfile root.pem leaf.pem"
    done = subprocess.run(command.split(), cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.stdout == "leaf.pem: OK\n", done.stderr


def test_any_changed_byte_of_a_certificate_of_sm2() -> None:
    authority = VendorAuthority.create(suite=SM)
    der = authority.certificate.public_bytes(Encoding.DER)
    loaded = 0
    for place in range(len(der)):
        changed = der[:place] + bytes([der[place] ^ 1]) + der[place + 1 :]
        try:
            certificate = x509.load_der_x509_certificate(changed)
            named = certificate.issuer == authority.certificate.subject
        except UNREADABLE:
            continue
        loaded += 1
        assert not named or not suites.issued(certificate, authority.certificate), place
    assert loaded > 200, "the test tests something"


def test_a_revocation_list_of_sm2() -> None:
    authority, other = VendorAuthority.create(suite=SM), VendorAuthority.create(suite=SM)
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder(authority.certificate.subject)
    builder = builder.last_update(now).next_update(now + timedelta(days=1))
    crl = suites.sign_revocations(builder, authority.key)
    assert suites.revokes(crl, authority.key.public_key())
    assert not suites.revokes(crl, other.key.public_key())
    assert not suites.revokes(crl, suites.generate(NIST).public_key())


# The owner


@both
def test_an_owner_of_each_suite(suite: Suite, tmp_path: Path) -> None:
    made = OwnerIdentity.create(tmp_path, suite=suite)
    owner = OwnerIdentity.load(tmp_path)
    assert owner.published == made.published and owner.spki == made.spki and owner.suite == suite
    (tmp_path / "owner.pem").write_text(owner.published)
    certificate, channel = read_owner(tmp_path / "owner.pem")
    check_owner(certificate, channel, suite)
    assert (certificate, channel) == (owner.certificate_pem, owner.channel_pem)
    assert owner_suite(certificate) == suite and owner_public_key(certificate) == owner.spki
    assert owner.personalization() == personalization(owner.spki) == suite.wide_digest(b"vambrace-rpv-1" + owner.spki)
    assert bool(channel) != suite.tls
    for other in SUITES.values():
        if other != suite:
            with pytest.raises(ConfigError, match=other.signature):
                check_owner(certificate, channel, other)


def test_an_owner_without_a_key_for_tls(tmp_path: Path) -> None:
    sm, nist = (OwnerIdentity.create(tmp_path / suite.name, suite=suite) for suite in (SM, NIST))
    for owner, channel, suite in (
        (sm.certificate_pem, "", SM),
        (sm.certificate_pem, sm.certificate_pem, SM),
        (nist.certificate_pem, sm.channel_pem, NIST),
    ):
        with pytest.raises(ConfigError, match="channel"):
            check_owner(owner, channel, suite)


def test_a_part_of_an_identity_is_none(tmp_path: Path) -> None:
    OwnerIdentity.create(tmp_path, suite=SM)
    with pytest.raises(ConfigError, match="never overwritten|is there already"):
        OwnerIdentity.create(tmp_path, suite=SM)
    assert OwnerIdentity.load(tmp_path).suite == SM, "what was there stays"
    other = OwnerIdentity.create(tmp_path / "other", suite=SM)
    (tmp_path / CHANNEL_CERTIFICATE_FILE).write_text(other.channel_pem)
    with pytest.raises(ConfigError, match="do not belong together"):
        OwnerIdentity.load(tmp_path)
    (tmp_path / CHANNEL_KEY_FILE).unlink()
    with pytest.raises(ConfigError, match="no owner's identity"):
        OwnerIdentity.load(tmp_path)


@both
def test_keys_are_their_owner_s_alone(suite: Suite, tmp_path: Path) -> None:
    owner = OwnerIdentity.create(tmp_path, suite=suite)
    for path in {owner.key_path, owner.channel_key_path}:
        assert path.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in owner.published and KEY_FILE in str(owner.key_path)
