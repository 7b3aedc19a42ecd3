"""The vendor of emulated servers, and a user's client that has its revocation list."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from client_harness import World, make_world, register
from cryptography import x509

from vambrace import Realm, Trust
from vambrace.attest.cose import encode_key
from vambrace.attest.policy import Policy
from vambrace.attest.revocation import load_list
from vambrace.emulator import provision
from vambrace.emulator.vendor import Vendor
from vambrace.errors import CertificateRevoked, ConfigError, RevocationUnknown


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return provision.vendor(tmp_path / "vendor")[0]


def key_of(vendor: Vendor) -> bytes:
    """A platform's key that the vendor has certified."""
    from attest_factory import new_key

    key = encode_key(new_key().public_key())
    vendor.certify(key)
    return key


def number_of(data: bytes) -> int:
    return load_list(data).crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_every_certificate_of_a_key_is_revoked(vendor: Vendor) -> None:
    key, other = key_of(vendor), key_of(vendor)
    renewed = vendor.certify(key)
    assert load_list(vendor.present_list()).revoked == {}
    assert vendor.revoke(key) == 2
    revoked = load_list(vendor.present_list()).revoked
    assert len(revoked) == 2 and revoked[renewed.serial_number] == "keyCompromise"
    assert vendor.revoke(key) == 0
    with pytest.raises(ConfigError, match="revoked"):
        vendor.certify(key)
    vendor.certify(other)
    assert vendor.revoke(other) == 2 and len(load_list(vendor.present_list()).revoked) == 4


def test_a_list_lasts_for_a_day(vendor: Vendor) -> None:
    first = vendor.present_list()
    assert vendor.present_list() == first
    old = vendor.revocation_list(now=datetime.now(UTC) - timedelta(days=2))
    (vendor.directory / "vendor.crl").write_bytes(old)
    assert number_of(vendor.present_list()) == number_of(old) + 1


def test_the_vendor_stays_the_same(vendor: Vendor) -> None:
    again = provision.vendor(vendor.directory)[0]
    assert again.certificate == vendor.certificate
    assert load_list(vendor.present_list()).signed_by(again.certificate)


def test_no_revocation_is_lost_to_another(vendor: Vendor) -> None:
    keys = [key_of(vendor) for _ in range(8)]
    threads = [threading.Thread(target=vendor.revoke, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_list(vendor.present_list()).revoked) == len(keys)


# --- a user's client ------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, tmp_path / "host")
    with made.host:
        register(made, tmp_path)
        yield made


def publish(world: World, directory: Path, *revoked: int) -> None:
    """The vendor's list, which ``hosts.toml`` names from now on."""
    reasons = dict.fromkeys(revoked, x509.ReasonFlags.key_compromise)
    (directory / "vendor.crl").write_bytes(world.platform.authority.revocation_list(revoke=reasons))
    name, entry = world.context.host()
    world.context.add_host(name, dataclasses.replace(entry, revocation_list=str(directory / "vendor.crl")))


def test_a_client_that_asks_for_certainty(world: World, tmp_path: Path) -> None:
    strict = Policy(require_revocation=True)
    with pytest.raises(RevocationUnknown):
        Trust.current(policy=strict, context=world.context)
    publish(world, tmp_path)
    trust = Trust.current(policy=strict, context=world.context)
    with Realm.create(world.bundle, trust=trust) as realm:
        assert realm.verify().measurement == world.measurement


def test_a_platform_that_was_revoked_starts_nothing(world: World, tmp_path: Path) -> None:
    leaf = x509.load_der_x509_certificate((world.platform.chain or [])[0])
    publish(world, tmp_path, leaf.serial_number)
    with pytest.raises(CertificateRevoked), Realm.run(world.bundle):
        pass
    assert world.record.executed is False
    (tmp_path / "vendor.crl").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="revocation list"):
        Trust.current(context=world.context)
