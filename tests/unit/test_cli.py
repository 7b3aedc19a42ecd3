"""The commands: help, exit codes, JSON, and one whole run."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_harness import World, living_world
from vambrace_agent.service import HANDLERS, Reply, Service

from vambrace import Realm
from vambrace.attest import ear
from vambrace.attest.image import OWNERS_STATES
from vambrace.attest.suites import load_p256
from vambrace.cli.main import main, make_parser
from vambrace.cli.output import Output, printable
from vambrace.client.context import Context, DomainState
from vambrace.errors import ServerError

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with living_world(tmp_path) as world:
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield world


def later(world: World, act: Callable[[], None]) -> threading.Thread:
    """Do ``act`` as soon as a Realm runs."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if world.host.realms and world.record.state == "running":
                act()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def json_of(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words
    for action in below:
        for name, child in action.choices.items():
            yield from leaves(child, (*words, name))


COMMANDS = list(leaves(make_parser()))


def test_every_command_of_the_specification_is_there() -> None:
    wanted = {
        *(("server", name) for name in ("build", "up", "factory", "renew", "revoke", "retire")),
        *(("server", name) for name in ("down", "status", "reset", "dump")),
        *(("owner", name) for name in ("create", "show")),
        *(("image", name) for name in ("build", "sign", "measure", "inspect", "push", "pull")),
        *((name,) for name in ("run", "ps", "attest", "verify", "encrypt", "stats", "advise", "partition", "top")),
        *((name,) for name in ("logs", "results", "connect", "console", "stop", "destroy")),
        ("token", "show"),
        *(("broker", name) for name in ("init", "serve", "audit")),
        *(("secret", name) for name in ("put", "show", "delete", "list", "log")),
        *(("file", name) for name in ("put", "get", "list")),
        *(("volume", name) for name in ("list", "create", "remove")),
        ("verifier", "serve"),
    }
    assert set(COMMANDS) == wanted


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example(words: tuple[str, ...], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"example:\n  vambrace {' '.join(words)}" in text
    assert "--json" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encrypt", "x", "--app", "a", "101"], "whole number from 0 to 100"),
        (["encrypt", "x", "--app", "a", "-1"], ""),
        (["encrypt", "x", "--app", "a", "１"], "whole number from 0 to 100"),
        (["encrypt", "x", "50"], "--app"),
        (["nonsense"], "nonsense"),
        (["image"], "COMMAND"),
        (["ps"], "no host is set up"),
        (["verify", "t", "--root", "r", "--references", "x", "--nonce", "00"], "32 bytes"),
        (["verify", "t", "--root", "r", "--references", "x", "--nonce", "00" * 32], "not given"),
    ],
)
def test_wrong_use_is_one_line_and_a_hint(words: list[str], message: str, capsys: Capture) -> None:
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    assert message in lines[0]


def test_errors_as_json(capsys: Capture) -> None:
    assert main(["ps", "--json"]) == 2
    value = json_of(capsys)
    assert value["kind"] == "UsageError" and value["exit_code"] == 2 and "server up" in value["hint"]


def test_a_host_that_is_down(world: World, capsys: Capture) -> None:
    world.host.__exit__()
    try:
        assert main(["ps"]) == 5
        said = capsys.readouterr().err
        assert "cannot be reached" in said and "vambrace server" not in said
        # Only of the emulated server is it known how it is started.
        context = Context()
        context.add_host("emulated", context.host()[1], current=False)
        assert main(["ps", "--host", "emulated"]) == 5
        assert "vambrace server up" in capsys.readouterr().err
    finally:
        world.host.__enter__()


def test_owner(capsys: Capture, own_state: Path) -> None:
    assert main(["owner", "show"]) == 3
    assert "owner create" in capsys.readouterr().err
    assert main(["owner", "create", "--json"]) == 0
    created = json_of(capsys)
    assert main(["owner", "show"]) == 0
    assert capsys.readouterr().out == Path(created["certificate"]).read_text()
    assert main(["owner", "create"]) == 3
    assert "hint: 'vambrace owner show' prints" in capsys.readouterr().err
    assert ((own_state / "owner/key.pem").stat().st_mode & 0o777) == 0o600


