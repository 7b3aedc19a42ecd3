"""What the adviser makes of samples, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import xml.etree.ElementTree as xml
from typing import Any

import pytest

from vambrace.advice import ENOUGH, Advice, advise
from vambrace.client.curves import picture
from vambrace.errors import DomainError
from vambrace.pager import Window
from vambrace.pager.cost import fault_ns

STATS = {"pages": 16000, "percent": 80}


def sampled(**changes: Any) -> dict[str, Any]:
    """A loop over a quarter of the zone: 1000 sampled touches in two seconds, one page in 16 sampled."""
    reuse = [0] * 101
    reuse[25] = 1000
    return {"on": False, "shift": 4, "ns": 2 * 10**9, "touches": 1000, "reuse": reuse} | changes


def test_a_window_larger_than_the_loop_costs_nothing_and_a_smaller_one_every_touch() -> None:
    found = advise("analysis", STATS, sampled(), 10_000)
    assert found.misses[74] == 0 and found.misses[75] == found.misses[100] == 8000
    assert found.share(74) == 0 and found.share(75) == pytest.approx(0.08 / 1.08)
    assert found.highest(0.05) == 74 and found.highest(0.08) == 100
    assert (found.zone, found.percent, found.touches, found.fault) == ("analysis", 80, 1000, 1e-5)


def test_0_percent_is_free_however_far_pages_are_apart() -> None:
    far = advise("analysis", STATS, sampled(reuse=[0] * 100 + [1000]), 10_000)
    assert far.misses[0] == 0 and far.misses[1] == far.misses[100] == 8000


@pytest.mark.parametrize(
    "changes",
    [
        {"reuse": None},
        {"reuse": [0] * 100},
        {"reuse": [0] * 100 + [-1]},
        {"reuse": [0] * 100 + [True]},
        {"reuse": [0.5] * 101},
        {"shift": 40},
        {"ns": 0},
        {"touches": "many"},
    ],
)
def test_samples_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DomainError):
        advise("analysis", STATS, sampled(**changes), 10_000)


@pytest.mark.parametrize("fault", [None, -1, 0.5, True])
def test_a_cost_that_is_none_is_refused(fault: object) -> None:
    with pytest.raises(DomainError):
        advise("analysis", STATS, sampled(), fault)


def test_the_picture_has_a_curve_for_each_zone_and_no_markup_of_theirs() -> None:
    found = [advise(name, STATS, sampled(), 10_000) for name in ("<script>", "b&c")]
    root = xml.fromstring(picture(found))
    curves = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(curve.attrib["points"].split()) for curve in curves] == [101, 101]
    assert "<script>" not in picture(found)


def test_a_zone_that_was_idle_has_no_curve() -> None:
    idle = dataclasses.replace(advise("report", STATS, sampled(), 10_000), touches=ENOUGH - 1)
    root = xml.fromstring(picture([idle, advise("analysis", STATS, sampled(), 10_000)]))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 1
    said = [text.text for text in root.findall("{http://www.w3.org/2000/svg}text")]
    assert "report: idle" in said and "analysis" in said


@pytest.mark.usefixtures("kernel")
def test_real_samples_of_a_loop() -> None:
    """Through the window itself: a loop over half of a zone is free up to 50 percent, and not beyond."""
    pages = 4000
    with Window([(pages, 20)], bytes(32), bytes(range(16))) as window:
        memory = window.memory()
        for page in range(pages):
            memory[page * 4096] = 1
        window.sample(0, True)
        for _ in range(8):
            for page in range(pages // 2):
                assert memory[page * 4096] == 1
        window.sample(0, False)
        found: Advice = advise("loop", window.stats(0).as_dict(), _as_sent(window.reuse(0).as_dict()), 10_000)
    assert found.misses[40] < 0.1 * found.misses[60]
    assert 35 <= found.highest(0.0001) <= 55


def _as_sent(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "reuse": list(sample["reuse"])}


@pytest.mark.usefixtures("kernel")
def test_the_cost_of_a_fault_is_measured() -> None:
    assert 1_000 < fault_ns() < 10_000_000
    assert fault_ns([min(os.sched_getaffinity(0))]) > 1_000
