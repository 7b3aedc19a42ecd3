"""What the pages name is there, and the picture of the package is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_layers import PACKAGE, ROOT, VMM

ARCHITECTURE = ROOT / "docs/architecture.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
#: Where our own files are: what else pages name is the reader's.
FOLDERS = ("vambrace", "core", "firmware", "guest", "tests", "bench", "examples", "testbed", "docs", "scripts")
#: What a page calls a file by without its folder.
SOURCE = re.compile(r"[\w-]+\.(?:py|c|h)")


def spelled(text: str) -> list[str]:
    """The names that ``text`` in code style stands for: ``a/{b,c}`` is two of them."""
    head, brace, rest = text.partition("{")
    inner, closing, tail = rest.partition("}")
    return [head + part.strip() + tail for part in inner.split(",")] if brace and closing else [text]


def sources() -> set[str]:
    """The names of all our source files."""
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*") if SOURCE.fullmatch(path.name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    words = [word for text in re.findall(r"`([\w./{},-]+)`", page.read_text()) for word in spelled(text)]
    named = [word for word in words if word.partition("/")[0] in FOLDERS and "/" in word]
    assert [word for word in named if not (ROOT / word).exists()] == []
    if page == ARCHITECTURE:
        assert {word for word in words if SOURCE.fullmatch(word)} - sources() == set()


def test_the_tree_is_drawn_as_it_is() -> None:
    """Each module and package of the product has a place in the picture, and what is there exists."""
    picture = ARCHITECTURE.read_text().split("```")[1]
    package, rest = picture.split("\ncore/")
    drawn = set(re.findall(r"(?:^  |; )([a-z]+(?:/|\.py))", package, re.MULTILINE))
    found = {path.name + "/" * path.is_dir() for path in PACKAGE.iterdir() if path.name[0] not in "_."} - {"py.typed"}
    assert drawn == found
    folders = re.findall(r"(?:^|  )([a-z]+/(?:[a-z]+/)?)  ", f"core/{rest}", re.MULTILINE)
    assert len(folders) > 6 and [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_what_a_vmm_imports_is_said() -> None:
    listed = re.search(r"`vambrace\.\{([a-z,]+)\}`", ARCHITECTURE.read_text())
    assert listed and {*listed[1].split(","), "jail"} == VMM