def test_measure_and_inspect(world: World, capsys: Capture) -> None:
    assert main(["image", "measure", str(world.bundle)]) == 0
    assert capsys.readouterr().out.strip() == world.measurement.hex()
    assert main(["image", "inspect", str(world.bundle), "--json"]) == 0
    assert json_of(capsys)["measurement"] == world.measurement.hex()
    assert main(["image", "inspect", str(world.bundle)]) == 0
    assert "analysis" in capsys.readouterr().out
    assert main(["image", "measure", "/nowhere"]) == 3
    assert "/nowhere" in capsys.readouterr().err


def test_build_says_what_is_wrong_before_anything_long(tmp_path: Path, capsys: Capture) -> None:
    manifest = tmp_path / "m.yaml"
    manifest.write_text("name: x\nnonsense: 1\n")
    assert main(["image", "build", str(manifest)]) == 3
    assert "line" in capsys.readouterr().err


def test_run(world: World, capsys: Capture) -> None:
    thread = later(world, lambda: world.agent.go())
    assert main(["run", str(world.bundle)]) == 0
    thread.join()
    text = capsys.readouterr().out
    assert "analysis | hello from analysis" in text and "verified" in text
    assert Path("patients-results/analysis/out.txt").read_text() == "result of analysis"
    assert world.record.state == "succeeded"


def test_run_as_json(world: World, capsys: Capture) -> None:
    thread = later(world, lambda: world.agent.go())
    assert main(["run", str(world.bundle), "--json", "--results", "out"]) == 0
    thread.join()
    value = json_of(capsys)
    assert value["state"] == "succeeded" and value["results"] == "out"
    assert value["measurement"]["expected"] == value["measurement"]["token"] == world.measurement.hex()
    assert value["verification"]["verified"] is True
    assert 0 <= value["clock_late_seconds"] < 60


