"""Domains with colours of a configured cache, on a machine that has none: where their page frames are, from outside.

That colours keep domains from seeing each other's work in a cache can be seen on hardware only; which frames domains
have can be seen here. The host is the one with a door, whose daemon gets other settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import eventually, one_waits, processes, vmm_of
from user import User, await_log

from testbed.door import Door
from vambrace.client.realm import Realm
from vambrace.emulator.server import Server
from vambrace.errors import CapacityError, VambraceError

COLOURS = 16
SETTINGS = """
[cache]
partition = "colours"
size = 1048576
line = 64
ways = 16
reserve = 6
"""
SYSTEM, WORKER = 128 << 20, 32 << 20

# Of a VMM: the colours of the frames in its window, how many they are, and a digest of them.
# Its own way to look: none of the daemon's code, and none of what the VMM says. Stopped while it is looked at:
# a page that moved in that time from where was not yet looked to where was already would not be seen.
FRAMES = """
import hashlib, json, os, pathlib, re, signal, sys, time
pid, colours = int(sys.argv[1]), int(sys.argv[2])
found = set()

def standing():
    return all(stat.read_text().rsplit(")", 1)[1].split()[0] == "T" for stat in process.glob("task/*/stat"))

process = pathlib.Path(f"/proc/{pid}")
os.kill(pid, signal.SIGSTOP)
try:
    while not standing():
        time.sleep(0.01)
    smaps = (process / "smaps").read_text()
    for start, end, flags in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw-p .*?^VmFlags: (.*?)$", smaps, re.S | re.M):
        if not {"nh", "dd", "dc"} <= set(flags.split()):  # a window: no huge pages, no dump, no copy for a child
            continue
        with open(process / "pagemap", "rb") as pagemap:
            pagemap.seek(int(start, 16) // 4096 * 8)
            data = memoryview(pagemap.read((int(end, 16) - int(start, 16)) // 4096 * 8)).cast("Q")
        found |= {entry & (1 << 55) - 1 for entry in data if entry >> 63}
finally:
    os.kill(pid, signal.SIGCONT)
digest = hashlib.sha256(repr(sorted(found)).encode()).hexdigest()
print(json.dumps([sorted({frame % colours for frame in found}), len(found), digest]))
"""


@pytest.fixture
def divided(user: User, server: Server) -> Iterator[Door]:
    """The host, whose daemon divides the cache by colours for the time of the test."""
    with Door(server) as host:
        settings = host.run("cat", "/etc/vambrace/host.toml").output
        host.put("/run/host.toml", (settings + SETTINGS).encode())
        assert host.shell("mount -o bind /run/host.toml /etc/vambrace/host.toml").code == 0
        restart(host, user)
        yield host
        assert host.shell("umount /etc/vambrace/host.toml").code == 0
        restart(host, user)


def restart(host: Door, user: User) -> None:
    """The daemon anew, with the settings as they are."""
    (daemon,) = processes(host, "vambrace.host")
    assert host.run("busybox", "kill", "-9", str(daemon)).code == 0
    assert eventually(lambda: processes(host, "vambrace.host") - {daemon} != set(), 60)
    assert eventually(lambda: answers(user), 120)
    assert one_waits(host)


def answers(user: User) -> bool:
    try:
        user.host.info()
    except VambraceError:
        return False
    return True


def frames(host: Door, realm: Realm) -> tuple[list[int], int, str]:
    done = host.python(FRAMES, str(vmm_of(host, realm.uuid)), str(COLOURS))
    assert done.code == 0, done.output
    found = json.loads(done.output)
    return found[0], found[1], found[2]


def image(user: User, percent: int) -> Path:
    return user.bundle(
        {"name": "holder", "registers": [1]},
        system={"memory": "128M"},
        verdict_seconds=600,
        cache={"demand": "required", "percent": percent},
    )


def test_two_domains_with_colours(user: User, divided: Door) -> None:
    realms: list[Realm] = []
    quarter = image(user, 25).rename(user.home / "quarter.vambrace")
    half = image(user, 50).rename(user.home / "half.vambrace")
    try:
        for name, bundle in (("first", quarter), ("second", half)):
            realm = user.create(bundle, name=name)
            realms.append(realm)
            assert realm.verify().cache_partition == "colours-unconfirmed"
            realm.approve()
        with pytest.raises(CapacityError) as refused:
            user.create(half, name="third")
        assert refused.value.message == (
            "third cannot be given 8 colours (free: 3 of 16 colours: 13-15; second holds 5-12; first holds 1-4; "
            "the host holds 0)"
        )
        for realm in realms:
            realm.start()
            await_log(realm, "holder", b"\n")
        before = [frames(divided, realm) for realm in realms]
        pages = (SYSTEM + WORKER) // 4096
        assert [found[:2] for found in before] == [([1, 2, 3, 4], pages), (list(range(5, 13)), pages)]
        for percents in ((75, 25), (0, 75), (50, 50)):  # the system's zone follows: where it has little, all is slow
            for realm, percent in zip(realms, percents, strict=True):
                realm.encrypt("holder", percent)
        assert [frames(divided, realm) for realm in realms] == before, "every page has the frame that it was given"
        account = user.host.partition()
        assert account.cache.partition == "colours-unconfirmed" and "virtual machine" in account.cache.reason
        assert account.owners[1].items["colours"] == tuple(range(5, 13)) and account.cache.host == (0,)
        assert user.host.verify_partition().findings == ()
        plant(divided, user)
        assert [realm.attest().cache_partition for realm in realms] == ["colours-unconfirmed"] * 2
    finally:
        for realm in realms:
            realm.abandon()


def plant(host: Door, user: User) -> None:
    """A kernel that may move pages is found."""
    setting = "/proc/sys/vm/compact_unevictable_allowed"
    assert host.shell(f"echo 1 > {setting}").code == 0
    (found,) = user.host.verify_partition().findings
    assert found == "the kernel may move pages to other frames: vm.compact_unevictable_allowed is '1'"
    assert host.shell(f"echo 0 > {setting}").code == 0
    assert user.host.verify_partition().findings == ()
