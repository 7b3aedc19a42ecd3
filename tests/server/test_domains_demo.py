"""The demo of the three classes on the product's own host, as ``make demo-domains`` runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from machine import play

from vambrace.emulator.server import Server


@pytest.mark.soak
def test_the_whole_demo_of_the_classes(product: Server, tmp_path: Path) -> None:
    told, said = play("examples.domains.demo", server=product.home, folder=tmp_path)
    assert told["passed"]
    assert re.search(r"✓ the Normal VM, on its console: debian: \d+ primes", said)
