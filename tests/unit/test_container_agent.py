"""The agent's side of containers that needs no machine: what the runtime is told, and what health checks come to."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from vambrace_agent import bundle, ports
from vambrace_agent.health import HEALTHY, STARTING, UNHEALTHY, HealthCheck
from vambrace_agent.settings import IDENTITIES, Application, Health

BOX = {
    "disk": "image-1",
    "uid": 100,
    "gid": 101,
    "groups": [7],
    "capabilities": ["CHOWN"],
    "stop_signal": 3,
    "stop_seconds": 20,
    "processes": 64,
    "files": 256,
}
CHECK = {"command": ["check"], "interval": 10_000, "timeout": 4_000, "start_period": 25_000, "retries": 2}


def application(index: int, container: dict[str, Any] | None = None) -> Application:
    fields = {"name": f"app-{index}", "command": ["serve", "-v"], "environment": {"A": "b c", "E": ""}}
    fields |= {"directory": "/srv", "restarts": 0, "results": [], "memory": 1 << 24, "ports": [{"port": 8000 + index}]}
    return Application(index, fields | ({"container": container} if container else {}))


def test_identities_are_nobody_elses() -> None:
    """Neither containers nor programs share a user with each other or with the agent, the last container neither."""
    everybody = [application(1), application(2, BOX), application(3, BOX), application(15, BOX)]
    for uid in (0, 1, 999, 1000, 1001, IDENTITIES, 2 * IDENTITIES, 3 * IDENTITIES - 1, 3 * IDENTITIES, 16 * IDENTITIES):
        assert sum(one.owns(uid) for one in everybody) <= 1
    first, second, third, last = everybody
    assert first.owns(1000) and first.uid == 1000
    assert second.owns(2 * IDENTITIES) and second.owns(3 * IDENTITIES - 1) and not second.owns(3 * IDENTITIES)
    assert second.uid == 2 * IDENTITIES + 100 and third.owns(3 * IDENTITIES + 5)
    assert last.owns(16 * IDENTITIES - 1) and 16 * IDENTITIES < 1 << 31


def test_whose_a_port_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """All users of a container are its own; one listener of somebody else spoils it."""
    found: set[tuple[int, int]] = set()
    monkeypatch.setattr(ports, "listeners", lambda asked: dict.fromkeys(asked, found))
    known = ports.Ports([application(1), application(2, BOX)])
    for users, served in (
        ((2 * IDENTITIES, 2 * IDENTITIES + 999), True), ((2 * IDENTITIES, 3 * IDENTITIES), False), ((0,), False),
    ):  # fmt: skip
        found = {(user, number) for number, user in enumerate(users)}
        assert bool(known.served([8002])[8002]) == served


def test_what_the_runtime_is_told() -> None:
    one = application(2, BOX)
    one.mounts.append(("/run/containers/app-2/mounts/v", "/data"))
    told = bundle.describe(one, "/run/containers/app-2")
    process = told["process"]
    assert process["args"] == ["serve", "-v"] and process["env"] == ["A=b c", "E="] and process["cwd"] == "/srv"
    assert process["user"] == {"uid": 100, "gid": 101, "umask": 0o22, "additionalGids": [7]}
    assert process["noNewPrivileges"] is True and process["terminal"] is False
    assert process["capabilities"]["bounding"] == ["CAP_CHOWN"] and process["capabilities"]["effective"] == []
    root = bundle.describe(application(2, BOX | {"uid": 0}), "/x")["process"]["capabilities"]
    assert root["effective"] == root["permitted"] == ["CAP_CHOWN"] and root["ambient"] == root["inheritable"] == []
    kinds = {each["type"]: each.get("path") for each in told["linux"]["namespaces"]}
    assert kinds == dict.fromkeys(("pid", "mount", "ipc", "uts", "cgroup")) | {"user": "/run/containers/app-2/user"}
    mounts = {each["destination"]: each for each in told["mounts"]}
    assert mounts["/data"]["source"] == "/run/containers/app-2/mounts/v"
    assert {"/results/app-2", "/run/vambrace-agent", "/dev/shm"} <= mounts.keys()
    assert all("nosuid" in each["options"] for each in mounts.values())
    assert all("nodev" in each["options"] for each in mounts.values() if each["type"] == "bind")
    # Nothing of the Realm's own folders, and nothing that can be written but what is the container's.
    written = [each["source"] for each in mounts.values() if each["type"] == "bind" and "ro" not in each["options"]]
    own = ("/run/containers/app-2/", "/results/app-2", "/run/vambrace-agent")
    assert all(source.startswith(own) for source in written)


def test_the_filter_knows_each_machine() -> None:
    for machine in ("aarch64", "x86_64"):
        rules = {name: rule for rule in bundle.seccomp(machine)["syscalls"] for name in rule["names"]}
        assert {"io_uring_setup", "setns", "mount", "userfaultfd", "keyctl", "bpf"} <= rules.keys()
        assert rules["socket"]["args"] == [
            {"index": 0, "value": 0xFFFFFFFF, "valueTwo": 40, "op": "SCMP_CMP_MASKED_EQ"}
        ]
        assert len(bundle.seccomp(machine)["architectures"]) == 1


class Clock:
    """A health check with its runs, at moments of our choice."""

    def __init__(self) -> None:
        self.runs = 0
        self.check = HealthCheck(application(2, BOX), Health(CHECK), self._launch)
        self.now = 1000.0
        self.check.started(self.now)

    def _launch(self, _application: Application) -> int:
        self.runs += 1
        self._sleeper = subprocess.Popen(["sleep", "60"])
        return self._sleeper.pid

    def after(self, seconds: float) -> float:
        self.now += seconds
        return self.check.tick(self.now) - self.now

    def ended(self, code: int, after: float = 1) -> str:
        self.now += after
        self._sleeper.kill()
        self._sleeper.wait()
        self.check.ended(code, self.now)
        return self.check.state


def test_health_checks() -> None:
    clock = Clock()
    assert clock.after(5) == 5 and clock.runs == 0 and clock.check.state == STARTING
    assert clock.after(5) == 4 and clock.runs == 1  # the end of its time
    assert clock.ended(1) == STARTING  # within the period of its start
    assert clock.after(9) == 1 and clock.after(1) == 4
    assert clock.ended(1, after=3) == STARTING
    clock.after(10)
    assert clock.ended(1) == STARTING  # the first that counts
    clock.after(10)
    assert clock.ended(1) == UNHEALTHY
    clock.after(10)
    assert clock.ended(0) == HEALTHY
    clock.after(10)
    assert clock.ended(1) == HEALTHY  # one failure is not enough


def test_a_health_check_that_takes_too_long() -> None:
    clock = Clock()
    for _ in range(2):
        clock.now += 30
        clock.after(10)
        clock.after(4)  # killed
        os.waitid(os.P_PID, clock._sleeper.pid, os.WEXITED | os.WNOWAIT)
        clock.ended(0)  # what it says then does not count
    assert clock.check.state == UNHEALTHY
    clock.check.started(clock.now)
    assert clock.check.state == STARTING and clock.check.failures == 0
