"""Commands that must be refused: in one line that says why, one that says what to do, and the documented exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from vambrace.cli.main import main

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def tree(*folders: Path) -> dict[Path, bytes]:
    """Every file below ``folders`` and what is in it."""
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


class Refusals:
    """Runs commands that must fail; says what they printed."""

    def __init__(self, capsys: Capture) -> None:
        self._capsys = capsys

    def __call__(self, code: int, *words: str, says: str, hint: str) -> None:
        self._capsys.readouterr()
        returned = main(list(words))
        out, err = self._capsys.readouterr()
        check_words(returned, out, err, code=code, says=says, hint=hint)


def check_words(returned: int, out: str, err: str, *, code: int, says: str, hint: str) -> None:
    """One line of error and one of advice, with these words in them, and the exit code as documented."""
    lines = err.splitlines()
    assert returned == code, (out, err)
    assert f"| {code} |" in (ROOT / "docs/cli.md").read_text()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), err
    assert says in lines[0] and hint in lines[1], err
    assert "internal error" not in err and "Traceback" not in out + err
    assert not out
