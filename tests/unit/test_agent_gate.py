"""The last step before a program runs: into its cgroup, with nothing but what it is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vambrace_agent import confine
from vambrace_agent.settings import Application

BUSYBOX = "/usr/bin/busybox"

pytestmark = pytest.mark.skipif(not Path(BUSYBOX).exists(), reason="busybox-static is missing: run 'make packages'")


def ran(door: Path, application: Application) -> tuple[int, str]:
    """Exit code and output of the program, started by way of a file in the place of a cgroup's."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(write, 1)
            confine.execute(application, os.open(door, os.O_WRONLY | os.O_CREAT))
        except FileNotFoundError:
            os._exit(127)
        finally:
            os._exit(126)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def program(folder: Path, *command: str, **environment: str) -> Application:
    fields = {"name": "program", "restarts": 0, "results": [], "memory": 16 << 20, "directory": str(folder)}
    return Application(1, {**fields, "command": list(command), "environment": environment})


def test_it_enters_and_has_what_it_is_given(tmp_path: Path) -> None:
    door = tmp_path / "cgroup.procs"
    code, said = ran(door, program(tmp_path, BUSYBOX, "env", PATH="/nowhere", SHLVL="x", A="b = c\nd"))
    assert code == 0 and door.read_text() == "0\n"
    given = "HOME=/results/program\nLANG=C.UTF-8\nTMPDIR=/tmp\nPYTHONDONTWRITEBYTECODE=1\nSHLVL=x\nA=b = c\nd\n"
    assert said == "PATH=/nowhere\n" + given
    _, said = ran(door, program(tmp_path, BUSYBOX, "ls", "/proc/self/fd"))
    assert said.split() == ["0", "1", "2", "3"]  # the last one is of ls itself


def test_a_program_with_an_odd_name(tmp_path: Path) -> None:
    for name in ("-i", "a b"):
        script = tmp_path / name
        script.write_text(f'#!{BUSYBOX} sh\necho "$0" "$@"\n')
        script.chmod(0o755)
        assert ran(tmp_path / "door", program(tmp_path, f"./{name}", "-i", "c=d")) == (0, f"./{name} -i c=d\n")


def test_no_such_program(tmp_path: Path) -> None:
    door = tmp_path / "door"
    assert ran(door, program(tmp_path, "nothing-of-this-name"))[0] == 127
    assert ran(door, program(tmp_path, "./nothing-of-this-name"))[0] == 127
    assert not door.read_text()


def test_who_may_not_enter_does_not_run(tmp_path: Path) -> None:
    code, said = ran(Path("/dev/full"), program(tmp_path, BUSYBOX, "echo", "ran"))
    assert (code, said) == (126, "")
