"""The gallery on the product's own host, example by example, as its one command runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine import play

from examples.gallery.visit import exhibit_of, known
from vambrace.emulator.server import Server


@pytest.mark.soak
@pytest.mark.parametrize("name", known())
def test_an_example(product: Server, tmp_path: Path, name: str) -> None:
    """It serves a client of its own kind at every percentage, ends in order, and leaves nothing."""
    before = product.api.get("/v1/images")["images"]
    report, _ = play("examples.gallery", name, server=product.home, folder=tmp_path)
    (row,) = report["rows"]
    assert (row["example"], row["errors"], row["error"]) == (name, 0, None)
    highest, lowest = exhibit_of(name).percentages
    assert row["percentages"] == [50, highest, lowest]
    assert row["end"].endswith("succeeded") and row["client"]
    assert min(row["build"], row["size"], row["launch"], row["ready"]) > 0
    assert product.api.get("/v1/images")["images"] == before
