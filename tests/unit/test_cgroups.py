"""Processors and groups: on a tree of files, and in the kernel where it is there and this is root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_cgroups
import pytest

from vambrace.errors import ConfigError, PartitionError
from vambrace.partition import processors
from vambrace.partition.cgroups import ROOT, Cgroups


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of two threads."""
    program = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    program += "print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def read(group: Path, name: str) -> str:
    return (group / name).read_text().strip()


# On a tree of files


def test_a_group(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    cgroups = fake_cgroups.make(tmp_path / "tree")
    cgroups.prepare(alone=(2, 3))
    assert read(cgroups.root, "cgroup.subtree_control") == "+cpuset +memory +pids"
    assert cgroups.domains() == [], "the probe is gone"
    cgroups.create("a", (2, 3), alone=True, memory=5 << 20, tasks=40)
    group = cgroups.path("a")
    assert read(group, "cpuset.cpus") == "2-3" and read(group, "cpuset.cpus.partition") == "isolated"
    assert read(group, "memory.max") == str(5 << 20) and read(group, "pids.max") == "40"
    assert cgroups.faults("a", (3, 2), alone=True) == []
    assert cgroups.faults("a", (2,), alone=True) == ["its cpuset has processors 2-3, and it should have 2"]
    cgroups.create("b", (4,), alone=False, memory=1 << 20, tasks=4)
    assert not (cgroups.path("b") / "cpuset.cpus.partition").exists()
    cgroups.enter("a", sleeper.pid)
    assert cgroups.processes("a") == [sleeper.pid]
    assert cgroups.domains() == ["a", "b"]
    cgroups.remove("a")
    assert sleeper.wait(60) < 0, "who was still in it was killed"
    cgroups.remove("a")
    assert cgroups.domains() == ["b"] and cgroups.processes("a") == []
    assert cgroups.faults("a", (2,), alone=True) == ["its cgroup cannot be read"]


def test_the_kernel_does_not_isolate(tmp_path: Path) -> None:
    cgroups = fake_cgroups.make(tmp_path / "tree")
    cgroups.create("a", (2,), alone=True, memory=1, tasks=1)
    (cgroups.path("a") / "cpuset.cpus.partition").write_text("isolated invalid (Cpu list in cpuset.cpus not exclusive)")
    assert "not exclusive" in cgroups.faults("a", (2,), alone=True)[0]

    class Unisolated(Cgroups):
        def _isolate(self, group: Path, cpus: str) -> None:
            (group / "cpuset.cpus.partition").symlink_to("/dev/null")  # takes all, and tells nothing
            super()._isolate(group, cpus)

    refusing = Unisolated(cgroups.root, fake_cgroups.remove)
    with pytest.raises(PartitionError, match="does not isolate processors 3: it does not say why"):
        refusing.create("b", (3,), alone=True, memory=1, tasks=1)
    assert refusing.domains() == ["a"], "nothing is left of it"
    with pytest.raises(PartitionError, match="does not isolate"):
        refusing.prepare(alone=(3,))


def test_no_cgroup_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vambrace.partition.cgroups.PATIENCE", 0.1)
    with pytest.raises(PartitionError, match="there is no cgroup v2"):
        Cgroups(tmp_path / "absent").prepare()
    with pytest.raises(PartitionError, match="no controller cpuset, pids"):
        fake_cgroups.make(tmp_path / "tree", controllers=("memory", "io")).prepare()
    whole = fake_cgroups.make(tmp_path / "whole")
    (whole.root / "vambrace-a").write_text("in the way")
    with pytest.raises(PartitionError, match="vambrace-a cannot be removed: Not a directory"):
        whole.create("a", (1,), alone=False, memory=1, tasks=1)


def test_what_does_not_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vambrace.partition.cgroups.PATIENCE", 0.1)
    cgroups = fake_cgroups.make(tmp_path / "tree")

    def busy(group: Path) -> None:
        raise OSError(16, "Device or resource busy")

    cgroups.create("a", (1,), alone=False, memory=1, tasks=1)
    with pytest.raises(PartitionError, match="vambrace-a cannot be removed: Device or resource busy"):
        Cgroups(cgroups.root, busy).remove("a")


# Processors


def test_cores(tmp_path: Path) -> None:
    sysfs = fake_cgroups.machine(tmp_path, ((0, 4), (1, 5), (2, 6), (3, 7)))
    assert processors.online(sysfs) == tuple(range(8))
    assert processors.cores((1, 2, 5, 6), sysfs) == ((1, 5), (2, 6))
    with pytest.raises(ConfigError, match="processors 1,5 are one core, and only 1 is named"):
        processors.cores((1, 2, 6), sysfs)
    with pytest.raises(ConfigError, match="no processor 8-9 runs here"):
        processors.cores((8, 9), sysfs)
    (sysfs / "online").unlink()
    with pytest.raises(PartitionError):
        processors.online(sysfs)
    assert set(processors.online()) >= os.sched_getaffinity(0), "of this machine"


def test_lists() -> None:
    assert processors.parse_list("0-3,7\n") == (0, 1, 2, 3, 7)
    assert processors.parse_list("\n") == ()
    for wrong in ("a", "1-", "-1-2"):
        with pytest.raises(ValueError):
            processors.parse_list(wrong + "x")


def test_interrupts(tmp_path: Path) -> None:
    (tmp_path / "default_smp_affinity").write_text("ff\n")
    for number, cpus in (("10", "0-7"), ("11", "0"), ("12", "3")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "smp_affinity_list").write_text(cpus + "\n")
    (tmp_path / "13/smp_affinity_list").mkdir(parents=True)  # can be neither read nor written
    assert processors.steer_interrupts((0, 1, 33), tmp_path) == ["13"]
    assert (tmp_path / "default_smp_affinity").read_text() == "00000002,00000003"
    assert (tmp_path / "10/smp_affinity_list").read_text() == "0-1,33"
    assert (tmp_path / "11/smp_affinity_list").read_text() == "0\n", "it was right"
    assert (tmp_path / "12/smp_affinity_list").read_text() == "0-1,33"
    with pytest.raises(PartitionError):
        processors.steer_interrupts((0,), tmp_path / "absent")


def test_confinement(sleeper: subprocess.Popen[bytes]) -> None:
    cpu = min(os.sched_getaffinity(0))
    processors.confine(sleeper.pid, (cpu,))
    tasks = [int(path.name) for path in Path(f"/proc/{sleeper.pid}/task").iterdir()]
    assert len(tasks) == 2
    assert all(os.sched_getaffinity(task) == {cpu} for task in tasks)
    with pytest.raises(PartitionError, match="cannot be put on processors 4000"):
        processors.confine(sleeper.pid, (4000,))
    sleeper.kill()
    sleeper.wait()
    processors.confine(sleeper.pid, (cpu,))


def test_core_scheduling(sleeper: subprocess.Popen[bytes]) -> None:
    """The kernel does it, or says in a line that it cannot: no SMT here, or not built so."""
    try:
        processors.schedule_apart(sleeper.pid)
    except PartitionError as error:
        assert error.message.startswith("the kernel cannot keep domains that share processors apart")
    else:
        assert any(len(processors.siblings(cpu)) > 1 for cpu in processors.online())


# The kernel's own


@pytest.fixture
def kernel() -> Cgroups:
    cgroups = Cgroups(ROOT)
    try:
        controllers = (ROOT / "cgroup.controllers").read_text().split()
    except OSError:
        pytest.skip(f"no cgroup v2 at {ROOT}")
    if os.geteuid() or not os.access(ROOT / "cgroup.subtree_control", os.W_OK):
        pytest.skip("the groups are root's to make")
    if "cpuset" not in controllers:
        pytest.skip("cgroup v2 has no controller cpuset")
    if len(processors.online()) < 2:
        pytest.skip("one processor cannot be isolated")
    return cgroups


def test_the_kernel_isolates(kernel: Cgroups, sleeper: subprocess.Popen[bytes]) -> None:
    core = processors.siblings(max(processors.online()))
    mine = os.sched_getaffinity(0)
    kernel.prepare(alone=core)
    kernel.create("test", core, alone=True, memory=64 << 20, tasks=20)
    try:
        assert kernel.faults("test", core, alone=True) == []
        assert os.sched_getaffinity(0).isdisjoint(core), "this process was sent away"
        kernel.enter("test", sleeper.pid)
        assert os.sched_getaffinity(sleeper.pid) == set(core)
        assert kernel.processes("test") == [sleeper.pid]
        with pytest.raises(OSError):
            os.sched_setaffinity(0, core)
        with pytest.raises(PartitionError):
            kernel.create("second", core, alone=True, memory=1 << 20, tasks=1)
        assert "second" not in kernel.domains()
        assert kernel.faults("test", core, alone=True) == [], "the attempt took nothing away"
    finally:
        kernel.remove("test")
    assert sleeper.wait(60) < 0
    os.sched_setaffinity(0, mine)
