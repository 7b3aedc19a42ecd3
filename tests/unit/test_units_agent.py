"""Units of a disk's system, as the agent sees them: real pipes and the real hook, a system that is a script."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vambrace_agent import AgentError, desk, settings, unitfiles, vm
from vambrace_agent.logs import Log
from vambrace_agent.supervisor import FAILED, RUNNING, SUCCEEDED, WAITING, Process, Supervisor
from vambrace_agent.units import Units

SYSTEM = 64 << 20  # bytes of what is no application
REASON = "vambrace: there is no unit two.service, or it starts nothing\n"


def application(index: int, **more: Any) -> settings.Application:
    fields = {"command": [], "environment": {}, "directory": "/", "restarts": 0, "results": [], "memory": 16 << 20}
    name = ("one", "two")[index - 1]
    return settings.Application(index, {**fields, "name": name, "unit": f"{name}.service", **more})


class Script:
    """A system whose init is a shell script with what systemd would do: HOOK N start, and so on."""

    def __init__(self, folder: Path, script: str) -> None:
        self.exchange = str(folder / "run/vambrace")
        self.bounds: dict[str, bool] = {}
        self.asked: list[str] = []
        self._script = script

    def start(self) -> int:
        hook = Path(self.exchange, "hook")
        hook.write_text(hook.read_text().replace(unitfiles.HERE, self.exchange))
        text = self._script.replace("HOOK", f"sh {hook}").replace("OUT", self.exchange)
        self.process = subprocess.Popen(["sh", "-c", text])
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, one: settings.Application) -> None:
        self.asked.append(f"end {one.name}")
        Path(self.exchange, "asked").touch()

    def stop(self, one: settings.Application) -> None:
        self.asked.append(f"kill {one.name}")

    def bound(self, one: settings.Application) -> bool:
        return self.bounds.get(one.name, True)


class World:
    def __init__(self, folder: Path, script: str, *applications: settings.Application) -> None:
        (folder / "run").mkdir()
        unitfiles.write(str(folder / "run"), list(applications), os.getuid(), SYSTEM)
        self.system = Script(folder, script)
        self.poll = select.poll()
        self.started: list[str] = []
        self.refusal = ""
        processes = []
        for one in applications:
            (folder / one.name).mkdir()
            processes.append(Process(one, Log(str(folder / one.name), 1 << 16)))
        self.units = Units(processes, self.system, self.poll, self._starting)

    def _starting(self, one: settings.Application) -> None:
        if self.refusal:
            raise AgentError(self.refusal)
        self.started.append(one.name)

    def run(self, until: Callable[[], bool], seconds: float = 60) -> None:
        self.units.start()
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, [vars(process) for process in self.units.processes]
            for fd, _ in self.poll.poll(100):
                assert self.units.ready(fd)
            self.units.tick(time.monotonic())

    def said(self, number: int = 0) -> str:
        return self.units.processes[number].log.read(0, 1 << 16)[1].decode()

    def states(self) -> list[tuple[str, int | None, int]]:
        return [(each.state, each.exit_code, each.restarts) for each in self.units.processes]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(script: str, *applications: settings.Application) -> World:
        made.append(World(tmp_path, script, *(applications or (application(1),))))
        return made[-1]

    yield make
    for each in made:
        if each.units.started:
            each.system.kill()


def end(number: int, result: str = "success", how: str = "exited", status: str = "0") -> str:
    return f"SERVICE_RESULT={result} EXIT_CODE={how} EXIT_STATUS={status} HOOK {number} end"


def test_a_life(world: Callable[..., World]) -> None:
    it = world(f"HOOK 1 start && echo hello > OUT/1.output; sleep 0.3; echo bye > OUT/1.output; {end(1)}; sleep 60")
    assert it.states() == [(WAITING, None, 0)]
    it.run(lambda: it.units.processes[0].state == RUNNING)
    assert it.started == ["one"]
    it.run(lambda: it.units.succeeded)
    assert (it.states(), it.said()) == ([(SUCCEEDED, 0, 0)], "hello\nbye\n")


def test_all_that_was_said_is_there_at_the_end(world: Callable[..., World]) -> None:
    it = world(f"HOOK 1 start; seq 9000 > OUT/1.output; {end(1)}; sleep 60")
    it.run(lambda: it.units.succeeded)
    assert it.said().split() == [str(number) for number in range(1, 9001)]


class Endless(Log):
    """As soon as something was read there is more."""

    output = -1

    def append(self, data: bytes) -> None:
        super().append(data)
        if self.output >= 0:
            os.write(self.output, data)


def test_the_end_of_one_that_is_never_silent(world: Callable[..., World], tmp_path: Path) -> None:
    """Its processes are over, but others have its output, which their system's root may give to anybody."""
    it = world(f"HOOK 1 start; {end(1)}; sleep 60")
    it.units.processes[0].log = log = Endless(str(tmp_path / "one"), 1 << 16)
    it.units.start()
    log.output = it.units.processes[0].output
    os.write(log.output, b"x")
    it.run(lambda: it.units.succeeded)


