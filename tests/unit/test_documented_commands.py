"""Commands that pages and helps show can be given as they stand: every word of them is known."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise

import pytest
from test_docs import PAGES

from vambrace.cli.main import make_parser

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: What ends a command of ``vambrace`` for a shell.
_ENDS = (">", "&", "&&", "|", ";", "2>")

#: What HEX stands for behind these options.
_HEX = {"--nonce": "00" * 32, "--challenge": "00" * 64}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ``vambrace`` in the lines of ``text``, a shell's."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for start, word in enumerate(words):
            if word == "vambrace" and (start == 0 or words[start - 1] in (*_ENDS, "sudo")):
                rest = words[start + 1 :]
                end = next((place for place, word in enumerate(rest) if word in _ENDS), len(rest))
                yield rest[:end]


SHOWN = sorted(
    {tuple(words) for page in PAGES for block in _BLOCK.findall(page.read_text()) for words in commands(block)}
)


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_a_command_of_a_page(words: tuple[str, ...]) -> None:
    given = [_HEX[before] if word == "HEX" else word for before, word in pairwise(("", *words))]
    assert callable(make_parser().parse_args(given).handler)


def test_they_are_found() -> None:
    assert len(SHOWN) > 40
    assert ("image", "build", "patients.yaml") in SHOWN and ("owner", "show") in SHOWN


def test_a_volume_has_the_size_behind_the_name() -> None:
    options = make_parser().parse_args(["volume", "create", "records", "1G"])
    assert (options.name, options.size) == ("records", "1G")
