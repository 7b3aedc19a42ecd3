"""The frame of the benchmarks: the rows, the table, the file and the exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import __main__ as frame  # noqa: E402
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
    assert "pager" in frame.names()
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
