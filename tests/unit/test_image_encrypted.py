"""Encrypted files of an application: what the operator is given, and how the key comes to the broker."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from base_factory import make_base
from config_factory import make_certificate, make_disk, make_realm, owner
from container_images import image, layer, member
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from vambrace.config import DomainConfig
from vambrace.debian.erofs import BLOCK, VerityDisk, add_verity
from vambrace.errors import BuildError, ConfigError
from vambrace.image.base import RuntimeBase
from vambrace.image.build import build_bundle, key_file
from vambrace.image.bundle import Bundle
from vambrace.image.configuration import agent_settings
from vambrace.image.encrypted import KEY_BYTES, encrypt_disk, obtain_key
from vambrace.image.manifest import Manifest, read_manifest
from vambrace.release import Broker

CANARY = b"canary of an encrypted file " * 400
RESOURCE = "patients/key/files"
MANIFEST = f"""\
name: patients
owner: owner.pem
system: {{memory: 128M}}
broker: {{url: "https://broker:8444", certificate: broker.pem}}
applications:
  - {{name: open, files: open, command: python3 run, memory: 16M}}
  - {{name: hidden, files: hidden, command: python3 run, memory: 16M, encrypt: {{resource: {RESOURCE}}}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "owner.pem").write_text(owner()[0])
    (tmp_path / "broker.pem").write_text(make_certificate()[0])
    for name in ("open", "hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run").write_text("pass\n")
    (tmp_path / "hidden/model").write_bytes(CANARY)
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.fixture
def base(tmp_path: Path) -> RuntimeBase:
    (tmp_path / "base").mkdir()
    return replace(make_base(tmp_path / "base"), containers=True)


def build(folder: Path, base: RuntimeBase) -> Bundle:
    return build_bundle(folder / "manifest.yaml", folder / "out.vambrace", base)


def plaintext(ciphertext: bytes, key: bytes) -> bytes:
    """dm-crypt's aes-xts-plain64, sector_size:4096, iv_large_sectors."""
    found = b""
    for number in range(len(ciphertext) // BLOCK):
        cipher = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).decryptor()
        found += cipher.update(ciphertext[number * BLOCK : (number + 1) * BLOCK]) + cipher.finalize()
    return found


def test_the_operator_has_ciphertext_and_the_owner_the_key(folder: Path, base: RuntimeBase) -> None:
    bundle = build(folder, base)
    assert CANARY[:64] not in bundle.path.read_bytes()
    key = key_file(bundle.path, RESOURCE)
    assert key.parent == folder and key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == KEY_BYTES
    *_, disk = bundle.config.disks
    assert (disk.name, disk.key) == ("files-1", RESOURCE) and " vambrace.storage " in bundle.config.cmdline
    whole = plaintext(bundle.disks[-1].read(), key.read_bytes())
    assert CANARY[:BLOCK] in whole  # its end may lie elsewhere
    # What is measured is the root of what is read.
    (folder / "plain").write_bytes(whole)
    checked = subprocess.run(
        ["veritysetup", "verify", "--no-superblock", "--hash=sha256", f"--data-blocks={disk.data_size // BLOCK}",
         f"--hash-offset={disk.data_size}", f"--salt={disk.verity_salt}",
         folder / "plain", folder / "plain", disk.verity_root],
        capture_output=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def test_the_same_files_and_key_give_the_same_image(folder: Path, base: RuntimeBase) -> None:
    first = build(folder, base).path.read_bytes()
    assert build(folder, base).path.read_bytes() == first
    key_file(folder / "out.vambrace", RESOURCE).unlink()
    assert build(folder, base).path.read_bytes() != first


def test_no_guess_of_the_files_can_be_checked(folder: Path, base: RuntimeBase) -> None:
    """Everybody reads the root hash, and may build the same file system: not what is behind it."""
    roots = set()
    for _ in range(2):
        bundle = build(folder, base)
        *_, disk = bundle.config.disks
        roots.add(disk.verity_root)
        key = key_file(bundle.path, RESOURCE)
        (folder / "plain").write_bytes(plaintext(bundle.disks[-1].read(), key.read_bytes())[: disk.data_size - BLOCK])
        key.unlink()
        assert subprocess.run(["fsck.erofs", folder / "plain"], capture_output=True, check=False).returncode == 0
        assert add_verity(folder / "plain").verity_root not in roots
    assert len(roots) == 2


def test_what_the_agent_is_told(folder: Path) -> None:
    manifest = read_manifest(folder / "manifest.yaml")
    assert isinstance(manifest, Manifest)
    found = agent_settings(manifest, {"files-1": VerityDisk("ab" * 32, 8 * BLOCK, 4 * BLOCK, "cd" * 32, "ef")})
    assert found["images"] == {
        "files-1": {"device": "/dev/vdc", "blocks": 4, "root": "cd" * 32, "salt": "ef", "key": RESOURCE,
                    "size": 8 * BLOCK},
    }  # fmt: skip
    assert [application.get("files") for application in found["applications"]] == [None, "files-1"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f"resource: {RESOURCE}", "resource: files", "is no resource"),
        (f"resource: {RESOURCE}", f"resource: {RESOURCE}, more: 1", "unknown key 'more'"),
        (f"{{resource: {RESOURCE}}}", RESOURCE, "a mapping of keys to values is expected"),
        ('broker: {url: "https://broker:8444", certificate: broker.pem}\n', "", "no broker that has the key"),
    ],
)
def test_a_mistake_in_the_manifest(folder: Path, old: str, new: str, message: str) -> None:
    text = (folder / "manifest.yaml").read_text()
    assert old in text
    (folder / "manifest.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_manifest(folder / "manifest.yaml")
    assert message in caught.value.message and caught.value.line


def test_two_disks_have_two_keys(folder: Path, base: RuntimeBase) -> None:
    text = (folder / "manifest.yaml").read_text()
    encrypted = f"memory: 16M, encrypt: {{resource: {RESOURCE}}}}}"
    (folder / "manifest.yaml").write_text(text.replace("memory: 16M}", encrypted))
    with pytest.raises(ConfigError, match="key of a disk"):
        build(folder, base)


def test_the_image_of_containers(folder: Path, base: RuntimeBase) -> None:
    """Of all that are made of it, or of none."""
    image(folder / "image", layer(member("bin/tool", b"\x7fELF", mode=0o755), member("model", CANARY)))
    head = (folder / "manifest.yaml").read_text().partition("applications:")[0]
    encrypted = f"encrypt: {{resource: {RESOURCE}}}"
    lines = [f"  - {{name: a{n}, container: 'oci:image:latest', command: /bin/tool, KEY}}\n" for n in range(2)]
    (folder / "manifest.yaml").write_text(head + "applications:\n" + "".join(lines).replace("KEY", encrypted))
    bundle = build(folder, base)
    *_, disk = bundle.config.disks
    assert disk.key == RESOURCE and CANARY[:64] not in bundle.path.read_bytes()
    assert CANARY[:BLOCK] in plaintext(bundle.disks[-1].read(), key_file(bundle.path, RESOURCE).read_bytes())
    mixed = lines[0].replace("KEY", encrypted) + lines[1].replace(", KEY", "")
    (folder / "manifest.yaml").write_text(head + "applications:\n" + mixed)
    with pytest.raises(ConfigError, match="another container of this image has another key"):
        build(folder, base)


@pytest.mark.parametrize("content", [b"", b"short", bytes(KEY_BYTES), b"\1" * (KEY_BYTES + 1)])
def test_what_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BuildError, match="holds no key"):
        obtain_key(path)


