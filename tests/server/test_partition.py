"""What two running Realms have each for itself: the account, its proof from the kernel's numbers, planted overlaps.

On this server domains share their one processor, so that the kernel's isolation is tried with the other one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from machine import eventually, vmm_of
from user import Pair

from testbed.door import Door

CGROUPS = "/sys/fs/cgroup"

# Maps a page of the VMM's that belongs to its guest: what a stranger may never have. Then waits for its end.
STRANGER = """
import ctypes, mmap, os, pathlib, signal, sys
pid = int(sys.argv[1])
number = next(
    int(path.name) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir() if "kvm-vcpu" in os.readlink(path)
)
libc = ctypes.CDLL(None, use_errno=True)
descriptor = libc.syscall(438, os.pidfd_open(pid), number, 0)  # pidfd_getfd
assert descriptor >= 0, os.strerror(ctypes.get_errno())
page = mmap.mmap(descriptor, 4096)
page[0]
pathlib.Path(sys.argv[2]).touch()
signal.pause()
"""

# Takes processor 0 from everybody, the host's own processes among them, gives it to a process of its own, and says
# what it saw: the group's faults, where it may run itself before, meanwhile and after, and where the other may.
ISOLATION = """
import json, os, subprocess
from vambrace.errors import PartitionError
from vambrace.partition.cgroups import Cgroups
cgroups = Cgroups()
seen = [sorted(os.sched_getaffinity(0))]
cgroups.create("proof", (0,), alone=True, memory=1 << 26, tasks=8)
try:
    seen.append(sorted(os.sched_getaffinity(0)))
    with subprocess.Popen(["/bin/busybox", "sleep", "60"]) as inside:
        cgroups.enter("proof", inside.pid)
        seen.append(sorted(os.sched_getaffinity(inside.pid)))
        faults = []
        try:
            os.sched_setaffinity(0, {0})
            faults.append("a stranger may run there")
        except OSError:
            pass
        try:
            cgroups.create("second", (0,), alone=True, memory=1 << 26, tasks=8)
            faults.append("it is given twice")
        except PartitionError:
            pass
        faults += cgroups.faults("proof", (0,), alone=True)
        cgroups.remove("proof")
        seen.append(inside.wait(10))
finally:
    cgroups.remove("proof")
seen.append(sorted(os.sched_getaffinity(0)))
print(json.dumps([faults, seen]))
"""


def findings(pair: Pair) -> tuple[str, ...]:
    found = pair.user.host.verify_partition()
    assert {"first", "second"} <= set(found.domains)
    print(found)
    return found.findings


@contextmanager
def stranger(host: Door, pid: int) -> Iterator[None]:
    """A process of the host's, no domain, that has a page of the VMM ``pid`` mapped."""
    host.put("/run/stranger.py", STRANGER.encode())
    start = f"python3 -B /run/stranger.py {pid} /run/stranger.ready > /run/stranger.log 2>&1 & echo $!"
    started = host.shell(start)
    try:
        ready = "test -e /run/stranger.ready"
        assert eventually(lambda: host.shell(ready).code == 0, 60), host.run("cat", "/run/stranger.log").output
        yield
    finally:
        host.shell(f"kill -9 {int(started.output)}; rm -f /run/stranger.*")


def test_account(pair: Pair) -> None:
    """Both Realms are in it, with what they were admitted with, and each in a group of its own."""
    partition = pair.user.host.partition()
    assert (partition.enforcement, partition.reason) == ("cgroup", "")
    assert partition.shared_processors == (1,)
    assert partition.kinds[0].total == ()
    owners = {owner.uuid: owner for owner in partition.owners}
    assert partition.free == partition.memory - sum(owner.memory for owner in partition.owners)
    with Door(pair.server) as host:
        for realm in pair.realms:
            owner = owners[realm.uuid]
            assert owner.memory == realm.info().memory
            assert owner.shared_processors == (1,) and owner.items.get("processors", ()) == ()
            group = f"{CGROUPS}/vambrace-{realm.uuid}"
            assert host.run("cat", f"{group}/cgroup.procs").output.split() == [str(vmm_of(host, realm.uuid))]
            assert host.run("cat", f"{group}/cpuset.cpus.effective").output.split() == ["1"]
            assert owner.memory < int(host.run("cat", f"{group}/memory.max").output) < owner.memory + (1 << 27)
        groups = host.shell(f"ls -d {CGROUPS}/vambrace-*").output.split()
        assert {group.rpartition("vambrace-")[2] for group in groups} == set(owners), "of no Realm that has ended"


def test_verified(pair: Pair) -> None:
    assert findings(pair) == ()


def test_planted_memory(pair: Pair) -> None:
    with Door(pair.server) as host:
        with stranger(host, vmm_of(host, pair.realms[0].uuid)):
            assert findings(pair) == ("first: 1 of its pages is mapped by another process as well",)
        assert eventually(lambda: findings(pair) == (), 30)


def test_planted_processor(pair: Pair) -> None:
    """A VMM's thread on the host's own processor, which it can reach only after it has left its group."""
    with Door(pair.server) as host:
        pid = vmm_of(host, pair.realms[1].uuid)
        group = f"{CGROUPS}/vambrace-{pair.realms[1].uuid}/cgroup.procs"
        move = "import os, sys; os.sched_setaffinity(int(sys.argv[1]), {int(sys.argv[2])})"
        assert host.python(move, str(pid), "0").code != 0, "its group holds it"
        try:
            assert host.shell(f"echo {pid} > {CGROUPS}/cgroup.procs").code == 0
            assert host.python(move, str(pid), "0").code == 0
            found = findings(pair)
            assert any(line.startswith(f"second: its thread {pid} (") and "processors 0, not" in line for line in found)
            assert any(line.startswith(f"second: its process {pid} is in the cgroup") for line in found)
            assert all(line.startswith("second: ") for line in found)
        finally:
            assert host.shell(f"echo {pid} > {group}").code == 0
            assert host.python(move, str(pid), "1").code == 0
        assert findings(pair) == ()
        assert pair.realms[1].info().state == "running"


def test_the_kernel_isolates(pair: Pair) -> None:
    """A processor that is one domain's alone: nobody else may run there, not even by asking for it."""
    with Door(pair.server) as host:
        done = host.python(ISOLATION)
    assert done.code == 0, done.output
    faults, (before, meanwhile, inside, ended, after) = json.loads(done.output.splitlines()[-1])
    assert faults == []
    assert (before, meanwhile, inside, after) == ([0, 1], [1], [0], [0, 1])
    assert ended == -9
    assert findings(pair) == ()
