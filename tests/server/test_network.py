"""Two Realms with network cards: who reaches whom, where the work is done, and what is left of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from machine import eventually, vmm_of
from user import User, await_log

from testbed.door import Door
from vambrace.client.realm import Realm
from vambrace.client.watch import Watch
from vambrace.emulator.server import Server

THREADS = """
import pathlib, sys
group = pathlib.Path("/sys/fs/cgroup/vambrace-" + sys.argv[2] + "/cgroup.threads").read_text().split()
for task in pathlib.Path(f"/proc/{sys.argv[1]}/task").iterdir():
    name = (task / "comm").read_text().strip()
    status = dict(line.split(":\\t", 1) for line in (task / "status").read_text().splitlines() if ":\\t" in line)
    print(name.partition("-")[0], status["Cpus_allowed_list"].strip(), task.name in group)
"""


@contextmanager
def started(user: User, name: str, *program: str, number: int) -> Iterator[Realm]:
    """A running Realm with a card at both of the server's networks."""
    networks = [{"name": "lab", "address": f"10.0.0.{number}/24"}, {"name": "apart", "address": f"10.0.1.{number}/24"}]
    application = {"name": "network", "command": ["python3", *program], "memory": "64M"}
    realm = user.create(user.bundle(application, name=name, networks=networks))
    try:
        realm.verify()
        realm.approve()
        realm.start()
        yield realm
    finally:
        realm.abandon()


def taps(host: Door, bridge: str = "*") -> list[str]:
    return host.shell(f"cd /sys/class/net && ls -d {bridge}/brif/* 2> /dev/null | sort").output.split()


def test_two_realms_on_two_networks(user: User, server: Server) -> None:
    with ExitStack() as stack:
        host = stack.enter_context(Door(server))
        stack.callback(lambda: none_left(host))
        none_left(host)
        callee = stack.enter_context(started(user, "callee", "serve.py", number=1))
        await_log(callee, "network", b"serving\n")
        caller = stack.enter_context(started(user, "caller", "reach.py", "10.0.0.1", "10.0.1.1", number=2))
        said = await_log(caller, "network", b"10.0.1.1 failed").decode()
        # By the first network at once; by the second, whose cards are isolated, not at all.
        assert "10.0.0.1 reached\n" in said and "changed" not in said and "10.0.1.1 reached" not in said

        lab, apart = taps(host, "lab"), taps(host, "apart")
        assert len(lab) == len(apart) == 2 and len({*map(name_of, lab), *map(name_of, apart)}) == 4
        # It is the isolation, and nothing else, that kept them apart.
        for tap in apart:
            assert host.shell(f"echo 0 > /sys/class/net/{name_of(tap)}/brport/isolated").code == 0
        await_log(caller, "network", b"10.0.1.1 reached")

        # The kernel's threads that carry packets are the domain's: on its processors, in its group.
        threads = host.python(THREADS, str(vmm_of(host, callee.uuid)), callee.uuid).output.split("\n")[:-1]
        carrying = [line for line in threads if line.startswith("vhost ")]
        assert len(carrying) == 3 and set(carrying) == {"vhost 1 True"}, threads
        held = {owner.name: owner.items for owner in user.host.partition().owners}
        assert held["callee"]["cards of lab"] != held["caller"]["cards of lab"]
        found = user.host.verify_partition()
        assert found.passed, found.findings

        # What `vambrace top` shows: of all what they use, of one's own Realms what happens inside.
        with Watch(user.host.usage, lambda: [callee.uuid], {callee.uuid: callee}.__getitem__) as watch:
            watch.look()
            time.sleep(3)
            rows = {row.usage.name: row for row in watch.look()}
        inside = rows["callee"].inside
        assert inside is not None and 0 < inside.plaintext <= inside.most and inside.plaintext <= inside.allowed
        assert inside.faults is not None and inside.message_bytes == 0.0
        assert rows["caller"].inside is None
        assert all(row.usage.cpu is not None and row.usage.shared_processors == (1,) for row in rows.values())

        # What a VMM leaves, however it ends.
        assert host.shell(f"kill -9 {vmm_of(host, caller.uuid)}").code == 0
        assert eventually(lambda: len(taps(host)) == 2, 30)


def none_left(host: Door) -> None:
    assert eventually(lambda: taps(host) == [], 30)


def name_of(tap: str) -> str:
    return tap.rpartition("/")[2]
