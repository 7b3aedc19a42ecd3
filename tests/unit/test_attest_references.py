"""Published reference values, and the vendor's authority."""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cbor2
import pytest
from attest_factory import COMPONENTS, IMPLEMENTATION, NOW, SIGNER, Platform, new_key, published, verify
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest import references
from vambrace.attest.chain import load_roots
from vambrace.attest.claims import Component
from vambrace.attest.cose import sign1
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.references import ReferenceValues
from vambrace.debian.cache import Cache
from vambrace.emulator import build as building
from vambrace.emulator import qemu
from vambrace.emulator.build import Firmware
from vambrace.emulator.server import Server
from vambrace.errors import (
    CertificateExpired,
    ComponentChanged,
    ConfigError,
    MalformedEvidence,
    SignatureInvalid,
    UnknownRoot,
)

PLATFORM_HEADER = Path(__file__).parents[2] / "firmware/common/vambrace_platform.h"


@pytest.fixture(scope="module")
def platform() -> Platform:
    return Platform()


def test_published_values_verify_a_token(platform: Platform) -> None:
    values = references.load(published(platform), platform.roots, now=NOW)
    assert values == ReferenceValues(COMPONENTS, IMPLEMENTATION)
    verify(platform.token(), platform, references=values)


def test_a_server_publishes_which_platform_it_is(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its trusted application claims is accepted, and another implementation with the same firmware refused."""
    measured = tuple((component.name, component.digest.hex()) for component in COMPONENTS)
    made = Firmware(tmp_path, tmp_path, measured, SIGNER)
    monkeypatch.setattr(qemu, "program", lambda: "qemu")
    monkeypatch.setattr(building, "build", lambda *_, **__: SimpleNamespace(host=None, firmware=made))
    server = Server(tmp_path / "server", cache=Cache(tmp_path / "cache"))
    server.build(lambda text: None)
    roots = load_roots(server.published.vendor_root.read_bytes())
    values = references.load(server.published.references.read_bytes(), roots)

    name = re.search(r'^#define IMPLEMENTATION "(.+)"$', PLATFORM_HEADER.read_text(), re.MULTILINE)
    assert name is not None
    claimed = hashlib.sha256(name[1].encode()).digest()
    assert values == ReferenceValues(COMPONENTS, claimed)
    verify(platform.token(platform=lambda claims: claims.update({2396: claimed})), platform, references=values)
    with pytest.raises(ComponentChanged, match="implementation"):
        verify(platform.token(), platform, references=values)


def test_optional_parts(platform: Platform) -> None:
    components = (
        replace(COMPONENTS[0], version="2.12.1"),
        Component("x", bytes(48), bytes(48), "sha-384"),
        Component("y", bytes(32)),
    )
    data = references.publish(components, platform.authority, now=NOW)
    assert references.load(data, platform.roots, now=NOW) == ReferenceValues(components)


def test_another_library_reads_the_corim(platform: Platform) -> None:
    message = cbor2.loads(published(platform))
    assert message.tag == 18
    header = cbor2.loads(message.value[0])
    assert header[1] == -7 and header[3] == "application/rim+cbor" and set(header) == {1, 3, 8, 33}
    corim = cbor2.loads(message.value[2])
    assert corim.tag == 501
    comid = cbor2.loads(corim.value[1][0].value)
    [[environment, measurements]] = comid[4][0]
    assert environment[0][0] == cbor2.CBORTag(560, IMPLEMENTATION)
    assert [m[1][11] for m in measurements] == [c.name for c in COMPONENTS]
    assert [m[1][2] for m in measurements] == [[["sha-256", c.digest]] for c in COMPONENTS]


def test_refusals(platform: Platform) -> None:
    data = published(platform)
    with pytest.raises(UnknownRoot):
        references.load(data, Platform().roots, now=NOW)
    for days in (-1, 2000):
        with pytest.raises(CertificateExpired):
            references.load(data, platform.roots, now=NOW + timedelta(days=days))
    with pytest.raises(MalformedEvidence):
        references.load(platform.token(), platform.roots, now=NOW)
    with pytest.raises(ConfigError):
        references.publish([], platform.authority)
    with pytest.raises(ConfigError):
        references.publish([Component("BL31", b"short", bytes(32))], platform.authority)


def test_a_platform_cannot_sign_its_own_reference_values(platform: Platform) -> None:
    message = cbor2.loads(published(platform)).value
    header: dict[int | str, Any] = cbor2.loads(message[0])
    header[33] = platform.endorsement[0]
    with pytest.raises(UnknownRoot, match="purpose"):
        references.load(sign1(platform.pak, message[2], protected=header), platform.roots, now=NOW)


def test_forged_by_another_key(platform: Platform) -> None:
    message = cbor2.loads(published(platform)).value
    header: dict[int | str, Any] = cbor2.loads(message[0])
    with pytest.raises(SignatureInvalid):
        references.load(sign1(new_key(), message[2], protected=header), platform.roots, now=NOW)


def test_authority_is_kept_privately(platform: Platform, tmp_path: Path) -> None:
    key, certificate = tmp_path / "vendor.key", tmp_path / "vendor-root.pem"
    platform.authority.save(key, certificate)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    loaded = VendorAuthority.load(key, certificate)
    leaf = loaded.certify(platform.pak_cose, now=NOW).public_bytes(Encoding.DER)
    verify(replace(platform, chain=[leaf]).token(), platform, roots=load_roots(certificate.read_bytes()))
    with pytest.raises(ConfigError, match="already"):
        platform.authority.save(key, certificate)
    certificate.write_bytes(VendorAuthority.create().certificate_pem)
    with pytest.raises(ConfigError, match="not the key"):
        VendorAuthority.load(key, certificate)
    certificate.write_bytes(b"garbage")
    with pytest.raises(ConfigError):
        VendorAuthority.load(key, certificate)
    with pytest.raises(ConfigError):
        load_roots(b"garbage")


def test_only_real_keys_are_certified(platform: Platform) -> None:
    with pytest.raises(MalformedEvidence):
        platform.authority.certify(b"garbage")


def test_light_imports() -> None:
    """The VMM's process imports the measurement: nothing of PyPI may come with it."""
    script = (
        "import sys, vambrace.measure;"
        "heavy = {'cryptography', 'cbor2', 'asyncio', 'ssl', 'vambrace.attest'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