def test_the_end_of_a_program_that_is_never_silent(tmp_path: Path) -> None:
    log = Endless(str(tmp_path), 1 << 16)

    def launch(_: settings.Application, output: int) -> int:
        log.output = os.dup(output)
        # Not by subprocess, whose objects collect what they have started when they go.
        return os.posix_spawnp("echo", ["echo", "hello"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output, 1)])

    process = Process(application(1), log)
    supervisor = Supervisor([process], launch, lambda _: None, lambda _: None, select.poll())
    supervisor.start()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    supervisor.reap(process.pid)
    os.close(log.output)
    assert supervisor.succeeded and log.read(0, 6)[1] == b"hello\n"


def test_nothing_starts_before_it_is_let(world: Callable[..., World]) -> None:
    """A start that cannot be measured is none, and neither is one outside of its zone."""
    it = world("HOOK 1 start || echo not started > OUT/1.output; sleep 60")
    it.refusal = "the monitor refused"
    it.run(lambda: "not started" in it.said())
    assert it.states() == [(FAILED, 127, 0)]
    assert "vambrace: the monitor refused\n" in it.said()


def test_outside_of_its_zone(world: Callable[..., World]) -> None:
    it = world("HOOK 1 start || echo not started > OUT/1.output; sleep 60")
    it.system.bounds["one"] = False
    it.run(lambda: "not started" in it.said())
    assert (it.states(), it.started) == ([(FAILED, 127, 0)], [])


def test_restarts_within_the_bound(world: Callable[..., World]) -> None:
    attempt = f"HOOK 1 start && {end(1, 'exit-code', status='7')}; "
    it = world(attempt * 4 + "sleep 60", application(1, restarts=2))
    it.run(lambda: it.units.failed is not None)
    assert (it.states(), it.started) == ([(FAILED, 7, 2)], ["one"] * 3)
    # A fourth one, whatever the system wants, is not let.
    it.run(lambda: not select.select([it.units._told], [], [], 0.5)[0])
    assert it.started == ["one"] * 3


def test_a_success_is_one_for_good(world: Callable[..., World]) -> None:
    again = f"HOOK 1 start || echo no > OUT/1.output; {end(1, 'signal', 'killed', 'KILL')}"
    it = world(f"HOOK 1 start; {end(1)}; {again}; sleep 60")
    it.run(lambda: "no\n" in it.said())
    assert (it.states(), it.started) == ([(SUCCEEDED, 0, 0)], ["one"])


def test_a_unit_that_is_not_there(world: Callable[..., World]) -> None:
    it = world(f"HOOK 1 start; {end(1)}; HOOK 0 booted; sleep 60", application(1), application(2))
    it.run(lambda: it.units.failed is not None)
    assert it.states() == [(SUCCEEDED, 0, 0), (FAILED, 127, 0)]
    assert it.said(1) == REASON


def test_one_that_waits_for_its_next_attempt_is_there(world: Callable[..., World]) -> None:
    it = world(
        f"HOOK 1 start; {end(1, 'exit-code', status='1')}; HOOK 0 booted; HOOK 1 start; {end(1)}; sleep 60",
        application(1, restarts=1),
    )
    it.run(lambda: it.units.succeeded)
    assert it.states() == [(SUCCEEDED, 0, 1)]


