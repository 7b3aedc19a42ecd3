"""The components of a build, as its reference values and its tokens have them: each that differs is refused by name."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from attest_factory import IMPLEMENTATION, NOW, Platform, verify

from vambrace.attest import references
from vambrace.attest.claims import Component
from vambrace.emulator.firmware import HostFiles, component_digests
from vambrace.errors import ComponentChanged

NAMES = [
    *("BL_1", "BL_2", "SECURE_RT_EL3", "SECURE_RT_EL1_OPTEE", "SECURE_RT_EL1_OPTEE_EXTRA1", "BL_33", "VAMBRACE_TA"),
    *("HOST_DEVICE_TREE", "HOST_KERNEL", "HOST_INITRD", "HOST_ROOT"),
]
FILES = [
    *("rom.bin", "bl2.bin", "bl31.bin", "tee-header_v2.bin", "tee-pager_v2.bin", "stub.bin", "application.elf"),
    *("host.dtb", "Image", "initrd"),
]
ROOT_HASH = hashlib.sha256(b"a root").digest()


def built(folder: Path, changed: str = "") -> tuple[Component, ...]:
    """The components of a build whose files have their names as contents; ``changed`` is another by one byte."""
    for name in FILES:
        (folder / name).write_bytes(name.encode() + (b"!" if name == changed else b""))
    (folder / "tee-pageable_v2.bin").touch()  # OP-TEE without a pager has none
    root = ROOT_HASH if changed != "root" else bytes(32)
    host = HostFiles(folder / "Image", folder / "initrd", folder / "host.dtb", root)
    return tuple(Component(name, bytes.fromhex(digest), bytes(32)) for name, digest in component_digests(folder, host))


@pytest.mark.parametrize(("file", "name"), list(zip([*FILES, "root"], NAMES, strict=True)))
def test_a_changed_component_is_refused_by_its_name(tmp_path: Path, file: str, name: str) -> None:
    expected = built(tmp_path)
    assert [component.name for component in expected] == NAMES
    platform = Platform(components=expected)
    published = references.publish(expected, platform.authority, implementation_id=IMPLEMENTATION, now=NOW)
    values = references.load(published, platform.roots, now=NOW)
    assert verify(platform.token(), platform, references=values).components == expected
    with pytest.raises(ComponentChanged, match=name) as caught:
        verify(replace(platform, components=built(tmp_path, file)).token(), platform, references=values)
    assert caught.value.component == name
