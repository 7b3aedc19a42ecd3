"""Published ports and measurement registers of applications: in configuration, manifest and the agent's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_application, make_endpoint, make_realm, make_secure, owner

from vambrace.application import MAX_PORTS, Port
from vambrace.canonical import canonical
from vambrace.config import DomainConfig
from vambrace.errors import ConfigError
from vambrace.image.configuration import agent_settings
from vambrace.image.manifest import Manifest, read_manifest

MANIFEST = """\
name: patients
owner: owner.pem
applications:
  - name: database
    files: files
    command: [serve]
    publish: [5432, 8080]
    registers: [1, 3]
  - name: report
    files: files
    command: [report]
"""


def manifest(folder: Path, text: str = MANIFEST) -> Manifest:
    (folder / "owner.pem").write_text(owner()[0])
    (folder / "files").mkdir(exist_ok=True)
    (folder / "manifest.yaml").write_text(text)
    found = read_manifest(folder / "manifest.yaml")
    assert isinstance(found, Manifest)
    return found


def edited(**fields: Any) -> bytes:
    value = json.loads(make_realm().encode())
    value["applications"][0].update(fields)
    return canonical(value)


def test_they_are_measured() -> None:
    assert make_application(ports=(Port(5432), Port(8080))).described.endswith(" (publishes 5432, 8080)")
    plain = make_realm()
    for make in (make_realm, make_secure):
        application = make_application(ports=(Port(5432), Port(8080)), registers=(2,))
        config = make(applications=(application,))
        assert DomainConfig.parse(config.encode()) == config
        (found,) = json.loads(config.encode())["applications"]
        assert (found["ports"], found["registers"]) == ([{"port": 5432}, {"port": 8080}], [2])
    assert not {"ports", "registers"} & set(json.loads(plain.encode())["applications"][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ports": []}, "unknown key applications.ports"),
        ({"registers": []}, "unknown key applications.registers"),
        ({"ports": [5432]}, "an object is expected"),
        ({"ports": [{"port": 80}]}, "port is 80"),
        ({"ports": [{"port": 65536}]}, "port is 65536"),
        ({"ports": [{"port": True}]}, "integer"),
        ({"ports": [{"port": 5432}, {"port": 5432}]}, "port 5432: appears twice"),
        ({"ports": [{"port": 5432, "open": True}]}, "unknown key applications.ports.open"),
        ({"ports": [{"port": 1024 + n} for n in range(MAX_PORTS + 1)]}, f"at most|{MAX_PORTS + 1} published"),
        ({"registers": [0]}, "register is 0"),
        ({"registers": [4]}, "register is 4"),
        ({"registers": ["1"]}, "list of integers"),
        ({"registers": [1, 1]}, "appears twice"),
    ],
)
def test_each_mistake_has_its_message(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DomainConfig.parse(edited(**fields))


def test_applications_share_one_loopback() -> None:
    first, second = (make_application(name, ports=(Port(5432),)) for name in ("analysis", "report"))
    with pytest.raises(ConfigError, match="port 5432: appears twice"):
        make_realm(("analysis", "report"), applications=(first, second))
    listening = make_endpoint(role="connect", port=5432)
    with pytest.raises(ConfigError, match="port 5432 is an endpoint's"):
        make_realm(applications=(first,), endpoints=(listening,))
    make_realm(applications=(first,), endpoints=(make_endpoint(role="offer", port=5432),))


def test_a_manifest(tmp_path: Path) -> None:
    found = manifest(tmp_path)
    database, report = (program.application for program in found.programs)
    assert (database.ports, database.registers) == ((Port(5432), Port(8080)), (1, 3))
    assert (report.ports, report.registers) == ((), ())
    told = agent_settings(found)
    assert told["applications"][0]["ports"] == [{"port": 5432}, {"port": 8080}]
    assert told["applications"][0]["registers"] == [1, 3]
    assert told["hash"] == "sha-256"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("[5432, 8080]", "[80]", 7, "port is 80"),
        ("[5432, 8080]", "5432", 7, "must be a list"),
        ("[5432, 8080]", "[postgres]", 7, "whole numbers"),
        ("[5432, 8080]", "[5432, 5432]", 3, "appears twice"),
        ("[1, 3]", "[0]", 8, "register is 0"),
        ("[1, 3]", "[1, 1]", 8, "appears twice"),
    ],
)
def test_each_mistake_in_a_manifest_has_its_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        manifest(tmp_path, MANIFEST.replace(old, new))
    assert found.value.line == line
