"""Manifests: every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_factory import MIB, make_certificate, owner

from vambrace.cache import CacheShare
from vambrace.certificate import owner_public_key, personalization
from vambrace.classes import NORMAL, SECURE
from vambrace.config import Endpoint
from vambrace.errors import ConfigError
from vambrace.image.manifest import Manifest, NormalManifest, parse_memory, read_manifest

GOOD = """\
name: patients
owner: owner.pem
system: {memory: 128M}
applications:
  - name: analysis
    files: analysis
    command: [python3, main.py]
    environment: {MODE: full}
    memory: 32M
    percent: 80
    restarts: 2
    results: [out.txt, /results/analysis/more.txt]
  - name: report
    command: python3 -c 'print(1)'
    percent: 30
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "owner.pem").write_text(owner()[0])
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis/main.py").write_text("print(1)\n")
    return tmp_path


def read(folder: Path, text: str) -> object:
    path = folder / "manifest.yaml"
    path.write_text(text)
    return read_manifest(path)


def test_a_good_one(folder: Path) -> None:
    (folder / "manifest.yaml").write_text(GOOD)
    manifest = read_manifest(folder / "manifest.yaml")
    assert manifest.name == "patients"
    assert manifest.owner == owner()[0]
    assert (manifest.system.memory, manifest.system.percent, manifest.system.follow) == (128 * MIB, 80, True)
    analysis, report = manifest.programs
    assert analysis.application.results == ("/results/analysis/out.txt", "/results/analysis/more.txt")
    assert analysis.application.restarts == 2
    assert analysis.zone.memory == 32 * MIB
    assert analysis.merge
    assert report.application.command == ("python3", "-c", "print(1)")
    assert (report.zone.memory, report.zone.percent, report.files) == (128 * MIB, 30, ())