@pytest.mark.parametrize(("script", "code"), [("exit 0", 1), ("exit 3", 3), ("kill -9 $$", 137)])
def test_a_system_that_ends(world: Callable[..., World], script: str, code: int) -> None:
    it = world(f"HOOK 1 start; {end(1)}; HOOK 2 start; {script}", application(1), application(2))
    it.run(lambda: it.units.failed is not None)
    assert it.states() == [(SUCCEEDED, 0, 0), (FAILED, code, 0)]


@pytest.mark.parametrize(
    ("result", "how", "status", "code"),
    [
        ("exit-code", "exited", "7", 7),
        ("exit-code", "exited", "0", 1),
        ("signal", "killed", "KILL", 137),
        ("core-dump", "dumped", "SEGV", 139),
        ("timeout", "killed", "TERM", 143),
        ("watchdog", "killed", "NONSENSE", 1),
        ("protocol", "exited", "9999", 255),
        ("resources", "x", "x", 1),
        ("success", "killed", "TERM", 0),
    ],
)
def test_exit_codes(world: Callable[..., World], result: str, how: str, status: str, code: int) -> None:
    it = world(f"HOOK 1 start; {end(1, result, how, status)}; sleep 60")
    it.run(lambda: it.units.processes[0].exit_code is not None)
    assert it.units.processes[0].exit_code == code


def test_a_root_that_writes_what_it_likes(world: Callable[..., World]) -> None:
    nonsense = ["9 start", "1", "", "1 start start", "1 end success", "x y z", "0 booted now", "1 end a b c d"]
    lines = "".join(f"printf '{line}\\n' > OUT/told; " for line in [*nonsense, "\\377\\000"])
    it = world(f"{lines} head -c 300000 /dev/zero > OUT/told; echo > OUT/told; HOOK 1 start; {end(1)}; sleep 60")
    it.run(lambda: it.units.succeeded)
    assert (it.states(), it.started) == ([(SUCCEEDED, 0, 0)], ["one"])


# The owner's word that one ends.


def test_asked_to_end(world: Callable[..., World]) -> None:
    """It ends by the signal that it was asked with: as well as by itself. It is not started again."""
    done = end(1, "signal", "killed", "TERM")
    script = f"HOOK 1 start; until test -e OUT/asked; do sleep 0.1; done; {done}; sleep 60"
    it = world(script, application(1, restarts=9))
    it.run(lambda: it.units.running)
    it.units.end("one")
    it.run(lambda: not it.units.running)
    assert (it.states(), it.system.asked, it.started) == ([(SUCCEEDED, 143, 0)], ["end one"], ["one"])


