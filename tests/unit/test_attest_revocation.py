"""Revocation lists: what is revoked is refused, and what is not known for certain where the policy asks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attest_factory import NOW, Platform, new_key, verify
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ReasonFlags

from vambrace.attest.cose import encode_key
from vambrace.attest.endorsement import VendorAuthority, certificate_builder, certificate_name, key_usage
from vambrace.attest.policy import Policy
from vambrace.attest.revocation import RevocationList, load_list
from vambrace.errors import CertificateRevoked, ConfigError, RevocationUnknown, UnknownRoot

STRICT = Policy(require_revocation=True)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def platform() -> Platform:
    return Platform()


def leaf(platform: Platform) -> x509.Certificate:
    return x509.load_der_x509_certificate(platform.endorsement[0])


def listed(platform: Platform, *revoked: int, **changes: Any) -> RevocationList:
    reasons = dict.fromkeys(revoked, ReasonFlags.key_compromise)
    return load_list(platform.authority.revocation_list(revoke=reasons, **{"now": NOW, **changes}))


def custom(authority: VendorAuthority, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
    """A list as the authority would never make it."""
    builder = x509.CertificateRevocationListBuilder(authority.certificate.subject)
    builder = builder.last_update(NOW).next_update(NOW + DAY)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(authority.key, SHA256()).public_bytes(Encoding.DER)


def test_a_good_platform(platform: Platform) -> None:
    verify(platform.token(), platform, revocation_lists=[listed(platform, 4711)], policy=STRICT)


def test_revoked(platform: Platform) -> None:
    with pytest.raises(CertificateRevoked, match="keyCompromise"):
        verify(platform.token(), platform, revocation_lists=[listed(platform, leaf(platform).serial_number)])


def test_without_a_list(platform: Platform) -> None:
    """Accepted by default; a policy that asks for certainty gets none."""
    verify(platform.token(), platform)
    with pytest.raises(RevocationUnknown, match="no revocation list"):
        verify(platform.token(), platform, policy=STRICT)


def test_stale_list(platform: Platform) -> None:
    old = [listed(platform)]
    verify(platform.token(), platform, revocation_lists=old, policy=STRICT, now=NOW + 29 * DAY)
    with pytest.raises(RevocationUnknown, match="was to be renewed"):
        verify(platform.token(), platform, revocation_lists=old, policy=STRICT, now=NOW + 31 * DAY)
    verify(platform.token(), platform, revocation_lists=old, now=NOW + 31 * DAY)


def test_what_an_old_list_revokes_stays_revoked(platform: Platform) -> None:
    old = [listed(platform, leaf(platform).serial_number)]
    with pytest.raises(CertificateRevoked):
        verify(platform.token(), platform, revocation_lists=old, now=NOW + 400 * DAY)


def test_older_than_the_policy_allows(platform: Platform) -> None:
    policy = Policy(require_revocation=True, revocation_age=timedelta(days=3))
    verify(platform.token(), platform, revocation_lists=[listed(platform)], policy=policy, now=NOW + 3 * DAY)
    with pytest.raises(RevocationUnknown, match="older than 3 days"):
        verify(platform.token(), platform, revocation_lists=[listed(platform)], policy=policy, now=NOW + 4 * DAY)


def test_list_of_the_future(platform: Platform) -> None:
    with pytest.raises(RevocationUnknown, match="still to come"):
        verify(platform.token(), platform, revocation_lists=[listed(platform, now=NOW + DAY)], policy=STRICT)


def test_the_newest_list_decides_what_is_fresh(platform: Platform) -> None:
    old, new = listed(platform, now=NOW - 60 * DAY), listed(platform)
    for lists in ([old, new], [new, old]):
        verify(platform.token(), platform, revocation_lists=lists, policy=STRICT)


def test_another_authority_s_list_counts_for_nothing(platform: Platform) -> None:
    """Of the same name, too: only the signature makes it the issuer's."""
    stranger = Platform(authority=VendorAuthority.create(now=NOW))
    theirs = listed(stranger, leaf(platform).serial_number)
    verify(platform.token(), platform, revocation_lists=[theirs])
    with pytest.raises(RevocationUnknown, match="no revocation list"):
        verify(platform.token(), platform, revocation_lists=[theirs], policy=STRICT)


def test_a_platform_s_key_signs_no_list(platform: Platform) -> None:
    """The certified key of a factory that may certify, but not sign lists."""
    root, key = platform.authority, new_key()
    builder = certificate_builder(certificate_name("a factory"), root.certificate.subject, key.public_key(), NOW, 365)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = key_usage(sign_certificates=True)
    no_lists = x509.KeyUsage(**{**{name[1:]: getattr(usage, name) for name in vars(usage)}, "crl_sign": False})
    factory = VendorAuthority(builder.add_extension(no_lists, critical=True).sign(root.key, SHA256()), key)
    certificate = factory.certify(platform.pak_cose, now=NOW)
    chain = [item.public_bytes(Encoding.DER) for item in (certificate, factory.certificate)]
    below = Platform(authority=root, pak=platform.pak, rak=platform.rak, chain=chain)
    lists = [listed(platform), load_list(factory.revocation_list(now=NOW))]
    verify(below.token(), below, revocation_lists=lists)
    with pytest.raises(RevocationUnknown, match="no revocation list"):
        verify(below.token(), below, revocation_lists=lists, policy=STRICT)