def test_a_key_that_others_may_have_read(tmp_path: Path) -> None:
    obtain_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(BuildError, match="open to others"):
        obtain_key(tmp_path / "key")


def test_equal_blocks_do_not_look_equal(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 * BLOCK))
    found = encrypt_disk(path, VerityDisk("", 4 * BLOCK, 4 * BLOCK, "", ""), os.urandom(KEY_BYTES))
    text = path.read_bytes()
    assert found.sha256 == hashlib.sha256(text).hexdigest()
    assert len({text[start : start + 16] for start in range(0, len(text), 16)}) == len(text) // 16


def test_in_the_measured_configuration() -> None:
    broker = Broker("https://broker:8444", owner()[0])
    disks = (make_disk("base"), make_disk("apps"), make_disk("files-0", key=RESOURCE))
    config = make_realm(disks=disks, broker=broker)
    encoded = config.encode()
    assert DomainConfig.parse(encoded) == config and encoded.count(b'"key"') == 1
    with pytest.raises(ConfigError, match="there is no broker"):
        make_realm(disks=disks)
    for key in ("files", "a/b", "a/b/../c", 7):
        with pytest.raises(ConfigError):
            make_disk("files-0", key=key)
    with pytest.raises(ConfigError):
        DomainConfig.parse(encoded.replace(b'"key":"' + RESOURCE.encode(), b'"key":"'))
