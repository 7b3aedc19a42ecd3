"""By what a host divides its cache: what the settings ask for, what the machine has, and what was measured."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.resctrl import FakeResctrl
from harness import Daemon, run
from harness_certificates import Certificates

from vambrace.attest.token import decode_evidence
from vambrace.cache import PREFERRED, REQUIRED, CacheShare
from vambrace.errors import ConfigError, PartitionError
from vambrace.host import caches
from vambrace.host.caches import PROBE_FILE, Division, divide
from vambrace.host.settings import AUTO, COLOURS, OFF, WAYS, CacheSettings, parse_settings
from vambrace.partition import CachePartition
from vambrace.partition.conflict import Verdict
from vambrace.partition.geometry import Cache, configured
from vambrace.partition.ways import Tree, Ways

MIB = 1 << 20
#: 16 colours.
LAST = configured({"size": MIB, "line": 64, "ways": 16})


class Measured:
    """In place of the probe: says what it is told, and counts."""

    def __init__(self, confirmed: bool) -> None:
        self.verdict = Verdict(confirmed, "as the test says")
        self.times = 0

    def __call__(self, found: tuple[Cache, ...]) -> Verdict:
        assert found[-1] == LAST
        self.times += 1
        return self.verdict


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Division]:
    """Divide a machine that is none of a hypervisor's, whose kernel has no resctrl and lets nothing be set."""
    monkeypatch.setattr(caches, "virtual_machine", lambda: "")
    monkeypatch.setattr(caches, "forbid_migration", lambda: None)

    def call(settings: CacheSettings, measure: Measured, **options: Any) -> Division:
        return divide(settings, tmp_path, measure=measure, **({"tree": Tree(tmp_path / "none")} | options))

    return call


def test_nothing_is_divided_unless_it_is_asked_for(hardware: Callable[..., Division], tmp_path: Path) -> None:
    measured = Measured(True)
    found = hardware(CacheSettings(OFF, last=LAST), measured, tree=FakeResctrl(tmp_path / "resctrl"))
    assert (found.state, found.kind, measured.times) == (CachePartition.NONE, None, 0)
    assert found.why == "the host's settings leave the cache undivided"
    assert CacheSettings() == CacheSettings(OFF)


@pytest.mark.parametrize("mode", [WAYS, AUTO])
def test_ways_are_the_better_choice(hardware: Callable[..., Division], tmp_path: Path, mode: str) -> None:
    measured = Measured(True)
    found = hardware(CacheSettings(mode, last=LAST), measured, tree=FakeResctrl(tmp_path / "resctrl"))
    assert (found.state, found.why, measured.times) == (CachePartition.WAYS, "", 0)
    assert found.kind is not None and found.kind.in_a_row and found.kind.items == tuple(range(12))
    assert found.reserved(0) == (0, 1) and found.reserved(50) == tuple(range(6))
    assert found.part(25) == 3 and found.least(1000, 1000) == 0, "who asks for nothing has none"


@pytest.mark.parametrize("confirmed", [True, False])
def test_colours(hardware: Callable[..., Division], tmp_path: Path, confirmed: bool) -> None:
    tree = FakeResctrl(tmp_path / "resctrl")
    found = hardware(CacheSettings(COLOURS, last=LAST), Measured(confirmed), tree=tree)
    assert found.state is (CachePartition.CONFIRMED if confirmed else CachePartition.UNCONFIRMED)
    assert found.why == ("" if confirmed else "as the test says")
    assert found.kind is not None and not found.kind.in_a_row and found.kind.items == tuple(range(16))
    assert found.reserved(0) == () and found.reserved(10) == (0, 1)
    assert found.part(25) == 4 and found.least(1000, 16000) == 2


def test_auto_takes_colours_only_where_they_are_confirmed(hardware: Callable[..., Division]) -> None:
    assert hardware(CacheSettings(AUTO, last=LAST), Measured(True)).state is CachePartition.CONFIRMED


def test_auto_without_anything_certain(hardware: Callable[..., Division]) -> None:
    found = hardware(CacheSettings(AUTO, last=LAST), Measured(False))
    assert (found.state, found.kind) == (CachePartition.NONE, None)
    assert found.why.startswith("the kernel offers no ways of the cache: none: No such file")
    assert found.why.endswith("; colours are unconfirmed: as the test says")


