"""The frame of the benchmarks: the rows, the table, the file and the exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import __main__ as frame  # noqa: E402
from bench import boot, server  # noqa: E402
from bench.parts import runner  # noqa: E402
from bench.report import Report, Unavailable  # noqa: E402
from vambrace.errors import PagerError  # noqa: E402


def test_rows_have_the_documented_keys(tmp_path: Path) -> None:
    report = Report()
    report.add("boot.kernel", "vambrace", 2.0, "s")
    report.add("boot.kernel", "qemu", 4.0, "s")
    report.compare("boot.kernel", "vambrace", "qemu")
    report.write(tmp_path / "new" / "bench.json")
    rows = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert rows == [
        {
            "name": "boot.kernel",
            "subject": "vambrace",
            "value": 2.0,
            "unit": "s",
            "ratio": 0.5,
            "against": "qemu",
        },
        {"name": "boot.kernel", "subject": "qemu", "value": 4.0, "unit": "s"},
    ]
    assert "0.5 × qemu" in report.table()


def test_rows_that_say_nothing_are_refused() -> None:
    report = Report()
    with pytest.raises(ValueError, match="finite"):
        report.add("a", "b", float("nan"), "s")
    with pytest.raises(ValueError, match="together"):
        report.add("a", "b", 1, "s", ratio=1.0)
    report.add("a", "b", 1, "s")
    report.add("a", "c", 0, "s")
    for against in ("missing", "c"):
        with pytest.raises(ValueError, match="a: "):
            report.compare("a", "b", against)


def test_every_benchmark_is_found_and_can_run() -> None:
    assert "native" in frame.names()
    assert "report" not in frame.names()


def test_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def works(report: Report) -> None:
        report.add("works", "here", 3, "s")

    def fails(report: Report) -> None:
        raise PagerError("no window", hint="run as root")

    def crashes(report: Report) -> None:
        raise KeyError("a bug")

    def cannot(report: Report) -> None:
        raise Unavailable("no such CPU")

    for run in (works, fails, crashes, cannot):
        module = ModuleType(run.__name__)
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"bench.{run.__name__}", module)
    monkeypatch.setattr(frame, "names", lambda: ["cannot", "crashes", "fails", "works"])
    path = tmp_path / "bench.json"
    assert frame.main(["--json", str(path)]) == 1
    assert [row["name"] for row in json.loads(path.read_text())] == ["works"]
    printed = capsys.readouterr()
    assert "no window; run as root" in printed.err and "not on this machine: no such CPU" in printed.err
    assert frame.main(["cannot", "works"]) == 0
    assert frame.main(["missing"]) == 2


def test_helpers_are_no_benchmarks() -> None:
    assert {"boot", "native", "policies", "programs", "server"} <= set(frame.names())
    assert "parts" not in frame.names()


def test_subjects_alternate() -> None:
    boots = list(boot.order(2))
    assert len(boots) == 2 * 2 * len(boot.SUBJECTS)
    for until in ("off", "ready"):
        subjects = [subject for end, subject in boots if end == until]
        assert subjects == [*boot.SUBJECTS, *reversed(boot.SUBJECTS)]


def test_boot_rows_are_medians_compared_with_qemu() -> None:
    samples = boot.Samples()
    for factor in (1, 9, 2):
        for subject in boot.SUBJECTS:
            time = factor * (4.0 if subject == boot.QEMU else 1.0)
            for until in ("off", "ready"):
                result: dict[str, object] = {"process": time / 2, "request": time, "load": 2 * time, "run": 3 * time}
                if until == "ready":
                    result["end"] = time
                    result["memory"] = {"guest": 0, "rss": int(time) << 20, "pss": int(time) << 20}
                samples.add(subject, until, result)
    report = Report()
    samples.rows(report)
    rows = {(row.name, row.subject): row for row in report.rows}
    assert {name for name, _ in rows} == {*boot.PHASES.values(), "vmm.memory.rss", "vmm.memory.pss"}
    assert rows["boot.kernel", boot.QEMU].value == 24.0
    assert rows["boot.whole", boot.QEMU].value == 48.0
    for subject in boot.PERCENTS:
        assert rows["boot.load", subject].value == 4.0
        assert rows["boot.load", subject].ratio == 0.25
        assert rows["vmm.memory.pss", subject].against == boot.QEMU


SMAPS = """\
ffff80000000-ffff90000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:               40000 kB
Pss:               40000 kB
VmFlags: rd wr mr mw me lo dc ac nr dd um
ffffa0000000-ffffa0100000 r-xp 00000000 fe:00 1234                       /usr/lib/libc.so.6
Rss:                1024 kB
Pss:                 256 kB
VmFlags: rd ex mr mw me
ffffa0200000-ffffa0300000 rw-p 00000000 00:00 0                          [heap]
Rss:                 512 kB
Pss:                 512 kB
VmFlags: rd wr mr mw me ac
"""


def test_memory_is_split_into_the_guest_and_the_rest() -> None:
    expected = {"guest": 40000 << 10, "rss": 1536 << 10, "pss": 768 << 10}
    assert runner.memory_of(SMAPS, runner.in_window) == expected
    assert runner.memory_of(SMAPS, lambda start, end, flags: start <= 0xFFFF_8000_1000 < end) == expected


def test_the_agent_is_answered_until_it_is_ready() -> None:
    agent = runner.Agent()
    assert agent.receive(b'{"id": 1, "op": "iden') == []
    (answer,) = agent.receive(b'tity"}\n')
    assert len(bytes.fromhex(json.loads(answer)["instance"])) == 16
    assert not agent.ready
    agent.receive(b'{"id": 2, "op": "report", "state": "ready", "detail": ""}\n')
    assert agent.ready
    with pytest.raises(RuntimeError, match="failed: no disk"):
        agent.receive(b'{"id": 3, "op": "report", "state": "failed", "detail": "no disk"}\n')


def test_qemu_gets_the_same_guest() -> None:
    files = {"kernel": "/k", "initrd": "/i", "disks": ["/a", "/b"]}
    wanted = {"files": files, "cmdline": "quiet x=y", "zones": [256 << 20, 32 << 20], "vcpus": 2, "cid": 7}
    words = runner.qemu_command(wanted, 3, 4)
    assert words[words.index("-append") + 1] == "quiet x=y"
    assert words[words.index("-m") + 1] == "288M"
    assert "node,memdev=zone0,cpus=0-1" in words and "node,memdev=zone1" in words
    assert [word for word in words if word.startswith("virtio-blk")] == [
        "virtio-blk-device,drive=disk0,bus=virtio-mmio-bus.1",
        "virtio-blk-device,drive=disk1,bus=virtio-mmio-bus.2",
    ]
    assert runner.zone_bases(wanted["zones"]) == [0x4000_0000, 0x5000_0000]


def test_how_the_server_started_is_read_from_its_progress() -> None:
    assert server.kind(["resuming the saved state", "up after 3.1 s (resumed)"]) == "resumed"
    assert server.kind(["up after 30.0 s (cold)"]) == "cold"
    assert server.kind([]) == ""
