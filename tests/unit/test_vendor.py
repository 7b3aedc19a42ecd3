"""The vendor of emulated servers, and a user's client that has its revocation list."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attest_factory import new_key
from client_harness import World, living_world
from cryptography import x509

from vambrace import Realm, Trust
from vambrace.attest.cose import encode_key
from vambrace.attest.endorsement import platform_instance_id
from vambrace.attest.image import OWNERS_STATES, verify_lifecycle
from vambrace.attest.owner import OwnerIdentity
from vambrace.attest.policy import DEBUG, DECOMMISSIONED, NOT_PROVISIONED, Policy
from vambrace.attest.revocation import load_list
from vambrace.certificate import owner_public_key
from vambrace.emulator import factory, provision, qemu
from vambrace.emulator.server import Server
from vambrace.emulator.vendor import Vendor
from vambrace.errors import CertificateRevoked, ConfigError, MessageRefused, RevocationUnknown, ServerError
from vambrace.files import write_whole


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return provision.vendor(tmp_path / "vendor")[0]


def key_of(vendor: Vendor) -> bytes:
    """A platform's key that the vendor has certified."""
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


def test_credentials_are_there_as_a_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine made with a part of them never answers anybody."""
    credentials, left = provision.Credentials(tmp_path / "credentials"), 0

    def cut(path: Path, data: bytes, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError("the power is gone")
        write_whole(path, data, **options)

    monkeypatch.setattr("vambrace.emulator.provision.write_whole", cut)
    for count in range(1, 7):
        left = count
        with pytest.raises(OSError):
            credentials.create()
        assert not credentials.exist()
    left = 0
    credentials.create()
    assert credentials.exist()


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


class Reached:
    """A server's API, of which the vendor reads the platform's key and sends its certificate there."""

    owner: OwnerIdentity

    def __init__(self, key: bytes, *, insecure: bool) -> None:
        self.platform: dict[str, Any] = {"platform_key": key.hex(), "insecure": insecure, "lifecycle": NOT_PROVISIONED}
        self.platform["endorsed"] = False
        self.sent: list[bytes] = []

    def get(self, path: str) -> dict[str, Any]:
        return self.platform

    def request(self, method: str, path: str, body: bytes) -> bytes:
        self.sent.append(body)
        if path == "/v1/platform/lifecycle":
            key = bytes.fromhex(self.platform["platform_key"])
            self.platform["lifecycle"] = verify_lifecycle(body, owner_public_key(self.owner.certificate_pem), key)
        return b""


def test_the_vendor_certifies_no_key_in_software(vendor: Vendor, tmp_path: Path) -> None:
    """Whoever has such a key could sign with it that it is in TrustZone, on a platform that is as published."""
    key = encode_key(new_key().public_key())
    api = Reached(key, insecure=True)
    for step in (factory.begin, factory.complete, factory.certify):
        with pytest.raises(ServerError, match="in software"):
            step(api, vendor, print, lock=True)  # type: ignore[arg-type]
    assert not api.sent and not (vendor.directory / "issued").exists()
    other = provision.vendor(tmp_path / "insecure", software=True)[0]
    factory.certify(api, other, print, lock=False)  # type: ignore[arg-type]
    assert len(api.sent) == 1
    with pytest.raises(ServerError, match="in TrustZone"):
        factory.certify(Reached(key, insecure=False), other, print, lock=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("running", [{"insecure": True, "suite": "nist"}, {"insecure": False, "suite": "sm"}])
def test_a_server_of_another_kind_is_left_alone(tmp_path: Path, running: dict[str, Any]) -> None:
    """``server renew`` without --insecure-no-trustzone would have another vendor certify what runs."""
    server = Server(tmp_path / "server", vendor=tmp_path / "vendor")
    server.home.mkdir()
    (server.home / "server.json").write_text(json.dumps({"port": 1, "variant": "", "devices": False, **running}))
    for act in (lambda: server.renew(print), server.revoke, lambda: server.retire("debug", print)):
        with pytest.raises(ServerError, match="another server runs here"):
            act()
    assert not (tmp_path / "vendor").exists()


def test_no_server_runs(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", vendor=tmp_path / "vendor")
    for act in (lambda: server.renew(print), server.revoke, lambda: server.retire("debug", print)):
        with pytest.raises(ServerError, match="is not running") as error:
            act()
        assert error.value.hint


@pytest.mark.parametrize("lifecycle", [DEBUG, DECOMMISSIONED])
def test_no_machine_that_is_out_of_service_is_certified(vendor: Vendor, lifecycle: int) -> None:
    """Who may debug a machine may find its key, and say with it that the machine is secured."""
    api = Reached(encode_key(new_key().public_key()), insecure=False)
    api.platform["lifecycle"] = lifecycle
    with pytest.raises(ServerError, match="out of service"):
        factory.certify(api, vendor, print, lock=False)  # type: ignore[arg-type]
    assert not api.sent and not (vendor.directory / "issued").exists()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Server]:
    """A server that runs, as far as its process tells: ``api`` is to be set."""
    server = Server(tmp_path / "server", vendor=tmp_path / "vendor")
    server.home.mkdir()
    words = ["bash", "-c", f"exec -a '{qemu.PROGRAM} {server.home}' sleep 100"]
    with subprocess.Popen(words) as process:
        (server.home / "qemu.pid").write_text(str(process.pid))
        while qemu.running(server.home) is None:
            time.sleep(0.01)
        yield server
        process.kill()


@pytest.mark.parametrize("state", ["debug", "decommissioned"])
def test_what_is_retired_is_revoked(running: Server, state: str) -> None:
    """Whoever gets at the key of a machine that is out of service speaks for no machine in service."""
    vendor = provision.vendor(running.vendor)[0]
    key = key_of(vendor)
    api = Reached(key, insecure=False)
    api.owner = provision.platform_owner(running.home)
    running.api = api  # type: ignore[assignment]
    running.retire(state, print)
    assert api.platform["lifecycle"] == OWNERS_STATES[state]
    published = load_list(running.published.revocation_list.read_bytes())
    assert list(published.revoked.values()) == ["cessationOfOperation"]
    with pytest.raises(ConfigError, match="revoked"):
        vendor.certify(key)
    unknown = Reached(encode_key(new_key().public_key()), insecure=False)
    unknown.owner = api.owner
    running.api = unknown  # type: ignore[assignment]
    running.retire(state, print)  # nobody has certified it
    assert len(load_list(vendor.present_list()).revoked) == 1


def test_what_is_not_retired_is_not_revoked(running: Server) -> None:
    vendor = provision.vendor(running.vendor)[0]
    api = Reached(key_of(vendor), insecure=False)
    api.owner = OwnerIdentity.create(running.home / "another")
    running.api = api  # type: ignore[assignment]
    with pytest.raises(MessageRefused):
        running.retire("debug", print)
    assert not load_list(vendor.present_list()).revoked


def test_a_machine_is_revoked_by_its_identity(tmp_path: Path) -> None:
    """One that is lost, dead or lies about its key: a token has its identity."""
    server = Server(tmp_path / "server", vendor=tmp_path / "vendor")
    vendor = provision.vendor(tmp_path / "vendor")[0]
    key = key_of(vendor)
    instance = platform_instance_id(key)
    assert server.revoke(instance) == 1
    assert len(load_list(server.published.revocation_list.read_bytes()).revoked) == 1
    with pytest.raises(ConfigError, match="revoked"):
        vendor.certify(key)
    # A no that looks like a yes would leave a stolen key as good as before.
    with pytest.raises(ConfigError, match="has certified nothing"):
        server.revoke(bytes(33))


# --- a user's client ------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with living_world(tmp_path) as world:
        yield world


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
