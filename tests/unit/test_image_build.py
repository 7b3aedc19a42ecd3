"""From manifest to bundle with the real disk tools and a base of a few bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from base_factory import make_base
from config_factory import owner
from vambrace_agent import settings as agent

from vambrace.errors import BuildError, ConfigError, VambraceError
from vambrace.image.base import RuntimeBase
from vambrace.image.build import build_bundle
from vambrace.image.configuration import SETTINGS, agent_settings
from vambrace.image.manifest import read_manifest

MANIFEST = """\
name: patients
owner: owner.pem
system: {memory: 96M}
applications:
  - {name: analysis, files: analysis, command: [python3, main.py], memory: 16M, percent: 80}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "owner.pem").write_text(owner()[0])
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    (tmp_path / "analysis/data").mkdir(parents=True)
    (tmp_path / "analysis/main.py").write_text("print(1)\n")
    (tmp_path / "analysis/data/table").write_bytes(bytes(9000))
    return tmp_path


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> RuntimeBase:
    return make_base(tmp_path_factory.mktemp("base"))


def measure(folder: Path, base: RuntimeBase, name: str = "out") -> bytes:
    return build_bundle(folder / "manifest.yaml", folder / name, base).measurement()


def test_the_same_bits_whenever_built(folder: Path, base: RuntimeBase) -> None:
    first = build_bundle(folder / "manifest.yaml", folder / "a", base)
    os.utime(folder / "analysis/main.py", (1, 1))
    (folder / "analysis/main.py").chmod(0o600)
    (folder / "analysis/__pycache__").mkdir()
    (folder / "analysis/__pycache__/x.pyc").write_bytes(b"x")
    build_bundle(folder / "manifest.yaml", folder / "b", base)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    assert not list(folder.glob(".*"))
    assert [disk.name for disk in first.config.disks] == ["base", "apps"]
    assert "vambrace.disk=/dev/vdb,/app," in first.config.cmdline
    assert first.config.disks[1].verity_root in first.config.cmdline


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, base: (folder / "analysis/main.py").write_text("print(3)\n"),
        lambda folder, base: (folder / "analysis/main.py").chmod(0o755),
        lambda folder, base: (folder / "analysis/data/table").rename(folder / "analysis/data/tablf"),
        lambda folder, base: (folder / "manifest.yaml").write_text(MANIFEST.replace("80", "79")),
        lambda folder, base: (folder / "manifest.yaml").write_text(MANIFEST + "debug: true\n"),
        lambda folder, base: base.kernel.write_bytes(base.kernel.read_bytes()[:-1] + b"\x5b"),
        lambda folder, base: base.initrd.write_bytes(b"i" * 4999 + b"h"),
    ],
)
def test_any_change_is_measured(folder: Path, base: RuntimeBase, change: Callable[[Path, RuntimeBase], object]) -> None:
    before = measure(folder, base)
    change(folder, base)
    assert measure(folder, base) != before


def test_endpoints_reach_the_configuration_and_the_agent(folder: Path, base: RuntimeBase) -> None:
    """The agent learns where, and not who: that is the monitor's. Without endpoints its settings are what they were."""
    manifest = folder / "manifest.yaml"
    assert "endpoints" not in agent_settings(read_manifest(manifest))
    manifest.write_text(manifest.read_text() + "endpoints: [{connect: records, port: 9000, realm: ward}]\n")
    (endpoint,) = build_bundle(manifest, folder / "out", base).config.endpoints
    assert (endpoint.name, endpoint.role, endpoint.port, endpoint.realm) == ("records", "connect", 9000, "ward")
    found = agent_settings(read_manifest(manifest))["endpoints"]
    assert found == [{"name": "records", "role": "connect", "port": 9000}]


def test_the_agent_reads_what_is_measured(folder: Path, base: RuntimeBase) -> None:
    config = build_bundle(folder / "manifest.yaml", folder / "out", base).config
    (folder / SETTINGS).write_text(json.dumps(agent_settings(read_manifest(folder / "manifest.yaml"))))
    loaded = agent.load(str(folder / SETTINGS))
    (application,) = loaded.applications
    assert loaded.owner_pem == config.owner
    assert loaded.collect_seconds == config.collect_seconds
    assert (application.index, application.uid, application.memory) == (1, 1000, config.zones[1].memory)
    assert tuple(application.command) == config.applications[0].command
    assert application.directory == config.applications[0].directory


@pytest.mark.parametrize("link", ["/etc/passwd", "../owner.pem", "data/../../owner.pem", "sly/owner.pem"])
def test_links_that_lead_out(folder: Path, base: RuntimeBase, link: str) -> None:
    (folder / "analysis/sly").symlink_to("..")
    (folder / "analysis/link").symlink_to(link)
    with pytest.raises(ConfigError, match="leads out"):
        measure(folder, base)


def test_links_inside_are_kept(folder: Path, base: RuntimeBase) -> None:
    before = measure(folder, base)
    (folder / "analysis/data/link").symlink_to("../main.py")
    assert measure(folder, base) != before


def test_pipes_are_refused(folder: Path, base: RuntimeBase) -> None:
    os.mkfifo(folder / "analysis/pipe")
    with pytest.raises(ConfigError, match="pipe"):
        measure(folder, base)


def test_set_user_id_is_taken_away(folder: Path, base: RuntimeBase) -> None:
    (folder / "analysis/main.py").chmod(0o755)
    before = measure(folder, base)
    (folder / "analysis/main.py").chmod(0o6755)
    assert measure(folder, base) == before


def test_files_larger_than_the_memory(folder: Path, base: RuntimeBase) -> None:
    with (folder / "analysis/big").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(ConfigError, match="more than its memory") as caught:
        measure(folder, base)
    assert caught.value.hint


def test_kernel_and_initrd_larger_than_the_memory(folder: Path, base: RuntimeBase) -> None:
    with base.initrd.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(ConfigError, match="do not fit"):
        measure(folder, base)
    assert not (folder / "out").exists()


def test_output_that_cannot_be(folder: Path, base: RuntimeBase) -> None:
    with pytest.raises(BuildError, match="not a folder"):
        measure(folder, base, "none/out")
    (folder / "taken").mkdir()
    with pytest.raises(VambraceError):
        measure(folder, base, "taken")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_networks_reach_the_configuration_and_the_agent(folder: Path, base: RuntimeBase) -> None:
    """The monitor learns the names, the agent the addresses, and the initrd that a driver is needed."""
    manifest = folder / "manifest.yaml"
    before = build_bundle(manifest, folder / "out", base).config
    assert before.networks == () and "vambrace.network" not in before.cmdline.split()
    manifest.write_text(manifest.read_text() + "networks: [{name: lab, address: 10.0.0.2/24}, uplink]\n")
    config = build_bundle(manifest, folder / "out", base).config
    assert config.networks == ("lab", "uplink") and "vambrace.network" in config.cmdline.split()
    assert agent_settings(read_manifest(manifest))["networks"] == [
        {"name": "lab", "address": "10.0.0.2/24", "gateway": ""},
        {"name": "uplink", "address": "", "gateway": ""},
    ]