def test_endpoints(folder: Path) -> None:
    """The peer is the same owner's unless another certificate is named, and any Realm of theirs unless one is."""
    (folder / "ward.pem").write_text(make_certificate()[0])
    text = GOOD + (
        "endpoints:\n"
        "  - {offer: records, port: 8000, realm: ward, owner: ward.pem}\n"
        f"  - {{connect: results, port: 9000, measurement: {'ab' * 32}}}\n"
    )
    (folder / "manifest.yaml").write_text(text)
    records, results = read_manifest(folder / "manifest.yaml").endpoints
    ward, ours = ((folder / name).read_text() for name in ("ward.pem", "owner.pem"))
    assert records == Endpoint("records", "offer", 8000, personalization(owner_public_key(ward)).hex(), "ward")
    mine = personalization(owner_public_key(ours)).hex()
    assert results == Endpoint("results", "connect", 9000, mine, "", "ab" * 32)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{port: 8000}", "either offer or connect"),
        ("{offer: a, connect: a, port: 8000}", "either offer or connect"),
        ("{offer: a}", "port is 0"),
        ("{offer: A, port: 8000}", "valid name"),
        ("{offer: a, port: 80}", "port is 80"),
        ("{offer: a, port: 8000, owner: none.pem}", "none.pem"),
        ("{offer: a, port: 8000, realm: A}", "valid name"),
        ("{offer: a, port: 8000, measurement: x}", "hexadecimal"),
        ("{offer: a, port: 8000, peer: x}", "unknown key 'peer'"),
        ("offer", "a mapping of keys"),
    ],
)
def test_each_mistake_in_an_endpoint_has_its_line(folder: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        read(folder, f"{GOOD}endpoints:\n  - {line}\n")
    assert found.value.line == len(GOOD.splitlines()) + 2


def test_a_part_of_the_cache(folder: Path) -> None:
    (folder / "manifest.yaml").write_text(GOOD)
    assert read_manifest(folder / "manifest.yaml").cache is None
    (folder / "manifest.yaml").write_text(GOOD + "cache: {percent: 25}\n")
    assert read_manifest(folder / "manifest.yaml").cache == CacheShare("required", 25)
    (folder / "manifest.yaml").write_text(GOOD + "cache: {demand: preferred, percent: 100}\n")
    assert read_manifest(folder / "manifest.yaml").cache == CacheShare("preferred", 100)


@pytest.mark.parametrize(
    ("lines", "message", "line"),
    [
        ("cache:\n  percent: 0\n", "percent is 0", 2),
        ("cache:\n  percent: 101\n", "percent is 101", 2),
        ("cache:\n  percent: 5%\n", "a whole number", 2),
        ("cache:\n  percent: 5\n  demand: none\n", "'none' is not known", 3),
        ("cache:\n  percent: 5\n  ways: 2\n", "unknown key 'ways'", 3),
        ("cache: {}\n", "percent is 0", 1),
        ("cache: 25\n", "a mapping of keys", 1),
    ],
)
def test_each_mistake_in_a_part_of_the_cache_has_its_line(folder: Path, lines: str, message: str, line: int) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        read(folder, GOOD + lines)
    assert found.value.line == len(GOOD.splitlines()) + line


def test_the_systems_own_percentage(folder: Path) -> None:
    text = GOOD.replace("{memory: 128M}", "{percent: 10}")
    (folder / "manifest.yaml").write_text(text)
    assert not read_manifest(folder / "manifest.yaml").system.follow


def test_the_example_is_valid(folder: Path) -> None:
    source = Path(__file__).parents[2] / "examples/patients"
    for name in ("analysis", "report"):
        (folder / name).mkdir(exist_ok=True)
    manifest = (source / "manifest.yaml").read_text()
    (folder / "manifest.yaml").write_text(manifest)
    assert [p.zone.percent for p in read_manifest(folder / "manifest.yaml").programs] == [80, 30]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("name: patients", "nam: patients", 1, "name is missing"),
        ("name: patients", "name: patients\ncolour: red", 2, "unknown key 'colour'"),
        ("name: patients", "name: patients\nname: other", 2, "twice"),
        ("name: patients", "name: Patients!", 1, "valid name"),
        ("name: patients", "name: 12", 1, "must be text"),
        ("owner: owner.pem", "owner: none.pem", 2, "No such file"),
        ("system: {memory: 128M}", "system: {memory: 128M, colour: red}", 3, "unknown key"),
        ("system: {memory: 128M}", "system: {memory: 64M}", 3, "memory"),
        ("system: {memory: 128M}", "system: 128M", 3, "mapping"),
        ("system: {memory: 128M}", "vcpus: 99", 3, "vcpus"),
        ("system: {memory: 128M}", "debug: 1", 3, "true or false"),
        ("system: {memory: 128M}", "suite: rot13", 3, "not known"),
        ("system: {memory: 128M}", "suite: sm", 2, "not SM2"),
        ("system: {memory: 128M}", "cipher: aes-256-gcm", 3, "unknown key"),
        ("    percent: 80", "    percent: 101", 10, "percent is 101"),
        ("    percent: 80", "    percent: -1", 10, "percent is -1"),
        ("    percent: 80", "    percent: 80.5", 10, "plain value"),
        ("    percent: 80", "    percent: 0x50", 10, "plain value"),
        ("    percent: 80", "    percent: '80'", 10, "whole number"),
        ("    memory: 32M", "    memory: 33M", 9, "multiple of 2 MiB"),
        ("    memory: 32M", "    memory: lots", 9, "no size of memory"),
        ("    memory: 32M", "    memory: 8M", 9, "memory"),
        ("    files: analysis", "    files: nowhere", 6, "does not exist"),
        ("    files: analysis", "    files: [analysis, ./analysis]", 6, "same name"),
        ("    command: [python3, main.py]", "    command: []", 7, "empty"),
        ("    command: [python3, main.py]", "    command: [python3, 3]", 7, "text is expected"),
        ("    command: [python3, main.py]", "    comand: [python3]", 5, "command is missing"),
        ("{MODE: full}", "{MODE: 1}", 8, "quotes|text is expected"),
        ("{MODE: full}", "{'1x': a}", 8, "environment variable"),
        ("[out.txt,", "[../out.txt,", 12, "outside"),
        ("[out.txt,", "[out.txt, out.txt,", 12, "twice"),
        ("    results: [out.txt,", "    registers: [4]\n    results: [out.txt,", 12, "register is 4"),
        ("    results: [out.txt, /results/analysis/more.txt]", "    results: out.txt", 12, "must be a list"),
        ("- name: report", "- name: analysis", 13, "twice"),
        ("    restarts: 2", "    restarts: -2", 11, "restarts"),
        ("applications:", "applications: [", None, "not YAML"),
        ("name: patients", 'name: "\\UFFFFFFFF"', None, "not YAML"),
        ("owner: owner.pem", 'owner: "a\\0b"', 2, "not in PEM form"),
        ("    files: analysis", f"    files: {'n' * 300}", 6, "File name too long"),
        ("name: patients", "name: !!python/object:os.system x", 1, "plain value"),
    ],
)
def test_mistakes_have_their_line(folder: Path, old: str, new: str, line: int | None, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=message) as caught:
        read(folder, GOOD.replace(old, new, 1))
    if line is not None:
        assert caught.value.line == line
        assert caught.value.message.startswith(f"line {line}: ")


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("name: patients", "nmae: patients", "line 1 says 'nmae'"),
        ("owner: owner.pem", "ownr: owner.pem", "line 2 says 'ownr'"),
        ("    command: [python3, main.py]", "    comand: [python3]", "line 7 says 'comand'"),
        ("applications:", "aplications:", "line 4 says 'aplications'"),
        ("    percent: 80", "    percent: 80%", "without quotes or a sign of percent"),
        ("    results: [out.txt, /results/analysis/more.txt]", "    results: out.txt", "results: [...]"),
    ],
)
def test_a_mistake_that_is_easily_made_says_what_to_write(folder: Path, old: str, new: str, hint: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        read(folder, GOOD.replace(old, new, 1))
    assert hint in str(caught.value.hint)


def test_sixteen_applications(folder: Path) -> None:
    text = "name: a\nowner: owner.pem\napplications:\n"
    text += "".join(f"  - {{name: a{i}, command: [x]}}\n" for i in range(16))
    with pytest.raises(ConfigError, match="at most 15") as caught:
        read(folder, text)
    assert caught.value.line == 3
    assert caught.value.hint


def test_private_key_as_owner(folder: Path) -> None:
    (folder / "owner.pem").write_text(owner()[1])
    with pytest.raises(ConfigError, match="private key"):
        read(folder, GOOD)


def test_certificate_with_other_line_ends(folder: Path) -> None:
    (folder / "owner.pem").write_bytes(owner()[0].replace("\n", "\r\n").encode() + b"\r\n")
    (folder / "manifest.yaml").write_text(GOOD)
    assert read_manifest(folder / "manifest.yaml").owner == owner()[0]


@pytest.mark.parametrize("text", ["", "- a", "x", "\0", "a: *b", "&a [*a]"])
def test_not_a_manifest(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        read(folder, text)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        read_manifest(tmp_path / "none.yaml")
    assert caught.value.hint


def test_memory_units() -> None:
    assert parse_memory("128M") == parse_memory("131072K") == parse_memory(134217728) == parse_memory("128MiB")
    assert parse_memory("2G") == 2 << 30


def test_networks(folder: Path) -> None:
    read(
        folder,
        f"{GOOD}networks:\n"
        "  - {name: lab, address: 10.0.0.2/24, gateway: 10.0.0.1}\n"
        "  - uplink\n"
        "  - {name: six, address: 'fd00::0002/64', gateway: 'fd00:0::1'}\n",
    )
    lab, uplink, six = read_manifest(folder / "manifest.yaml").networks
    assert (lab.name, lab.address, lab.gateway) == ("lab", "10.0.0.2/24", "10.0.0.1")
    assert (uplink.name, uplink.address, uplink.gateway) == ("uplink", "", "")
    assert (six.address, six.gateway) == ("fd00::2/64", "fd00::1")


@pytest.mark.parametrize(
    "items",
    [
        "[5]",
        "lab",
        "[Lab]",
        "[lab, lab]",
        "[{name: lab}, lab]",
        "[{address: 10.0.0.2/24}]",
        "[{name: lab, address: 10.0.0.2}]",
        "[{name: lab, address: 10.0.0.256/24}]",
        "[{name: lab, address: 10.0.0.2/33}]",
        "[{name: lab, gateway: 10.0.0.1}]",
        "[{name: lab, address: 10.0.0.2/24, gateway: 10.0.1.1}]",
        "[{name: lab, address: 10.0.0.2/24, gateway: fd00::1}]",
        "[{name: lab, address: 10.0.0.2/24, gateway: x}]",
        "[{name: lab, address: 10.0.0.2/24, bridge: br0}]",
        "[{name: a, address: 10.0.0.2/24, gateway: 10.0.0.1}, {name: b, address: 10.1.0.2/24, gateway: 10.1.0.1}]",
        "[a, b, c, d, e]",
    ],
)
def test_networks_that_are_wrong(folder: Path, items: str) -> None:
    with pytest.raises(ConfigError) as found:
        read(folder, f"{GOOD}networks: {items}\n")
    assert found.value.line == len(GOOD.splitlines()) + 1


# --- classes ----------------------------------------------------------------------------------------------


def test_a_secure_vm_has_no_percentages(folder: Path) -> None:
    text = "name: vault\nclass: secure\nowner: owner.pem\napplications:\n  - {name: a, files: a, command: x}\n"
    (folder / "a").mkdir(exist_ok=True)
    found = read(folder, text)
    assert isinstance(found, Manifest)
    assert found.kind is SECURE and [zone.percent for zone in (found.system, found.programs[0].zone)] == [0, 0]
    assert not found.system.follow
    for line in ("verdict_seconds: 60", "cipher: sm4-gcm", "hash: sm3", "endpoints: []", "debian: {}"):
        with pytest.raises(ConfigError, match="unknown key"):
            read(folder, text + line + "\n")
    with pytest.raises(ConfigError, match="unknown key 'percent'"):
        read(folder, text.replace("command: x", "command: x, percent: 5"))


def test_a_normal_vm_is_a_system(folder: Path) -> None:
    for name in ("vmlinuz", "initrd.img", "root.ext4"):
        (folder / name).write_bytes(bytes(4096))
    text = "name: debian\nclass: normal\nkernel: vmlinuz\ninitrd: initrd.img\ndisks: [root.ext4]\n"
    found = read(folder, text + "memory: 256M\nvcpus: 2\nnetworks: [lab]\n")
    assert isinstance(found, NormalManifest)
    assert (found.kind, found.memory, found.vcpus, found.networks) == (NORMAL, 256 << 20, 2, ("lab",))
    assert (found.kernel, found.disks) == (folder / "vmlinuz", (folder / "root.ext4",))
    stock = read(folder, "name: debian\nclass: normal\ndebian: {}\n")
    assert isinstance(stock, NormalManifest) and stock.kernel is None and "root=/dev/vda" in stock.cmdline
    for line in ("owner: owner.pem", "applications: []", "suite: sm", "system: {memory: 1G}", "debug: true"):
        with pytest.raises(ConfigError, match="unknown key"):
            read(folder, text + line + "\n")
    with pytest.raises(ConfigError, match="does not exist"):
        read(folder, text.replace("vmlinuz", "other"))
    with pytest.raises(ConfigError, match="'other' is not known"):
        read(folder, text.replace("normal", "other"))
