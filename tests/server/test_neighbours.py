"""Two Realms that exchange messages and share networks, and a third that neither named: who reaches whom, what the
operator and the owners see of it, and what is left of them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from contextlib import AbstractContextManager, ExitStack

from machine import eventually, vmm_of
from user import User, await_log

from testbed.door import Door
from vambrace.client.realm import Realm
from vambrace.client.watch import Watch
from vambrace.emulator.server import Server
from vambrace.errors import VambraceError

PORT = 8000
THREADS = """
import pathlib, sys
group = pathlib.Path("/sys/fs/cgroup/vambrace-" + sys.argv[2] + "/cgroup.threads").read_text().split()
for task in pathlib.Path(f"/proc/{sys.argv[1]}/task").iterdir():
    name = (task / "comm").read_text().strip()
    status = dict(line.split(":\\t", 1) for line in (task / "status").read_text().splitlines() if ":\\t" in line)
    print(name.partition("-")[0], status["Cpus_allowed_list"].strip(), task.name in group)
"""


def exchange(*program: str, **more: object) -> dict[str, object]:
    # Room for all that it uses in the window of 50 %: what is slow here is not what is tested.
    return {"name": "exchange", "command": ["python3", *program], "memory": "64M", **more}


def network(*program: str) -> dict[str, object]:
    return {"name": "network", "command": ["python3", *program], "memory": "64M"}


def cards(number: int) -> list[dict[str, str]]:
    """A card at both of the server's networks."""
    return [{"name": "lab", "address": f"10.0.0.{number}/24"}, {"name": "apart", "address": f"10.0.1.{number}/24"}]


def started(
    user: User, name: str, *applications: dict[str, object], endpoint: dict[str, object], **more: object
) -> AbstractContextManager[Realm]:
    """A running Realm with the measured name ``name``."""
    bundle = user.bundle(*applications, name=name, endpoints=[{"port": PORT, **endpoint}], **more)
    return user.started(bundle, name=f"{name}-{endpoint['realm']}")


def reached_by_an_ordinary_client(realm: Realm, digest: str) -> None:
    """Python's web server in the Realm, curl outside: two downloads at once, and an upload."""
    sent = os.urandom(1 << 20)
    refused: list[VambraceError] = []
    with realm.forward(PORT, told=refused.append) as local:
        curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "240", f"http://127.0.0.1:{local.address[1]}/"]
        running = [subprocess.Popen(curl, stdout=subprocess.PIPE) for _ in range(2)]
        assert [hashlib.sha256(each.communicate()[0]).hexdigest() for each in running] == [digest] * 2
        upload = subprocess.run([*curl, "--data-binary", "@-"], input=sent, capture_output=True, check=True)
        assert upload.stdout.decode() == hashlib.sha256(sent).hexdigest()
    assert not refused


def on_two_networks(user: User, host: Door, callee: Realm, caller: Realm) -> None:
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
    assert held["registry-ward"]["cards of lab"] != held["ward-registry"]["cards of lab"]
    found = user.host.verify_partition()
    assert found.passed, found.findings


def watched(user: User, callee: Realm) -> None:
    """What `vambrace top` shows: of all what they use, of one's own Realms what happens inside."""
    with Watch(user.host.usage, lambda: [callee.uuid], {callee.uuid: callee}.__getitem__) as watch:
        watch.look()
        time.sleep(3)
        rows = {row.usage.name: row for row in watch.look()}
    inside = rows["registry-ward"].inside
    assert inside is not None and 0 < inside.plaintext <= inside.most and inside.plaintext <= inside.allowed
    assert inside.faults is not None and inside.message_bytes == 0.0
    assert rows["ward-registry"].inside is None
    assert all(row.usage.cpu is not None and row.usage.shared_processors == (1,) for row in rows.values())


def seen_by_the_operator(user: User) -> None:
    """A minute later, in steps."""
    names = 'caller="ward-registry",endpoint="records",offerer="registry-ward"'

    def metric(pattern: str) -> float:
        found = re.search(rf"^{pattern} (\S+)$", user.host._request("GET", "/metrics").decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    connections = rf"vambrace_message_connections_total\{{{names}\}}"
    assert eventually(lambda: metric(connections) >= 2, 90)
    assert metric(rf'vambrace_message_bytes_total\{{{names},to="caller"\}}') >= 3 << 20
    assert metric(r'vambrace_message_denied_total\{realm="third-registry"\}') >= 1


def test_two_realms_and_a_third(user: User, server: Server) -> None:
    with ExitStack() as stack:
        host = stack.enter_context(Door(server))
        stack.callback(lambda: none_left(host))
        none_left(host)
        serve = exchange("serve.py", str(PORT), publish=[PORT])
        offer = {"offer": "records", "realm": "ward"}
        registry = stack.enter_context(
            started(user, "registry", serve, network("serve.py"), endpoint=offer, networks=cards(1))
        )
        digest = await_log(registry, "exchange", b"\n").decode().removeprefix("serving ").strip()
        reached_by_an_ordinary_client(registry, digest)
        # Of the same owner, and it names the registry, which does not name it.
        connect = {"connect": "records", "realm": "registry"}
        third = stack.enter_context(started(user, "third", exchange("ask.py"), endpoint=connect))
        tried = await_log(third, "exchange", b"\n").decode()
        assert "reset" in tried and "got" not in tried, tried

        reach = network("reach.py", "10.0.0.1", "10.0.1.1")
        ward = stack.enter_context(
            started(user, "ward", exchange("ask.py"), reach, endpoint=connect, networks=cards(2))
        )
        done = await_log(ward, "exchange", b"done").decode()
        assert f"got {digest}\nsent True\ndone\n" in done, done

        _, row = ward.messages()
        assert (row["peer"], row["role"]) == ("registry", "connect")
        assert row["connections"] >= 2 and row["sent"] > 2 << 20 and row["received"] > 4 << 20
        _, other = registry.messages()
        assert (other["peer"], other["sent"], other["received"]) == ("ward", row["received"], row["sent"])
        (denied,) = third.messages()
        assert denied["peer"] is None and denied["refused"] >= 1 and not denied["sent"] + denied["received"]
        assert b"got" not in await_log(third, "exchange", b"failed")

        on_two_networks(user, host, registry, ward)
        watched(user, registry)
        seen_by_the_operator(user)

        # A Realm that ends is nobody's peer any more; what was exchanged with it stays counted.
        registry.destroy()
        (left,) = ward.messages()
        assert (left["peer"], left["connections"], left["sent"]) == (None, row["connections"], row["sent"])
        # What a VMM leaves, however it ends.
        assert eventually(lambda: len(taps(host)) == 2, 30)
        assert host.shell(f"kill -9 {vmm_of(host, ward.uuid)}").code == 0
        none_left(host)


def taps(host: Door, bridge: str = "*") -> list[str]:
    return host.shell(f"cd /sys/class/net && ls -d {bridge}/brif/* 2> /dev/null | sort").output.split()


def none_left(host: Door) -> None:
    assert eventually(lambda: taps(host) == [], 30)


def name_of(tap: str) -> str:
    return tap.rpartition("/")[2]