def test_a_clock_that_is_late_is_told(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def held_back(service: Service, request: Reply) -> tuple[Reply, bytes]:
        time.sleep(0.3)
        return Service.clock(service, request)

    monkeypatch.setattr("vambrace.cli.run.LATE_SECONDS", 0.2)
    monkeypatch.setitem(HANDLERS, "clock", held_back)
    assert main(["run", str(world.bundle), "--detach", "--no-progress"]) == 0
    assert "its clock may be 0 s late: the way to it is slow" in capsys.readouterr().out


def test_run_refuses_another_measurement(world: World, capsys: Capture) -> None:
    assert main(["run", str(world.bundle), "--measurement", "00" * 32]) == 4
    assert "measurement" in capsys.readouterr().err
    assert world.record.state == "refused" and not world.record.executed


def test_a_detached_realm(world: World, capsys: Capture, tmp_path: Path) -> None:
    assert main(["run", str(world.bundle), "--detach", "--json"]) == 0
    uuid = json_of(capsys)["uuid"]

    assert main(["ps", "--json"]) == 0
    assert [realm["uuid"] for realm in json_of(capsys)] == [uuid]
    assert main(["encrypt", "patients", "--app", "analysis", "95", "--json"]) == 0
    assert json_of(capsys)["percent"] == 95
    world.record.monitor.pace = 200
    assert main(["encrypt", "patients", "--app", "report", "80", "--progress"]) == 0
    told = capsys.readouterr()
    assert "encrypting system 50 %" in told.err and told.out == "patients: report is at 80 %\n"
    assert main(["stats", uuid[:8], "--json"]) == 0
    assert [zone["percent"] for zone in json_of(capsys)["zones"]] == [80, 95, 80]
    assert main(["advise", "patients", "--seconds", "1", "--picture", "cost.svg"]) == 0
    assert "analysis" in (told := capsys.readouterr().out) and "idle" in told
    drawn = Path("cost.svg").read_text()
    assert drawn.count("<polyline") + drawn.count(": idle<") == 3 and drawn.count(": idle<") == told.count(" idle\n")
    assert world.record.monitor.sampling == [True, False]
    assert main(["advise", "patients", "--seconds", "1", "--picture", "none/cost.svg"]) == 2
    assert "none/cost.svg cannot be written: No such file" in capsys.readouterr().err
    assert main(["advise", "patients", "--seconds", "0"]) == 2
    assert main(["advise", "patients", "--app", "nobody"]) == 2
    assert "system, analysis, report" in capsys.readouterr().err
    assert main(["attest", "patients", "--json"]) == 0
    assert json_of(capsys)["verified"] is True
    assert main(["encrypt", "patients", "--app", "nobody", "5"]) == 2
    assert main(["logs", "patients", "--app", "nobody"]) == 2
    assert main(["logs", "nobody"]) == 5
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "error: no Realm that was started from here is called nobody" and "vambrace ps" in said[-1]

    world.agent.go()
    assert main(["logs", "patients", "--app", "report", "--follow"]) == 0
    assert capsys.readouterr().out == "hello from report\ndone\n"
    assert main(["logs", "patients", "--json"]) == 0
    assert json_of(capsys)["logs"]["analysis"].startswith("hello")
    assert main(["results", "patients", "--json"]) == 0
    assert len(json_of(capsys)["results"]) == 2
    assert main(["results", "patients", "--to", "out", "--collected"]) == 0
    assert capsys.readouterr().out.splitlines() == ["out/analysis/out.txt", "out/report/out.txt", "the Realm ends"]
    assert Path("out/report/out.txt").exists()
    assert main(["destroy", "patients"]) == 0
    assert capsys.readouterr().out == "patients had ended: succeeded\n"

    token = tmp_path / "token.cbor"
    assert main(["token", "show", "patients", "--save", str(token), "--json"]) == 0
    shown = json_of(capsys)
    assert shown["verified"] is False
    verify = ["verify", str(token), "--root", str(tmp_path / "vendor-root.pem")]
    verify += ["--references", str(tmp_path / "reference-values.corim"), "--json"]
    expected = ["--bundle", str(world.bundle)]
    assert main([*verify, *expected, "--nonce", shown["nonce"], "--progress"]) == 0
    said = capsys.readouterr()
    assert [line.rstrip(" …") for line in said.err.splitlines()] == ["checking the image", "measuring", "verifying"]
    assert json.loads(said.out)["verified"] is True
    owner = ["--measurement", shown["expected-measurement"], "--owner", str(world.owner.certificate_path)]
    assert main([*verify, *owner, "--nonce", shown["nonce"]]) == 0
    assert json_of(capsys)["measurement"] == world.measurement.hex()
    assert main([*verify, *expected, "--nonce", "00" * 32]) == 4
    assert json_of(capsys)["kind"] == "ChallengeMismatch"
    policy, result = tmp_path / "policy.toml", ["--result", "ear.jwt", "--result-key", "ear.pem"]
    policy.write_text(f'schema = "vambrace.policy/1"\n[realm]\nmeasurements = ["{world.measurement.hex()}"]\n')
    assert main([*verify, "--policy", str(policy), "--nonce", shown["nonce"], *result]) == 0
    assert any("answers the challenge" in finding for finding in json_of(capsys)["findings"])
    assert ear_verdicts("ear.jwt", "ear.pem") == {"accepted"}
    policy.write_text(policy.read_text() + '[platform]\nrevocation = "require"\n')
    assert main([*verify, "--policy", str(policy), "--nonce", shown["nonce"], *result]) == 4
    assert json_of(capsys)["kind"] == "RevocationUnknown"
    assert ear_verdicts("ear.jwt", "ear.pem") == {"refused"}
    policy.write_text("surprise = 1")
    assert main([*verify, "--policy", str(policy), "--nonce", shown["nonce"]]) == 3
    capsys.readouterr()
    token.write_bytes(token.read_bytes()[:-1])
    assert main([*verify, *expected, "--nonce", shown["nonce"]]) == 4
    assert main(["token", "show", str(tmp_path / "none")]) == 5


def ear_verdicts(result: str, key: str) -> set[str]:
    """What a signed result says of each attester."""
    claims = ear.verify_jwt(Path(result).read_text().strip(), load_p256(Path(key).read_bytes()).public_key())
    return {module["ear_verifier_claims"]["verdict"] for module in claims["submods"].values()}


def test_destroy_and_ambiguity(world: World, capsys: Capture) -> None:
    first = Realm.create(world.bundle)
    second = Realm.create(world.bundle, name="second")
    # Another host's Realm could have the same name: make the user's own notes say so.
    state = second.state
    world.context.save_domain(DomainState(**{**state.__dict__, "name": "patients"}))
    assert main(["destroy", "patients"]) == 2
    assert first.uuid in capsys.readouterr().err
    assert main(["destroy", first.uuid]) == 0
    assert capsys.readouterr().out == "patients is destroyed; it never executed\n"
    assert main(["destroy", "patients", "--json"]) == 0
    assert json_of(capsys)["uuid"] == second.uuid
    assert main(["ps", "--json"]) == 0
    assert json_of(capsys) == []
    assert main(["ps", "--all"]) == 0
    assert capsys.readouterr().out.count("destroyed") == 2
    assert main(["destroy", "nobody"]) == 5
    assert "error: no domain is called nobody" in capsys.readouterr().err


def test_another_owners_image_is_refused(world: World, tmp_path: Path, capsys: Capture) -> None:
    for name in ("key.pem", "certificate.pem"):
        (world.context.owner / name).unlink()
    assert main(["owner", "create"]) == 0
    assert main(["run", str(world.bundle)]) == 4
    assert "another owner" in capsys.readouterr().err
    assert not world.host.realms


def test_ctrl_c_ends_the_realm_and_says_no_traceback(world: World) -> None:
    command = [sys.executable, "-m", "vambrace.cli.main", "run", str(world.bundle)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "approved" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert world.record.state == "destroyed"


def test_a_reader_that_goes_away() -> None:
    code = f"{sys.executable} -m vambrace.cli.main image build --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr


def test_internal_errors_need_debug_for_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken(self: object) -> None:
        raise ValueError("oh")

    monkeypatch.setattr("vambrace.client.context.Context.hosts", broken)
    assert main(["ps"]) == 1
    errors = capsys.readouterr().err
    assert "internal error: ValueError: oh" in errors and "Traceback" not in errors
    assert main(["ps", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [(["down"], "stopping", 0), (["reset"], "erasing", 0), (["status"], "asking", ServerError.exit_code)],
)
def test_the_server_s_commands_say_what_they_do(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str, code: int
) -> None:
    class Server:
        def down(self) -> bool:
            return False

        def reset(self) -> None: ...

        def status(self) -> dict[str, bool]:
            return {"running": False, "answers": False}

    monkeypatch.setattr("vambrace.cli.server._server", lambda options: Server())
    assert main(["server", *words, "--progress"]) == code
    assert says in capsys.readouterr().err


def test_a_machine_s_end_must_be_meant(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    retired: list[str] = []

    class Server:
        def retire(self, state: str, progress: Callable[[str], None]) -> None:
            retired.append(state)

        def status(self) -> dict[str, Any]:
            fuse = {"lifecycle": "secured", "root-key-hash": "00" * 32, "firmware-version": 3, "host-version": 4}
            return {"running": False, "answers": False, "fuse": fuse}

    monkeypatch.setattr("vambrace.cli.server._server", lambda options: Server())
    for state in OWNERS_STATES:
        assert main(["server", "retire", state]) == 2
        assert "--for-ever" in capsys.readouterr().err and not retired
        assert main(["server", "retire", state, "--for-ever"]) == 0
        assert retired.pop() == state
    assert main(["server", "retire", "secured", "--for-ever"]) == 2
    assert main(["server", "status"]) == ServerError.exit_code
    assert "life cycle: secured; starts no firmware below version 3, no host below 4" in capsys.readouterr().out


def test_progress_without_a_terminal(capsys: Capture) -> None:
    Output().progress("x", 1, 2)
    output = Output(progress=True)
    for done in range(5):
        output.progress("sending", done, 4)
    output.progress("waiting")
    assert capsys.readouterr().err.splitlines() == ["sending 0 %", "sending 100 %", "waiting …"]


def test_no_escape_sequence_passes(capsys: Capture) -> None:
    assert printable("a\x1b[2J\u202eb\x9b") == "a?[2J?b?"
    Output().raw(b"\x1b]0;evil\x07\n", "app | ")
    assert capsys.readouterr().out == "app | ?]0;evil?\n"


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    from vambrace import errors

    text = (ROOT / "docs/cli.md").read_text()
    found = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.VambraceError)]
    for code in {cls.exit_code for cls in found} | {0, 130}:
        assert f"| {code} |" in text
    for words in COMMANDS:
        assert f"vambrace {' '.join(words)}" in text


def test_the_documented_sdk_example_is_valid() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    compile(code, "docs/cli.md", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_digest_helper_is_the_hosts(world: World) -> None:
    Realm.create(world.bundle).destroy()
    assert list(world.host.images) == [hashlib.sha256(world.bundle.read_bytes()).hexdigest()]
