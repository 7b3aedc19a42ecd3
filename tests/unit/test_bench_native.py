"""The parts of the native benchmarks that do not measure: what they compile, calculate and draw."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pytest

from bench import native, programs
from bench.parts import pictures
from bench.parts.core import before_others
from bench.report import Report

ROOT = Path(__file__).parents[2]

FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-fsyntax-only")


@pytest.mark.parametrize(
    "source", ["bench/parts/faults.c", "bench/parts/moves.c", "bench/parts/heap.c", "bench/policy/record.c"]
)
def test_the_c_parts_compile_without_a_warning(source: str) -> None:
    subprocess.run(["cc", *FLAGS, str(ROOT / source)], check=True)


def test_what_goes_before_others_does_so_for_a_while() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with before_others():
        assert os.getpriority(os.PRIO_PROCESS, 0) == (-20 if os.geteuid() == 0 else before)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_two_threads_are_compared_with_one_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        def __call__(self, mode: str, *traces: str) -> dict[str, float]:
            return {"misses": 1000 * len(traces), "seconds": 0.01 * len(traces) ** 2}  # two: half as fast as one

        def least(self, work: str, workers: str) -> float | None:
            rates = {"threads": 80_000, "one": 200_000, "processes": 380_000}
            return rates[workers] if work == "move" else None  # a kernel that cannot copy so

    monkeypatch.setattr(native, "ROUNDS", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    report = Report()
    native.threads(report, Two())  # type: ignore[arg-type]
    found = {(row.name, row.subject): (row.value, row.ratio, row.low) for row in report.rows}
    bound = "native/two-threads-bound"
    assert found == {
        ("native/two-threads", "window"): (50_000, 0.5, 0.5),
        (bound, native.LEAST["move"]): (80_000, 0.8, 0.8),
        (bound, native.PROCESSES): (380_000, 1.9, 1.9),
    }


class Timed:
    """A benchmark that has the same times in every round, in seconds a miss or an access."""

    TIMES = {("swap", "random"): 12e-6, ("swap", "sequential"): 10e-6, ("xts", "random"): 2e-6}
    OURS = {"random": 4e-6, "sequential": 5e-6}

    def __call__(self, mode: str, trace: str, **_: Any) -> dict[str, float]:
        seconds = self.OURS[trace] if mode == "engine" else self.TIMES[mode, trace]
        return {"seconds": seconds * 1000, "misses": 1000, "accesses": 1000, "cpu": 0.0, "standby": 0}


class Nothing:
    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read_ahead(self, cluster: int) -> None: ...


def test_swap_is_compared_with_its_own_time_and_with_a_cipher_s_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "Limit", Nothing)
    report = Report()
    native.compare_swap(report, Timed(), Nothing())  # type: ignore[arg-type]
    found = {(row.name, row.subject): (row.value, row.ratio) for row in report.rows}
    assert found == {
        ("native/random-fault-vs-swap", native.SWAP): (12, 3),
        ("native/random-fault-vs-swap", native.SWAP_AND_CIPHER): (14, 3.5),
        ("native/sequential-page-vs-swap", native.SWAP): (10, 2),
        ("native/sequential-page-vs-swap", native.SWAP_AND_CIPHER): (12, 2.4),
    }


def test_the_bound_has_a_cipher_s_time_for_each_page_that_is_decrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(mode: str, trace: str, **_: Any) -> dict[str, float]:
        # One access in four finds its page.
        seconds = {"naive": 9e-6, "cipher": 3e-6, "engine": 15e-6}[mode] * 750
        return {"seconds": seconds, "misses": 750, "accesses": 1000, "cpu": seconds, "standby": 0}

    monkeypatch.setattr(native, "ROUNDS", 1)
    report = Report()
    native.faults(report, bench, ["aes-256-gcm"])  # type: ignore[arg-type]
    found = {(row.name, row.subject): row for row in report.rows}
    row = "native/random-fault/aes-256-gcm"
    assert found[row, "bound"].value == pytest.approx(12) and found[row, "window"].value == pytest.approx(15)
    assert found[row, "window"].ratio == pytest.approx(1.25)


def test_a_program_is_compared_with_itself_at_0_percent() -> None:
    def heap(name: str, mebibytes: int, percent: int) -> dict[str, Any]:
        # Half as fast for each 50 percent, unless everything fits.
        slower = 1 + percent / 50 if mebibytes == 3 else 1
        return {"seconds": slower, "decrypted": percent, "plaintext_max": 2 * 256 + 1}

    report = Report()
    programs.program(report, heap, "store")  # type: ignore[arg-type]
    ratios = {row.name: row.ratio for row in report.rows if row.ratio is not None}
    assert ratios["native/program/store/50"] == 2 and ratios["native/program/store/0"] == 1
    assert ratios["native/inside/store"] == 1


def test_the_picture_has_a_curve_for_each_program() -> None:
    rows = [
        {"name": f"native/program/{name}/{percent}", "ratio": 1 + percent / 25, "subject": "", "value": 1, "unit": "s"}
        for name in ("one", "<other>")
        for percent in (0, 50, 95)
    ]
    rows.append({"name": "native/program/one/50/decrypted", "subject": "", "value": 5, "unit": "pages"})
    root = xml.fromstring(pictures.slowdown(rows))
    curves = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(curve.attrib["points"].split()) for curve in curves] == [3, 3]
