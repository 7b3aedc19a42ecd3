"""What commands print of what strangers say."""

from __future__ import annotations

import math
import time

import pytest

from vambrace.cli.output import moment


@pytest.mark.parametrize("seconds", [2**62, -(2**62), 1e308, math.nan, math.inf])
def test_times_that_no_calendar_has(seconds: float) -> None:
    """An application sets the times of its files, and a host says those of its volumes."""
    assert moment(seconds) == "?"
    now = time.time()
    assert moment(now) == time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
