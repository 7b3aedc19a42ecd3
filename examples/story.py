"""How a demo tells what it does: steps, figures, and claims that decide its exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vambrace.attest.owner import OwnerIdentity
from vambrace.cli.main import INTERRUPTED
from vambrace.emulator.server import Server, hint_for
from vambrace.errors import VambraceError
from vambrace.suite import NIST, SUITES


class Story:
    """Prints the steps, keeps the figures, and remembers whether any claim failed."""

    def __init__(self, report: Path) -> None:
        self.path = report
        self.report: dict[str, Any] = {"seconds": {}}
        self.rows: list[tuple[str, str, bool]] = []
        #: The parts that were asked for by name; none: all.
        self.chosen: list[str] = []
        self._told = ""

    def say(self, text: str) -> None:
        print(f"    {text}", flush=True)

    def progress(self, step: str, done: int = 0, total: int = 0) -> None:
        if step != self._told:
            self._told = step
            print(f"    … {step}", flush=True)

    def claim(self, what: str, figure: str, holds: bool) -> None:
        """One line of the summary: ``holds`` decides the exit code."""
        self.rows.append((what, figure, holds))
        print(f"    {'✓' if holds else '✗'} {what}: {figure}", flush=True)

    @contextlib.contextmanager
    def step(self, name: str, title: str, proves: str) -> Iterator[None]:
        print(f"\n== {title}\n   shows: {proves}", flush=True)
        begin = time.monotonic()
        yield
        self.report["seconds"][name] = round(time.monotonic() - begin, 1)

    def end(self) -> int:
        good = all(holds for _, _, holds in self.rows)
        self.report["seconds"]["total"] = round(sum(self.report["seconds"].values()), 1)
        self.report["passed"] = good
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.report, indent=1) + "\n")
        width = max(len(what) for what, _, _ in self.rows)
        print("\n== Summary")
        for what, figure, holds in self.rows:
            print(f"   {'✓' if holds else '✗'} {what:<{width}}  {figure}")
        print(f"   {self.report['seconds']['total']:.0f} s in all; every figure is in {self.path}")
        return 0 if good else 1


def owned_images(source: Path, target: Path, owner: OwnerIdentity) -> Path:
    """A fresh copy of an example's folder, whose images are ``owner``'s: of the suite of that key."""
    shutil.rmtree(target, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "*.pem", "*.py[co]", "demo.py")
    shutil.copytree(source, target, symlinks=True, ignore=unwanted)  # a unit is wanted by a link
    (target / "owner.pem").write_text(owner.published)
    for manifest in target.rglob("*.yaml"):
        text = manifest.read_text()
        if re.search(r"^owner:", text, re.MULTILINE):
            manifest.write_text(f"{text}\nsuite: {owner.suite.name}\n")
    return target


def tell(
    about: str, play: Callable[[Path, Server, Story], None], *, work: str, report: str, choices: Sequence[str] = ()
) -> int:
    """The command line of a demo: ``play`` with its folder, the emulated server, and the story. Returns the exit code.

    ``choices`` are parts that one may ask for by name. A server that was not running before is stopped, unless
    ``--keep`` says otherwise.
    """
    parser = argparse.ArgumentParser(description=about)
    if choices:
        parser.add_argument("chosen", nargs="*", metavar="EXAMPLE", help=f"{', '.join(choices)} (all of them)")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder for what the demo makes")
    parser.add_argument("--report", type=Path, default=Path(report))
    parser.add_argument("--suite", choices=list(SUITES), default=NIST.name, help="what hashes, signs and encrypts")
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    options = parser.parse_args()
    chosen = options.chosen if choices else []
    if unknown := [name for name in chosen if name not in choices]:
        parser.error(f"there is no {unknown[0]!r}: choose from {', '.join(choices)}")
    options.work.mkdir(parents=True, exist_ok=True)
    story = Story(options.report)
    story.chosen = chosen
    server = Server(suite=SUITES[options.suite])
    was_running = True  # as long as nobody knows, it is left as it is
    try:
        was_running = bool(server.status()["running"])
        play(options.work, server, story)
    except VambraceError as error:
        hint = hint_for(error.hint, server.suite)
        print(f"\ndemo: {error}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        if not options.keep and not was_running:
            server.down()
    return story.end()
