"""Scratch space and volumes in manifest and configuration, and what agent and VMM are told of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from config_factory import MIB, make_certificate, make_normal, make_realm, make_secure, owner
from vambrace_agent.settings import Disk as AgentDisk

from vambrace.config import DomainConfig
from vambrace.debian.erofs import VerityDisk
from vambrace.errors import ConfigError
from vambrace.image.configuration import agent_settings, make_config
from vambrace.image.manifest import Manifest, read_manifest
from vambrace.machine.descriptors import expected
from vambrace.machine.layout import device_slots
from vambrace.release import Broker, Sealing
from vambrace.storage import SEALED, Scratch, Storage, Volume

MANIFEST = """\
name: patients
owner: owner.pem
applications:
  - {name: analysis, command: python3 main.py, scratch: 64M}
  - {name: report, command: python3 main.py}
broker: {url: "https://broker:8444", certificate: broker.pem}
sealing: {to: owner, version: 3}
volumes:
  - {name: records, application: report, size: 1G, mount: /data/records, key: patients/volume/records}
  - {name: notes, application: report, size: 32M, mount: /var/lib/notes, key: sealed}
"""
DISK = VerityDisk("ab" * 32, 8192, 4096, "cd" * 32, "")
BROKER = Broker("https://broker:8444", owner()[0])


def volume(**changes: object) -> Volume:
    fields = {"name": "records", "application": "analysis", "size": 64 * MIB, "mount": "/data/records", "key": "a/b/c"}
    return Volume(**{**fields, **changes})


def realm(*volumes: Volume, scratch: tuple[Scratch, ...] = (), **changes: object) -> DomainConfig:
    options = {"broker": BROKER, "sealing": Sealing(), **changes}
    return make_realm(("analysis", "report"), storage=Storage(scratch, volumes), **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "owner.pem").write_text(owner()[0])
    (tmp_path / "broker.pem").write_text(make_certificate()[0])
    return tmp_path


def read(folder: Path, text: str) -> Manifest:
    (folder / "manifest.yaml").write_text(text)
    manifest = read_manifest(folder / "manifest.yaml")
    assert isinstance(manifest, Manifest)
    return manifest


def test_from_the_manifest_to_agent_and_vmm(folder: Path) -> None:
    manifest = read(folder, MANIFEST)
    config = make_config(manifest, {"base": DISK, "apps": DISK})
    assert DomainConfig.parse(config.encode()) == config
    assert " vambrace.storage " in config.cmdline
    names = ["scratch/analysis", "volume/records", "volume/notes"]
    assert [(store.name, store.size // MIB) for store in config.stores] == list(zip(names, (64, 1024, 32), strict=True))
    assert [name for name in expected(config) if name.startswith("volume:")] == [f"volume:{name}" for name in names]
    # The device tree has a place for each, behind the disks that are measured.
    assert device_slots(config.block_devices)[1:6] == ("disk base", "disk apps", *(f"disk {name}" for name in names))
    disks = [AgentDisk(fields) for fields in agent_settings(manifest)["disks"]]
    assert [disk.serial for disk in disks] == [store.serial for store in config.stores]
    assert all(len(disk.serial) <= 20 for disk in disks)  # what virtio has room for
    assert [(disk.application, disk.mount, disk.key, disk.size // MIB) for disk in disks] == [
        ("analysis", "/scratch", "", 64),
        ("report", "/data/records", "patients/volume/records", 1024),
        ("report", "/var/lib/notes", SEALED, 32),
    ]
    assert [disk.title for disk in disks] == ["scratch space of analysis", "volume records", "volume notes"]


def test_who_has_none_is_measured_as_before(folder: Path) -> None:
    manifest = read(folder, re.sub(", scratch: 64M|volumes:(.|\n)*", "", MANIFEST))
    config = make_config(manifest, {"base": DISK, "apps": DISK})
    assert config.storage is None and b"storage" not in config.encode()
    assert "disks" not in agent_settings(manifest)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("size: 1G", "size: 1", 9, "size is 1 bytes"),
        ("size: 1G", "size: much", 9, "no size"),
        ("size: 1G", "size: 33M, more: 1", 9, "unknown key 'more'"),
        ("size: 1G", f"size: {40 * MIB + 4096}", 9, "multiple of 1 MiB"),
        ("/data/records", "/data/../etc", 9, "is no place"),
        ("/data/records", "data", 9, "is no place"),
        ("/data/records", "/usr/lib", 9, "nothing is mounted at /usr/lib"),
        ("/data/records", "/scratch", 9, "nothing is mounted"),
        ("/data/records", "/var/lib", 8, "two volumes are mounted at /var/lib"),
        ("patients/volume/records", "records", 9, "is no resource"),
        ("name: notes", "name: records", 8, "appears twice"),
        ("key: sealed", "key: patients/volume/records", 8, "appears twice"),
        ("name: records, application: report", "name: records, application: reports", 9, "'reports' is not known"),
        ("name: records,", "name: Records,", 9, "not a valid name"),
        ("scratch: 64M", "scratch: 1M", 4, "size is"),
        ("scratch: 64M", "scratch: lots", 4, "no size of memory"),
        ("sealing: {to: owner, version: 3}\n", "", 7, "seals nothing"),
        ('broker: {url: "https://broker:8444", certificate: broker.pem}\n', "", 7, "no broker that has its key"),
        ("name: patients\n", "name: patients\nclass: secure\n", 9, "a Secure VM has none"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_manifest(folder: Path, old: str, new: str, line: int, message: str) -> None:
    assert old in MANIFEST
    with pytest.raises(ConfigError) as caught:
        read(folder, MANIFEST.replace(old, new, 1))
    assert message in caught.value.message and caught.value.hint and caught.value.line == line


def test_scratch_space_of_a_secure_vm_and_nothing_of_a_normal_one() -> None:
    storage = Storage((Scratch("analysis", 32 * MIB),))
    config = make_secure(storage=storage)
    assert DomainConfig.parse(config.encode()) == config
    with pytest.raises(ConfigError, match="a Secure VM has none"):
        make_secure(storage=Storage((), (volume(key="a/b/c"),)))
    with pytest.raises(ConfigError, match="storage: a Normal VM has none"):
        make_normal(storage=storage)


@pytest.mark.parametrize(
    "make",
    [
        lambda: realm(),
        lambda: realm(volume(application="nobody")),
        lambda: realm(volume(), broker=None),
        lambda: realm(volume(key=SEALED), sealing=None),
        lambda: realm(scratch=(Scratch("nobody", 32 * MIB),)),
        lambda: realm(scratch=(Scratch("analysis", 32 * MIB),) * 2),
        lambda: realm(*(volume(name=f"v{n}", mount=f"/data/v{n}", key=f"a/b/c{n}") for n in range(9))),
        lambda: realm(volume(), volume(name="inside", mount="/data/records/more", key="a/b/d")),
        lambda: volume(size=True),
        lambda: volume(mount="/"),
        lambda: volume(mount="/data/a//b"),
        lambda: volume(mount=7),
        lambda: volume(key=""),
        lambda: volume(name="../a"),
    ],
)
def test_what_is_no_storage(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"size":67108864', b'"size":67108864.0'),
        (b'"size":67108864', b'"size":-1'),
        (b'"mount":"/data/records",', b""),
        (b'"scratch":[],', b""),
        (b'"scratch":[]', b'"scratch":[{}]'),
        (b'"scratch":[]', b'"scratch":7'),
        (b'"key":"a/b/c"', b'"key":"a/b/c","more":1'),
        (b'"key":"a/b/c"', b'"key":["a/b/c"]'),
    ],
)
def test_a_hostile_configuration(old: bytes, new: bytes) -> None:
    encoded = realm(volume()).encode()
    assert encoded.count(old) == 1
    with pytest.raises(ConfigError):
        DomainConfig.parse(encoded.replace(old, new))
