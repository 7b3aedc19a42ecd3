"""What is left of a Realm whose VMM or whose daemon was killed: a record that says so, and nothing in memory."""

from __future__ import annotations

from pathlib import Path

from machine import HOST_BOUND, eventually, files_with, one_waits, pages, processes, vmm_of, vmms
from user import Pair, User, await_log

from testbed.door import Door
from vambrace.emulator.server import Server
from vambrace.errors import VambraceError

PORT = 8000


def allowed(pair: Pair, number: int) -> int:
    """How many plaintext pages one Realm's holder may have anywhere: its window, the system's, the host's buffers."""
    windows = {zone["name"]: int(zone["window"]) for zone in pair.realms[number].stats()}
    return windows["holder"] + windows["system"] + HOST_BOUND


def test_killed_vmm(pair: Pair, tmp_path: Path) -> None:
    """The secret is in memory while its Realm runs, as often as allowed; with the VMM killed, in not a single page."""
    first, second = pair.realms
    with Door(pair.server) as host:
        vmm = vmm_of(host, first.uuid)
        found = pages(pair.server, tmp_path, *pair.secrets)
        for number in (0, 1):
            assert 0 < found[number] <= allowed(pair, number)
        first.close()
        assert host.run("busybox", "kill", "-9", str(vmm)).code == 0
        ended = first.host.wait(first.uuid, lambda info: info.final, timeout=60)
        assert (ended.state, ended.reason, ended.executed) == ("failed", "the VMM process ended", True)
        assert vmm not in vmms(host)
        # The other one lives on.
        assert second.status()["state"] == "running"
        found = pages(pair.server, tmp_path, *pair.secrets)
        assert found[0] == 0
        assert 0 < found[1] <= allowed(pair, 1)


def test_killed_daemon(pair: Pair, tmp_path: Path) -> None:
    """A daemon that is killed takes its Realms with it; the next one knows them as failed."""
    second = pair.realms[1]
    with Door(pair.server) as host:
        second.close()
        daemon = processes(host, "vambrace.host")
        assert len(daemon) == 1
        before = vmms(host)
        assert len(before - {vmm_of(host, second.uuid)}) == 1  # it waits for the next Realm
        assert host.run("busybox", "kill", "-9", str(daemon.pop())).code == 0
        assert eventually(lambda: answers(pair), 120)
        info = second.info()
        assert (info.state, info.reason, info.executed) == ("failed", "host restarted", True)
        assert pair.realms[0].info().reason == "the VMM process ended"
        assert before & vmms(host) == set()
        assert one_waits(host)
        assert pages(pair.server, tmp_path, *pair.secrets) == [0, 0]
        # It never was in a file either.
        for secret in pair.secrets:
            assert files_with(pair.server, host, secret) == []
            assert files_with(pair.server, host, secret.hex().encode()) == []
        assert "state.img" in files_with(pair.server, host, second.uuid.encode())


def answers(pair: Pair) -> bool:
    try:
        pair.user.host.info()
    except VambraceError:
        return False
    return True


def test_restarts(user: User, server: Server) -> None:
    """An application that fails is started again as often as its image says; then the Realm has failed."""
    flaky = {"name": "flaky", "command": ["python3", "flaky.py", str(PORT)], "restarts": 2, "publish": [PORT]}
    realm = user.create(user.bundle(flaky))
    try:
        realm.verify()
        with Door(server) as host:
            vmm = vmm_of(host, realm.uuid)
        realm.approve()
        realm.start()
        for restarts in range(3):
            said = await_log(realm, "flaky", f"attempt {restarts + 1}\n".encode())
            (application,) = realm.status()["applications"]
            assert (application["state"], application["restarts"]) == ("running", restarts)
            # It fails.
            realm.connect(PORT).close()
        ended = realm.host.wait(realm.uuid, lambda info: info.final, timeout=60)
        assert (ended.state, ended.reason) == ("failed", "application flaky: exit code 3")
        assert said == b"attempt 1\nattempt 2\nattempt 3\n"
        with Door(server) as host:
            assert vmm not in vmms(host)
            assert one_waits(host)
    finally:
        realm.abandon()
