"""The frame of the benchmarks: the rows, the table, the file and the exit codes."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import __main__ as frame
from bench import boot, devices, emulated, server
from bench.parts import aio, alone, driver, qemu, runner, turns
from bench.report import Report, Row, Unavailable, interval, rounds
from vambrace.errors import PagerError


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
    assert {"boot", "devices", "emulated", "native", "network", "policies", "programs", "server"} <= set(frame.names())
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
    words = qemu.qemu_command(wanted, 3, 4)
    assert words[words.index("-append") + 1] == "quiet x=y"
    assert words[words.index("-m") + 1] == "288M"
    assert "node,memdev=zone0,cpus=0-1" in words and "node,memdev=zone1" in words
    assert [word for word in words if word.startswith("virtio-blk")] == [
        "virtio-blk-device,drive=disk0,bus=virtio-mmio-bus.1",
        "virtio-blk-device,drive=disk1,bus=virtio-mmio-bus.2",
    ]
    assert qemu.zone_bases(wanted["zones"]) == [0x4000_0000, 0x5000_0000]


def test_qemu_gets_the_same_device() -> None:
    wanted = {"files": {"kernel": "/k", "initrd": "/i", "disks": []}, "cmdline": "", "zones": [256 << 20], "vcpus": 1}
    without, behind = {**wanted, "cid": 7}, {"disk": "0000:01:00.0"}
    assert qemu.device_words(without) == [] and "its=off" in " ".join(qemu.qemu_command(without, 3, 4))
    assert "its=on" in " ".join(qemu.qemu_command({**without, "devices": behind}, 3, 4))
    assert qemu.device_words({"devices": behind}) == ["-device", "vfio-pci,host=0000:01:00.0"]
    words = qemu.device_words({"devices": behind, "iommu": True})
    assert words == ["-device", "virtio-iommu-pci", "-device", "vfio-pci,host=0000:01:00.0"]


def test_a_device_is_had_by_one_guest_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[str] = []

    class Guest:
        """Does as many operations a second as it was told, and half as many when it is encrypted."""

        def __init__(self, stack: ExitStack, specification: dict[str, Any], errors: Any) -> None:
            assert not alive, "nobody else has it"
            alive.append(specification["name"])
            stack.callback(alive.clear)
            self.rate: float = specification["rate"]

        def ask(self, request: dict[str, Any]) -> dict[str, Any]:
            if "work" in request:
                return {"ready": request["work"]}
            return {"operations": self.rate * request["seconds"], "seconds": request["seconds"]}

        def encrypt(self, percents: list[int]) -> None:
            assert percents == [50, 50]
            self.rate /= 2

    monkeypatch.setattr(turns, "RealmGuest", Guest)
    monkeypatch.setattr(turns, "GUESTS", {"realm": Guest, "qemu": type("Other", (Guest,), {})})
    guests = {
        devices.QEMU: {"name": "a", "vmm": "qemu", "rate": 100.0},
        devices.REALM: {"name": "b", "vmm": "realm", "rate": 20.0, "encrypt": [50, 50]},
        devices.QEMU_IOMMU: {"name": "c", "vmm": "qemu", "rate": 40.0},
    }
    found = alone.take_turns({"guests": guests, "works": list(devices.UNITS), "rounds": 2, "seconds": 1.0}, None)
    report = Report()
    devices.add(report, found)
    rows = {(row.name, row.subject, row.against): row for row in report.rows}
    assert len(rows) == len(report.rows) == len(devices.UNITS) * 6
    ours = rows["nvme/random-read", devices.REALM, devices.QEMU]
    assert (ours.value, ours.ratio, ours.low, ours.high) == (20.0, 0.2, 0.2, 0.2)
    assert rows["nvme/random-read", devices.ENCRYPTED_REALM, devices.QEMU_IOMMU].ratio == 0.25
    assert rows["nvme/read", devices.QEMU, None].value == 12.5
    slower = rows["nvme/latency", devices.REALM, devices.QEMU]
    assert (slower.value, slower.ratio, slower.unit) == (50_000.0, 5.0, "µs")


def test_transfers_that_are_under_way_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    contents = [os.urandom(4096) for _ in range(8)]
    path.write_bytes(b"".join(contents))
    file = os.open(path, os.O_RDWR)
    try:
        queue = aio.Queue(file, 4096, 4)
        queue.transfer(aio.READ, [4096, 0, 7 * 4096])
        assert queue.memory[: 3 * 4096] == contents[1] + contents[0] + contents[7]
        queue.transfer(aio.WRITE, [2 * 4096])
        assert path.read_bytes()[2 * 4096 :][:4096] == contents[1]
        with pytest.raises(OSError, match="less than was asked for"):
            queue.transfer(aio.READ, [0, 8 * 4096])
        queue.close()
    finally:
        os.close(file)


def test_how_the_server_started_is_read_from_its_progress() -> None:
    assert server.kind(["resuming the saved state", "up after 3.1 s (resumed)"]) == "resumed"
    assert server.kind(["up after 30.0 s (cold)"]) == "cold"
    assert server.kind([]) == ""


def test_an_interval_holds_the_median_with_the_confidence_that_it_says() -> None:
    # Of nine values, the second and the eighth: outside lies 2 (1 + 9) / 2^9 = 3.9 percent (binomial distribution).
    assert interval([9.0, 1.0, 5.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0]) == (2.0, 8.0)
    # Of five, even the outermost say 6.25 percent: all that can be given.
    assert interval([5.0, 1.0, 3.0, 2.0, 4.0]) == (1.0, 5.0)
    with pytest.raises(ValueError, match="nothing"):
        interval([])


def test_rounds_are_as_the_user_says_or_the_benchmark_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAMBRACE_BENCH_ROUNDS", raising=False)
    assert rounds(9) == 9
    for said, counted in (("4", 4), ("0", 1)):
        monkeypatch.setenv("VAMBRACE_BENCH_ROUNDS", said)
        assert rounds(9) == counted
    report = Report()
    report.add_rounds("a", "b", [4.0, 9.0, 5.0], "s", [0.2, 0.9, 0.4], "c")
    assert report.rows == [Row("a", "b", 5.0, "s", 0.4, "c")]
    report.add_rounds("a", "d", [4.0, 9.0, 5.0], "s", [0.2, 0.9, 0.4], "c", with_interval=True)
    assert (report.rows[1].ratio, report.rows[1].low, report.rows[1].high) == (0.4, 0.2, 0.9)


def test_a_ratio_may_have_its_interval_and_nothing_else_may() -> None:
    report = Report()
    report.add("a", "b", 1, "s", ratio=0.99, against="c", within=(0.97, 1.02))
    assert report.rows[0].as_json() | {"low": 0.97, "high": 1.02} == report.rows[0].as_json()
    assert "0.99 × c (0.97 to 1.02)" in report.table()
    with pytest.raises(ValueError, match="no ratio"):
        report.add("a", "b", 1, "s", within=(0.97, 1.02))
    with pytest.raises(ValueError, match="finite"):
        report.add("a", "b", 1, "s", ratio=0.99, against="c", within=(0.97, float("inf")))


def test_emulated_rows_are_ours_over_qemus_and_above_one_is_faster() -> None:
    report = Report()
    found = {
        "qemu": [100.0, 200.0, 100.0],
        "open": [110.0, 220.0, 120.0],
        "inside": [110.0, 110.0, 120.0],
        "window": {"50": [(60.0, 0.5), (50.0, 1.5), (40.0, 1.0)]},
    }
    emulated.add(report, "zipf", found)
    rows = {row.name: row for row in report.rows}
    # Each turn of ours is compared with the one of QEMU's beside it.
    assert (rows["emulated/zipf/0"].ratio, rows["emulated/zipf/0"].low, rows["emulated/zipf/0"].high) == (1.1, 1.1, 1.2)
    assert (rows["emulated/zipf/50"].ratio, rows["emulated/zipf/50"].against) == (0.5, emulated.QEMU)
    assert (rows["emulated-inside/zipf"].ratio, rows["emulated-inside/zipf"].against) == (1.0, "0 %")
    assert rows["emulated-misses/zipf/50"].value == 1.0
    # A million operations a second, and one fault of a microsecond for each: half as fast.
    emulated.estimate(report, "zipf", found["window"], 1e6, 1e-6)
    assert {row.name: row.ratio for row in report.rows if row.subject == "calculated"} == {"estimated/zipf/50": 0.5}


@pytest.mark.parametrize("work", emulated.WORKS)
def test_what_a_guest_does_it_does_here_too(work: str) -> None:
    assert emulated.rate_here(work, seconds=0.05) > 0


def test_a_driver_that_was_told_no_work_says_so() -> None:
    answers: list[bytes] = []
    requests = iter([b'{"seconds": 1}\n', b""])
    driver.serve(lambda: next(requests), answers.append)
    assert json.loads(answers[0]) == {"error": "no work was chosen"}