def test_asked_in_vain(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end is killed; where nobody tells of its end even then, it is over all the same."""
    monkeypatch.setattr("vambrace_agent.units._KILLED_SECONDS", 0.3)
    it = world("HOOK 1 start; sleep 60")
    it.units.processes[0].application.stop_seconds = 0.2
    it.run(lambda: it.units.running)
    it.units.end()
    it.run(lambda: not it.units.running)
    assert (it.states(), it.system.asked) == ([(FAILED, 137, 0)], ["end one", "kill one"])


# What is put beside the units.


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("A=b", '"A=b"'),
        ('A=a "b" c', '"A=a \\"b\\" c"'),
        ("A=50%n $HOME", '"A=50%%n $HOME"'),
        ("A=a\\nb\nc\t", '"A=a\\\\nb\\x0ac\\x09"'),
        ("A=é", '"A=é"'),
    ],
)
def test_environment(text: str, unit: str) -> None:
    assert unitfiles.quoted(text) == unit


def test_no_setting_comes_from_a_value() -> None:
    """What an environment says is one word of one line, whatever is in it."""
    evil = application(1, environment={"A": 'x"\nExecStart=/bin/evil\n[Service]\nUser=root\r\\'})
    plain = application(1, environment={"A": "x"})
    assert len(unitfiles.drop_in(evil).splitlines()) == len(unitfiles.drop_in(plain).splitlines())


def test_the_drop_in_says_zone_and_bounds() -> None:
    lines = unitfiles.drop_in(application(2, restarts=3)).splitlines()
    wanted = ["AllowedMemoryNodes=2", f"MemoryMax={16 << 20}", "StartLimitBurst=4", "Restart=on-failure",
              "BindPaths=/run/vambrace/results/two:/results/two", "Slice=vambrace.slice"]  # fmt: skip
    assert set(wanted) <= set(lines)
    assert "Restart=no" in unitfiles.drop_in(application(2)).splitlines()


def test_nothing_of_the_realm_is_in_the_system() -> None:
    found = unitfiles.describe([application(1)], "/run/vm", 4096)
    bound = {mount["source"]: mount["options"] for mount in found["mounts"] if mount["type"] == "bind"}
    ours = {"/usr/bin/busybox", "/run/vambrace-agent", "/results/one", "/run/vm/data/run", "/sys/devices/system"}
    assert set(bound) == ours
    assert all({"nosuid", "nodev"} <= set(options) for options in bound.values())
    assert {"ro"} <= set(bound["/usr/bin/busybox"]) & set(bound["/sys/devices/system"])
    namespaces = {each["type"] for each in found["linux"]["namespaces"]}
    assert namespaces == {"pid", "mount", "ipc", "uts", "cgroup", "user"}
    refused = {name for call in found["linux"]["seccomp"]["syscalls"] for name in call["names"]}
    assert {"socket", "init_module", "kexec_load", "bpf", "io_uring_setup", "open_by_handle_at"} <= refused


# What a greedy system leaves to the agent.


def meminfo(folder: Path, *, free: int, active: int = 0, inactive: int = 0) -> str:
    """A node's, as the kernel writes it, of so many MiB."""
    path = folder / "meminfo"
    values = {"MemTotal": 256, "MemFree": free, "Active(file)": active, "Inactive(file)": inactive, "Shmem": 7}
    path.write_text("".join(f"Node 0 {name + ':':15}{value << 10:9} kB\n" for name, value in values.items()))
    return str(path)


def test_the_system_never_has_all_of_its_zone(tmp_path: Path) -> None:
    assert vm.system_memory(meminfo(tmp_path, free=150, active=20, inactive=30)) == (200 << 20) - vm.RESERVE
    assert vm.system_memory(meminfo(tmp_path, free=40)) == 20 << 20
    (tmp_path / "meminfo").write_text("Node 0 MemTotal: 5 kB\n")
    with pytest.raises(AgentError, match="how much memory"):
        vm.system_memory(str(tmp_path / "meminfo"))


def test_all_of_the_system_is_bounded(tmp_path: Path) -> None:
    everybody = [application(1, memory=32 << 20), application(2, memory=16 << 20)]
    limits = vm.limits(everybody, SYSTEM)
    assert limits == {"cpuset.mems": "0-2", "pids.max": "4096", "memory.max": str(112 << 20)}
    (tmp_path / "run").mkdir()
    unitfiles.write(str(tmp_path / "run"), everybody, os.getuid(), SYSTEM)
    for name in ("init.scope", "system.slice", "user.slice", "machine.slice"):
        text = (tmp_path / f"run/systemd/system/{name}.d/zz-vambrace.conf").read_text()
        assert f"AllowedMemoryNodes=0\nMemoryMax={SYSTEM}\n" in text
    mounts = {each["destination"]: each for each in unitfiles.describe(everybody, "/x", 4096)["mounts"]}
    assert "size=4096" in mounts["/dev/shm"]["options"]


# The desk, where a user says nothing.


def test_who_asks_is_known_by_process(tmp_path: Path) -> None:
    one = application(1)
    one.owns = lambda uid: uid == os.getuid()  # type: ignore[method-assign]
    asked: list[int] = []

    def who(pid: int) -> settings.Application | None:
        asked.append(pid)
        return one if pid == os.getpid() else None

    door = desk.Desk(str(tmp_path / "desk"), [one], {"name": lambda caller, _: {"name": caller.name}}, who)
    thread = threading.Thread(target=door._accept, daemon=True)
    thread.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "desk"))
        client.sendall(b'{"op": "name"}\n')
        assert client.makefile().readline() == '{"ok": true, "name": "one"}\n'
    program = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "desk"], capture_output=True, check=True)
    assert done.stdout == b"b''\n", "another process is nobody's"
    assert asked[0] == os.getpid() != asked[1]
