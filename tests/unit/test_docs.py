"""What the pages name is there, and the picture of the package is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_layers import PACKAGE, ROOT, VMM

ARCHITECTURE = ROOT / "docs/architecture.md"
#: It and what it goes on in. Their sections have one numbering, by which pages and code name them.
PARTS = sorted((ROOT / "docs").glob("architecture*.md"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
#: Where our own files are: what else pages name is the reader's.
FOLDERS = ("vambrace", "core", "firmware", "guest", "tests", "bench", "examples", "testbed", "docs", "scripts")
#: What a page calls a file by without its folder.
SOURCE = re.compile(r"[\w-]+\.(?:py|c|h)")
_NUMBERS = r"sections?\s+(\d+(?:, \d+)*(?: and \d+)?)"
_PART = r"((?i:architecture)(?:-[a-z]+)?)"
#: How sections are named, links taken away: the part of the architecture that is said to have them before or after.
NAMED = re.compile(rf"{_PART}(?:\.md)?\W{{1,4}}{_NUMBERS}")
NAMED_AFTER = re.compile(rf"{_NUMBERS}\s+of\s+{_PART}\.md")


def spelled(text: str) -> list[str]:
    """The names that ``text`` in code style stands for: ``a/{b,c}`` is two of them."""
    head, brace, rest = text.partition("{")
    inner, closing, tail = rest.partition("}")
    return [head + part.strip() + tail for part in inner.split(",")] if brace and closing else [text]


def sources() -> set[str]:
    """The names of all our source files."""
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*") if SOURCE.fullmatch(path.name)}


def anchors(page: Path) -> set[str]:
    """What the headings of ``page`` are called in links: GitHub keeps letters, digits, _ and -, spaces become -."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sections(page: Path) -> list[tuple[int, str]]:
    return [(int(n), title) for n, title in re.findall(r"^## (\d+)\. (.*)$", page.read_text(), re.MULTILINE)]


def references(path: Path) -> list[tuple[str, int]]:
    """The sections of the architecture that ``path`` names, each with the part that it names for it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", path.read_text())
    found = [*NAMED.findall(text), *((part, numbers) for numbers, part in NAMED_AFTER.findall(text))]
    if path in PARTS or path.name == "threat-model.md":  # where a number alone means one of these
        found += [("architecture", numbers) for numbers in re.findall(_NUMBERS, text)]
    return [(part.lower(), int(number)) for part, numbers in found for number in re.findall(r"\d+", numbers)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
    links = [(page.parent / link if link else page, anchor) for link, anchor in links if ":" not in link]
    assert [path for path, _ in links if not path.exists()] == []
    assert [(path.name, anchor) for path, anchor in links if anchor and anchor not in anchors(path)] == []


def test_the_architecture_says_where_each_section_is() -> None:
    rows = re.findall(r"^\| (\d+) \| \[(.+)\]\((.*)#.+\) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    listed = [(int(number), title, page or ARCHITECTURE.name) for number, title, page in rows]
    there = sorted((number, title, page.name) for page in PARTS for number, title in sections(page))
    assert listed == there and [number for number, *_ in there] == list(range(1, len(there) + 1))


def test_sections_that_are_named_are_there() -> None:
    has = {page.stem: {number for number, _ in sections(page)} for page in PARTS}
    has["architecture"] = set().union(*has.values())  # it leads to all
    kinds = ("py", "pyi", "c", "h", "sh", "yaml", "md")
    paths = {path for folder in FOLDERS for kind in kinds for path in (ROOT / folder).rglob(f"*.{kind}")} | {*PAGES}
    named = [(path.relative_to(ROOT), *each) for path in paths for each in references(path)]
    assert len({path for path, *_ in named}) > 40
    assert [each for each in named if each[2] not in has.get(each[1], ())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    words = [word for text in re.findall(r"`([\w./{},-]+)`", page.read_text()) for word in spelled(text)]
    named = [word for word in words if word.partition("/")[0] in FOLDERS and "/" in word]
    assert [word for word in named if not (ROOT / word).exists()] == []
    if page in PARTS:
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