def test_every_authority_of_a_chain_is_asked(platform: Platform) -> None:
    root, key = platform.authority, new_key()
    builder = certificate_builder(certificate_name("a factory"), root.certificate.subject, key.public_key(), NOW, 365)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(sign_certificates=True), critical=True)
    factory = VendorAuthority(builder.sign(root.key, SHA256()), key)
    certificate = factory.certify(platform.pak_cose, now=NOW)
    chain = [item.public_bytes(Encoding.DER) for item in (certificate, factory.certificate)]
    below = Platform(authority=root, pak=platform.pak, rak=platform.rak, chain=chain)
    roots_list, factory_list = listed(platform), load_list(factory.revocation_list(now=NOW))
    verify(below.token(), below, revocation_lists=[roots_list, factory_list], policy=STRICT)
    for lists in ([roots_list], [factory_list]):
        with pytest.raises(RevocationUnknown):
            verify(below.token(), below, revocation_lists=lists, policy=STRICT)
    revoked = listed(platform, factory.certificate.serial_number)
    with pytest.raises(CertificateRevoked, match="a factory"):
        verify(below.token(), below, revocation_lists=[revoked, factory_list])


def test_the_next_list_has_all_of_the_last(platform: Platform) -> None:
    authority = platform.authority
    first = authority.revocation_list(revoke={1: ReasonFlags.key_compromise}, now=NOW)
    second = authority.revocation_list(first, revoke={2: ReasonFlags.superseded, 1: ReasonFlags.superseded}, now=NOW)
    assert load_list(second).revoked == {1: "keyCompromise", 2: "superseded"}
    numbers = [
        load_list(data).crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for data in (first, second)
    ]
    assert numbers == [1, 2]
    with pytest.raises(ConfigError, match="another authority"):
        VendorAuthority.create(now=NOW).revocation_list(first, now=NOW)


def test_renewal(platform: Platform) -> None:
    """The renewed certificate is the same key's, and lives on when the old one is revoked."""
    old = leaf(platform)
    new = platform.authority.renew(old, now=NOW + 1000 * DAY)
    assert new.public_key() == old.public_key() and new.subject == old.subject
    assert new.serial_number != old.serial_number
    renewed = Platform(
        authority=platform.authority, pak=platform.pak, rak=platform.rak, chain=[new.public_bytes(Encoding.DER)]
    )
    lists = [listed(platform, old.serial_number, now=NOW + 1900 * DAY)]
    verify(renewed.token(), platform, revocation_lists=lists, policy=STRICT, now=NOW + 1900 * DAY)
    with pytest.raises(UnknownRoot):
        VendorAuthority.create(now=NOW).renew(old, now=NOW)
    stranger = VendorAuthority.create(now=NOW).certify(encode_key(new_key().public_key()), now=NOW)
    with pytest.raises(UnknownRoot):
        platform.authority.renew(stranger, now=NOW)


@pytest.mark.parametrize(
    "extension",
    [
        x509.DeltaCRLIndicator(1),
        x509.IssuingDistributionPoint(
            full_name=[x509.UniformResourceIdentifier("http://example.org/crl")],
            relative_name=None,
            only_contains_user_certs=False,
            only_contains_ca_certs=True,
            only_some_reasons=None,
            indirect_crl=False,
            only_contains_attribute_certs=False,
        ),
    ],
)
def test_a_list_that_leaves_something_out_is_refused(platform: Platform, extension: x509.ExtensionType) -> None:
    with pytest.raises(ConfigError, match="only a part"):
        load_list(custom(platform.authority, (extension, True)))
    load_list(custom(platform.authority, (x509.CRLNumber(1), False)))


@pytest.mark.parametrize("data", [b"", b"rubbish", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_rubbish(data: bytes) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_list(data)


def test_a_changed_list_is_nobody_s(platform: Platform) -> None:
    """One flipped bit of the signature: the list does not count, and so nothing is certain."""
    data = bytearray(x509.load_pem_x509_crl(platform.authority.revocation_list(now=NOW)).public_bytes(Encoding.DER))
    data[-1] ^= 1
    with pytest.raises(RevocationUnknown):
        verify(platform.token(), platform, revocation_lists=[load_list(bytes(data))], policy=STRICT)


def test_an_issuer_that_cannot_be_read(platform: Platform) -> None:
    """Found by fuzzing: the parser looks at the name only when it is asked for."""
    data = x509.load_pem_x509_crl(platform.authority.revocation_list(now=NOW)).public_bytes(Encoding.DER)
    name = platform.authority.certificate.subject.public_bytes()
    text = name[name.index(b"vambrace") - 2 :]
    broken = data.replace(text, b"\x16" + bytes([len(text) - 2]) + b"\xff" * (len(text) - 2), 1)
    assert broken != data
    with pytest.raises(ConfigError, match="cannot be read"):
        load_list(broken)
