"""The VM form from manifest to bundle: what it says, what it refuses, and that the same disk measures the same."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from base_factory import make_base
from config_factory import owner
from disks import qcow2, root_disk, sample_system
from vambrace_agent import settings as agent

from vambrace.application import Application
from vambrace.cli.main import main
from vambrace.config import DomainConfig
from vambrace.debian.erofs import VerityDisk
from vambrace.errors import BuildError, ConfigError
from vambrace.image.base import RuntimeBase
from vambrace.image.build import build_bundle
from vambrace.image.bundle import PLAIN_DISK, Bundle
from vambrace.image.configuration import agent_settings
from vambrace.image.manifest import Manifest, read_manifest
from vambrace.image.single import Single, System

UNITS = [
    {"name": "database", "unit": "postgresql@17-main.service", "memory": "32M", "percent": 60, "publish": [80]},
    {"name": "web", "unit": "nginx.service", "memory": "16M", "environment": {"A": "b c"}, "results": ["log"]},
]
#: What the form leaves out of its manifest.
NOT_GIVEN: Any = object()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_system(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RuntimeBase:
    return dataclasses.replace(make_base(tmp_path_factory.mktemp("base")), containers=True, systems=True)


def write(folder: Path, vm: object = "disk.raw", units: object = UNITS, **more: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "owner.pem").write_text(owner()[0])
    content = {"name": "shop", "owner": "owner.pem", "vm": vm, "applications": units, **more}
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not NOT_GIVEN}))
    return path


def read(path: Path) -> Manifest:
    manifest = read_manifest(path)
    assert isinstance(manifest, Manifest)
    return manifest


def test_a_unit_that_is_not_on_the_disk(tmp_path: Path, system: Path, base: RuntimeBase) -> None:
    (tmp_path / "disk.raw").write_bytes(root_disk(system))
    path = write(tmp_path, units=[UNITS[0], UNITS[1] | {"unit": "ngnix.service"}])
    with pytest.raises(ConfigError, match="application web: ngnix.service: no such unit on the disk") as raised:
        build_bundle(path, tmp_path / "out", base)
    assert raised.value.hint == "perhaps nginx.service" and not (tmp_path / "out").exists()


def test_what_is_measured(
    tmp_path: Path, system: Path, base: RuntimeBase, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"disk": "disk.qcow2", "partition": 2})
    (tmp_path / "raw").write_bytes(root_disk(system))
    qcow2(tmp_path / "raw", tmp_path / "disk.qcow2")
    bundle = build_bundle(path, tmp_path / "out", base)
    config = Bundle.open(tmp_path / "out").config
    assert (config.form, [disk.name for disk in config.disks]) == ("vm", ["base", "apps", "system"])
    assert [(each.unit, each.command) for each in config.applications] == [(str(u["unit"]), ()) for u in UNITS]
    assert DomainConfig.parse(config.encode()) == config
    assert bundle.disks[2].read()[: config.disks[2].data_size] == system.read_bytes()
    assert bundle.inspect()["config"]["form"] == "vm"
    assert main(["image", "inspect", str(tmp_path / "out")]) == 0
    assert "\nweb: nginx.service\n" in capsys.readouterr().out
    # Whoever reads the registry is not told that it is EROFS.
    assert f'"mediaType":"{PLAIN_DISK}"'.encode() in (tmp_path / "out").read_bytes()


def test_what_the_agent_reads(tmp_path: Path, system: Path) -> None:
    manifest = read(write(tmp_path, str(system), system={"memory": "96M"}))
    assert manifest.vm is not None
    manifest = dataclasses.replace(manifest, vm=dataclasses.replace(manifest.vm, filesystem="ext4"))
    disk = VerityDisk("00" * 32, 8192, 4096, "ab" * 32, "cd" * 32)
    found = agent.Settings(agent_settings(manifest, {"system": disk}))
    assert found.system is not None
    assert (found.system.disk, found.system.filesystem, found.system.writable) == ("system", "ext4", 72 << 20)
    assert found.images["system"].device == "/dev/vdc"
    web = found.applications[1]
    assert (web.unit, web.index, web.environment["A"], web.results) == ("nginx.service", 2, "b c", ["/results/web/log"])
    assert [web.owns(uid) for uid in (0, 1001, agent.IDENTITIES, 2 * agent.IDENTITIES)] == [False, False, True, False]


def test_the_same_disk_the_same_measurement(tmp_path: Path, system: Path, base: RuntimeBase) -> None:
    """Another folder, name and format of the disk, another day; and one bit of the system makes another Realm."""
    measured = []
    for number in range(4):
        folder = tmp_path / str(number)
        disk = root_disk(system)
        if number == 3:
            disk[-2 << 20] ^= 1
        name = f"disk-{number}"
        path = write(folder, name)
        if number == 1:
            (folder / "raw").write_bytes(disk)
            qcow2(folder / "raw", folder / name, "-c")
        else:
            (folder / name).write_bytes(disk)
        os.utime(folder / name, (number * 10**8, number * 10**8))
        measured.append(build_bundle(path, folder / "out", base).measurement())
    assert measured[0] == measured[1] == measured[2] != measured[3]


def test_an_encrypted_disk(tmp_path: Path, system: Path, base: RuntimeBase) -> None:
    (tmp_path / "broker.pem").write_text(owner()[0])
    broker = {"url": "https://broker:8444", "certificate": "broker.pem"}
    path = write(tmp_path, {"disk": str(system), "encrypt": {"resource": "shop/key/disk"}}, broker=broker)
    bundle = build_bundle(path, tmp_path / "out", base)
    assert bundle.config.disks[2].key == "shop/key/disk"
    plain, sent = system.read_bytes(), bundle.disks[2].read()
    texts = [plain[place : place + 16] for place in range(1024, 1 << 20, 4096)]
    assert any(map(any, texts)) and not any(text in sent for text in texts if any(text))
    with pytest.raises(ConfigError, match="no broker"):
        read(write(tmp_path, {"disk": str(system), "encrypt": {"resource": "shop/key/disk"}}))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"vm": "absent.qcow2"}, "is no file"),
        ({"vm": "."}, "is no file"),
        ({"vm": {"disk": "disk.raw", "partition": 0}}, "partition"),
        ({"vm": {"disk": "disk.raw", "kernel": "own"}}, "unknown|not known"),
        ({"vm": NOT_GIVEN}, "a unit, and no system"),
        ({"units": [{"name": "a", "unit": "a.socket"}]}, "no service of systemd"),
        ({"units": [{"name": "a", "unit": "../a.service"}]}, "no service of systemd"),
        ({"units": [{"name": "a", "unit": "a\nb.service"}]}, "no service of systemd"),
        ({"units": [{"name": "a", "unit": "a b.service"}]}, "no service of systemd"),
        ({"units": [{"name": "a", "unit": "a@b@c.service"}]}, "no service of systemd"),
        ({"units": [{"name": "a"}]}, "unit"),
        ({"units": [{"name": "a", "unit": "a.service"}, {"name": "b", "unit": "a.service"}]}, "a.service"),
        ({"units": [{"name": "a", "unit": "a.service", "command": ["x"]}]}, "command"),
        ({"units": [{"name": "a", "unit": "a.service", "files": "."}]}, "files"),
        ({"units": [{"name": "a", "unit": "a.service", "scratch": "64M"}]}, "scratch"),
        ({"devices": [{"name": "disk", "kind": "nvme"}]}, "is given none"),
        ({"volumes": [{"name": "v", "application": "web", "size": "64M", "mount": "/v", "key": "k"}]}, "given none"),
    ],
)  # fmt: skip
def test_manifests_that_are_refused(tmp_path: Path, system: Path, change: dict[str, object], error: str) -> None:
    (tmp_path / "disk.raw").write_bytes(b"")
    with pytest.raises(ConfigError, match=error) as caught:
        read(write(tmp_path, **change))  # type: ignore[arg-type]
    assert "\n" not in caught.value.message


def test_a_base_that_runs_none(tmp_path: Path, system: Path, base: RuntimeBase) -> None:
    with pytest.raises(BuildError, match="no system of a disk"):
        build_bundle(write(tmp_path, str(system)), tmp_path / "out", dataclasses.replace(base, systems=False))


def test_units_are_of_the_form_alone(tmp_path: Path, system: Path, base: RuntimeBase) -> None:
    config = build_bundle(write(tmp_path, str(system)), tmp_path / "out", base).config
    with pytest.raises(ConfigError, match="units belong to the form vm"):
        dataclasses_replace(config, form="application")
    with pytest.raises(ConfigError, match="disks"):
        dataclasses_replace(config, disks=config.disks[:2])
    with pytest.raises(ConfigError, match="no command"):
        Application("a", ("x",), {}, "/", unit="a.service")


def dataclasses_replace(config: DomainConfig, **changes: object) -> DomainConfig:
    return DomainConfig(**{**config.__dict__, **changes})  # type: ignore[arg-type]


# From a command line.


def test_one_unit_without_a_manifest(tmp_path: Path, system: Path) -> None:
    disk = System(system, "nginx.service", 2)
    single = Single(container="", owner=Path("owner.pem"), memory="32M", publish=[80], system=disk)
    manifest = single.manifest()
    assert (manifest["name"], manifest["vm"]) == ("root-ext4", {"disk": str(system), "partition": 2})
    [unit] = manifest["applications"]
    assert unit == {"name": "root-ext4", "unit": "nginx.service", "memory": "32M", "publish": [80]}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "owner": "owner.pem"}))
    (tmp_path / "owner.pem").write_text(owner()[0])
    assert read(tmp_path / "manifest.yaml").programs[0].application.unit == "nginx.service"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--vm", "d.raw", "--owner", "o.pem"], "--vm needs the --unit"),
        (["--vm", "d.raw", "--unit", "a.service"], "--vm needs the --owner"),
        (["--vm", "d.raw", "--app", "x", "--owner", "o.pem"], "one of --container, --app and --vm"),
        (["--unit", "a.service", "--app", "x", "--owner", "o.pem"], "--unit without --vm"),
        (["--vm", "d.raw", "--unit", "a.service", "--user", "x", "--owner", "o.pem"], "--user without --container"),
        (["m.yaml", "--unit", "a.service"], "--unit without"),
        (["--vm", "d.raw", "--unit", "a.service", "--owner", "o.pem", "m.yaml"], "a manifest"),
    ],
)
def test_command_lines_that_make_no_sense(capsys: pytest.CaptureFixture[str], words: list[str], error: str) -> None:
    assert main(["image", "build", *words]) == 2
    assert error in capsys.readouterr().err
