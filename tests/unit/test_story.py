"""How a demo ends: by what it claimed, by an error in one line, or because it was interrupted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from examples.story import Story, owned_images, tell
from vambrace.attest.owner import OwnerIdentity
from vambrace.cli.main import main
from vambrace.emulator.server import Server
from vambrace.errors import HostError
from vambrace.suite import SUITES

EXAMPLES = Path(__file__).parents[2] / "examples"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAMBRACE_SERVER", str(tmp_path / "server"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo"])


@pytest.mark.parametrize("holds", [True, False])
def test_what_it_claims_decides(tmp_path: Path, holds: bool) -> None:
    def play(work: Path, server: Server, story: Story) -> None:
        with story.step("one", "A step", "something"):
            story.claim("the claim", "a figure", holds)

    assert tell("A demo.", play, work="work", report="report.json") == (0 if holds else 1)
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is holds


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (HostError("there is no room", hint="make some"), 5, "demo: there is no room\nhint: make some"),
        (KeyboardInterrupt(), 130, "demo: interrupted"),
    ],
    ids=["an error", "Ctrl-C"],
)
def test_an_end_before_its_time_is_told_in_a_line(capsys: Capture, error: BaseException, code: int, said: str) -> None:
    def play(work: Path, server: Server, story: Story) -> None:
        raise error

    assert tell("A demo.", play, work="work", report="report.json") == code
    assert capsys.readouterr().err.strip() == said


def test_the_example_of_a_system_keeps_its_links(tmp_path: Path) -> None:
    """systemd starts what a folder .wants/ has a link to, and passes over files."""
    owner = OwnerIdentity.create(tmp_path / "owner", "somebody")
    copied = owned_images(EXAMPLES / "domains", tmp_path / "images", owner)
    wanted = copied / "debian/files/etc/systemd/system/multi-user.target.wants/work.service"
    assert wanted.is_symlink() and wanted.resolve() == copied / "debian/files/etc/systemd/system/work.service"
    assert "suite: nist" in (copied / "ward/ward.yaml").read_text()


@pytest.mark.parametrize(("suite", "command"), [("nist", "server reset"), ("sm", "server reset --suite sm")])
def test_a_machine_that_cannot_be_used_is_told_in_a_line(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, suite: str, command: str
) -> None:
    """And the advice is about that machine, not another suite's."""
    server = Server(suite=SUITES[suite])
    assert tmp_path in server.flash.parents
    server.flash.parent.mkdir()
    server.flash.write_bytes(bytes(64 << 20))
    monkeypatch.setattr(sys, "argv", ["demo", "--suite", suite])

    def play(work: Path, server: Server, story: Story) -> None:
        raise AssertionError("it does not come to that")

    assert tell("A demo.", play, work="work", report="report.json") == 7
    said = capsys.readouterr().err
    assert said.strip().splitlines()[1] == f"hint: 'vambrace {command}' makes a new machine"
    assert main(["server", "status", "--suite", suite]) == 7
    assert capsys.readouterr().err == said.strip().replace("demo: ", "error: ") + "\n"
