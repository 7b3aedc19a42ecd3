"""A machine without TrustZone: its tokens say so, and only who explicitly wants that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import VENDOR, Machine, new_server
from user import User

from vambrace.attest.claims import Component
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.policy import Policy
from vambrace.attest.references import publish
from vambrace.client.context import HostEntry
from vambrace.client.trust import Trust
from vambrace.debian.cache import Cache
from vambrace.emulator import provision
from vambrace.emulator.server import Server
from vambrace.errors import ConfigError, InsecurePlatform, UnknownRoot
from vambrace.image.base import RuntimeBase


@pytest.fixture
def insecure(tmp_path: Path, machine: Machine) -> Iterator[Server]:
    machine.stop()
    server = new_server(tmp_path / "insecure", insecure=True)
    server.up(print, cold=True)
    yield server
    server.down()


def test_insecure_platform(insecure: Server, base: RuntimeBase, tmp_path: Path) -> None:
    """A user who expects a secure machine refuses this one, and its Realm is destroyed unexecuted."""
    assert insecure.status()["host"]["insecure"] is True
    vendor, _ = provision.vendor(Cache().root / VENDOR)
    secure = trust_in(vendor, tmp_path / "vendor")
    # This machine's authority is no vendor's; somebody trusts it all the same.
    authority, _ = insecure._vendor()
    careless = trust_in(authority, tmp_path / "careless")
    user = User(tmp_path, insecure, base, tmp_path / "careless/references.corim")
    access = insecure.access()
    entry = HostEntry(access.url, *map(str, (access.certificate, access.key, access.ca, access.vendor_root)))
    user.context.add_host("insecure", entry)
    with pytest.raises(ConfigError):
        Trust.current("insecure", user.context)
    realm = user.create(user.bundle())
    realm.host.wait(realm.uuid, lambda info: info.state == "awaiting-verdict", timeout=300)
    token, nonce = realm.host.token(realm.uuid), bytes.fromhex(realm.state.nonce)
    allowing = Trust.current("insecure", user.context, Policy(allow_insecure=True))
    verified = allowing.launch(token, nonce, realm.expected)
    assert verified.insecure
    assert verified.measurement == realm.expected.measurement
    with pytest.raises(UnknownRoot):
        secure.launch(token, nonce, realm.expected)
    with pytest.raises(InsecurePlatform):
        careless.launch(token, nonce, realm.expected)
    with pytest.raises(InsecurePlatform):
        realm.verify()
    info = realm.info()
    assert (info.state, info.executed) == ("refused", False)


def trust_in(authority: VendorAuthority, folder: Path) -> Trust:
    """What a user of that vendor's secure machines has of it, in ``folder``, with the default policy."""
    folder.mkdir()
    (folder / "root.pem").write_bytes(authority.certificate_pem)
    (folder / "references.corim").write_bytes(publish([Component("BL_31", bytes(32))], authority))
    return Trust.load(folder / "root.pem", folder / "references.corim")