def test_what_is_not_possible_has_a_reason(hardware: Callable[..., Division], monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware(CacheSettings(WAYS, last=LAST), Measured(True)).why.startswith("the kernel offers no ways")
    hashed = configured({"size": 15 * MIB, "line": 64, "ways": 16})
    assert "no power of two" in hardware(CacheSettings(COLOURS, last=hashed), Measured(True)).why

    def refuse() -> None:
        raise PartitionError("the kernel may move pages to other frames")

    monkeypatch.setattr(caches, "forbid_migration", refuse)
    found = hardware(CacheSettings(COLOURS, last=LAST), Measured(True))
    assert (found.state, found.why) == (CachePartition.NONE, "the kernel may move pages to other frames")


def test_measured_once_for_each_boot(
    hardware: Callable[..., Division], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, measured = CacheSettings(COLOURS, last=LAST), Measured(True)
    for _ in range(2):
        assert hardware(settings, measured).state is CachePartition.CONFIRMED
    assert measured.times == 1
    for spoiled in (b"", b"{}", b"[1]", b'{"boot": 1}'):
        (tmp_path / PROBE_FILE).write_bytes(spoiled)
        assert hardware(settings, measured).state is CachePartition.CONFIRMED
    assert measured.times == 5
    kept = json.loads((tmp_path / PROBE_FILE).read_text())
    (tmp_path / PROBE_FILE).write_text(json.dumps(kept | {"caches": [[3, 1, 2, 3]]}))
    assert hardware(settings, Measured(False)).state is CachePartition.UNCONFIRMED, "another cache was measured"
    (tmp_path / PROBE_FILE).write_text(json.dumps(kept | {"boot": "another boot's"}))
    assert hardware(settings, Measured(False)).state is CachePartition.UNCONFIRMED, "in another boot"


def test_a_virtual_machine_is_not_measured(hardware: Callable[..., Division], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "virtual_machine", lambda: "'QEMU' in /sys/class/dmi/id/sys_vendor")
    measured = Measured(True)
    found = hardware(CacheSettings(COLOURS, last=LAST), measured)
    assert (found.state, measured.times) == (CachePartition.UNCONFIRMED, 0)
    assert found.why == "this is a virtual machine ('QEMU' in /sys/class/dmi/id/sys_vendor)"


# --- settings -------------------------------------------------------------------------------------------------

TABLE: dict[str, Any] = {
    **dict.fromkeys(("certificate", "key", "client_ca", "vendor_root", "endorsement", "state"), "/etc/x"),
    "vmm_cpus": [1],
}


def test_settings_of_a_cache() -> None:
    assert parse_settings(TABLE).cache == CacheSettings()
    table = {"partition": "colours", "reserve": 5, "size": MIB, "line": 64, "ways": 16}
    assert parse_settings({**TABLE, "cache": table}).cache == CacheSettings(COLOURS, 5, LAST)
    assert parse_settings({**TABLE, "cache": {"partition": "auto"}}).cache == CacheSettings(AUTO)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("colours", "cache must be a table"),
        ({"partition": "halves"}, "one of off, ways, colours, auto"),
        ({"partition": ["ways"]}, "one of off"),
        ({"reserve": 100}, "0 to 99"),
        ({"reserve": True}, "0 to 99"),
        ({"reserve": "5"}, "0 to 99"),
        ({"colours": 16}, "'colours' is not a setting"),
        ({"size": MIB, "line": 64}, "ways must be a whole number"),
        ({"size": MIB, "line": 60, "ways": 16}, "cannot"),
    ],
)
def test_settings_that_are_refused(table: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        parse_settings({**TABLE, "cache": table})
    assert raised.value.hint


def test_a_domain_ends_that_demands_what_is_not_its_own_any_more(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only prefers it goes on, and its tokens say what is left: nothing."""
    tree = FakeResctrl(tmp_path / "resctrl", closids=3)
    monkeypatch.setattr(caches, "Ways", lambda _: Ways(tree))

    async def test(daemon: Daemon) -> None:
        strict, _ = await daemon.awaiting(name="strict", cache=CacheShare(REQUIRED, 25))
        modest, vmm = await daemon.running(name="modest", cache=CacheShare(PREFERRED, 25))
        for name in tree.groups():
            tree._show(tree.root / name, dict.fromkeys(tree.caches, 0xFF))
        found = (await daemon.get("/v1/partition/verification")).json["findings"]
        assert len(found) == 3 and all(finding.startswith("resctrl: ") for finding in found)
        view = await daemon.state(strict, "failed")
        assert view["reason"].startswith("the part of the cache that it demands is not its own any more: resctrl: ")
        assert not view["executed"] and view["final"]
        await daemon.state(modest, "running")
        answer = await vmm.ask("attest", challenge="11" * 64)
        token = decode_evidence(base64.b64decode(answer["token"]))
        assert token.realm.cache_partition == "none"

    run(tmp_path, certificates, test, cache=CacheSettings(WAYS))
