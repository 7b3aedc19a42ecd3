"""A container image in a Realm, beside a program: as under a plain runtime on the host, and as well protected.

The image is encrypted for a key of the broker's, and one container has a volume that is sealed to this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machine import DOOR, Machine, files_with
from outside import Outside
from records import place, store
from user import User, await_applications, await_log

from testbed.door import Door
from vambrace.attest.events import Event
from vambrace.client.files import PART
from vambrace.client.realm import Realm
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.container import debian_layer, pack_layer
from vambrace.emulator.server import Server
from vambrace.image.base import RuntimeBase
from vambrace.image.containers.make import write_image

HERE = Path(__file__).parent
PACKAGES = ("busybox-static",)
KEY = "tests/key/container"
#: Where the plain runtime runs on the host, and what of a Realm's base it needs beside what the host has.
PLAIN = "/run/plain"
LIBRARIES = ("libyajl.so.2", "libseccomp.so.2", "libcap.so.2", "libsystemd.so.0")
#: busybox's tar leaves links to root.
UNPACK = """
import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
    tar.extractall(sys.argv[1], numeric_owner=True, filter="fully_trusted")
"""
SAYS = {
    "User": "games",
    "Env": ["GREETING=hello world", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "with.dot=1"],
    "Entrypoint": ["/compare"],
    "Cmd": ["one", "two words"],
    "WorkingDir": "/srv/desk",
    "StopSignal": "SIGQUIT",
    "Healthcheck": {"Test": ["CMD-SHELL", "wget -q -O /dev/null http://127.0.0.1/"], "Interval": 10**9},
}
WEB = """
desk
touch /scratch/mine && stat -c '%n %u:%g' /scratch /scratch/mine
[ ! -e /srv/notes/note ] || cat /srv/notes/note
echo a note of before > /srv/notes/note && stat -c '%n %u:%g' /srv/notes/note
echo kept > /results/web/out
trap 'exit 0' QUIT
busybox httpd -f -p 80 -h /srv & wait
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's busybox, and above it a layer of our own."""
    folder = tmp_path_factory.mktemp("image")
    # Its packages are recorded beside this file.
    archive = Archive(Cache().root / "archive", Path(__file__).with_name("containers.lock"))
    (folder / "debian").mkdir()
    debian = debian_layer(archive, "containers", PACKAGES, folder / "debian", {})
    own = folder / "own"
    for name in ("srv", "usr/bin", "srv/desk"):
        (own / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "image/compare", own / "compare")
    (own / "etc").mkdir()
    (own / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ngames:x:5:60::/usr/games:/bin/sh\n")
    (own / "etc/group").write_text("root:x:0:\ntty:x:5:\ngames:x:60:\nlogs:x:77:games\n")
    compiler = ["aarch64-linux-gnu-gcc", "-static", "-O1", "-o", own / "usr/bin/desk", HERE / "image/desk.c"]
    subprocess.run(compiler, check=True)
    for name in ("sh", "env", "id", "sort", "grep", "cat", "find", "xargs", "stat", "touch", "sleep", "wget"):
        (own / "usr/bin" / name).symlink_to("busybox")
    (own / "srv/index.html").write_text("served from a container\n")
    (own / "srv/through").symlink_to("/srv/desk/../real")
    (own / "srv/real/a").mkdir(parents=True)
    (own / "srv/real/a/link").write_text("reached\n")
    (own / "srv/twin").hardlink_to(own / "srv/index.html")
    (own / "srv/desk/own").write_text("games'\n")
    (own / "srv/desk/own").chmod(0o640)
    (own / "compare").chmod(0o6755)
    layer = pack_layer(own, folder / "own.tar", {"srv": (5, 60)})
    return write_image(folder / "layout", [debian, layer], SAYS)


class CutOff(Exception):
    """Its user has lost the connection."""


@dataclass(frozen=True)
class Boxes:
    """Two containers of one image and a program, each with a zone of its own: whose they are, and their bundle."""

    user: User
    bundle: Path


@pytest.fixture(scope="module")
def boxes(
    machine: Machine, containers: RuntimeBase, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Boxes]:
    server = machine.run(DOOR)
    user = User(tmp_path_factory.mktemp("containers"), server, containers)
    with Outside(user.home / "broker", user, server.broker) as outside:
        box = {"container": image, "files": None, "command": None, "memory": "32M", "encrypt": {"resource": KEY}}
        bundle = user.bundle(
            {"name": "compare", **box, "health": False},
            {
                "name": "web", **box, "entrypoint": ["/bin/sh", "-c", WEB], "user": "root",
                "publish": [80], "registers": [2], "capabilities": {"drop": ["all"], "add": ["KILL"]},
                "scratch": "32M", "results": ["out"],
            },
            {"name": "holder", "memory": "32M", "publish": [8002], "registers": [1]},
            volumes=[{"name": "notes", "application": "web", "size": "32M", "mount": "/srv/notes", "key": "sealed"}],
            broker=place(user, outside),
            sealing={"to": "measurement"},
            collect_seconds=30,
        )  # fmt: skip
        store(user, outside, bundle)
        yield Boxes(user, bundle)
        user.host.remove_volume(user.owner.personalization().hex(), "notes")


@pytest.fixture(scope="module")
def realm(boxes: Boxes) -> Iterator[Realm]:
    with boxes.user.started(boxes.bundle) as realm:
        yield realm


@pytest.mark.skipif(os.geteuid() != 0, reason="umoci keeps owners for root only")
def test_it_is_as_under_a_plain_runtime(
    realm: Realm, machine: Machine, containers: RuntimeBase, image: str, tmp_path: Path
) -> None:
    """Its bundle is umoci's, which knows nothing of us. Environment, user, groups, folder, files, output, exit code."""
    with plain(machine, containers, image, tmp_path) as door:
        _await(door, "busybox grep -q 'that is all' out")
        there = door.shell(f"busybox cat {PLAIN}/out").output
        here = await_log(realm, "compare", b"that is all\n").decode()
        print(here)
        assert {"user games 5, group 60", "group 77", "GREETING=hello world"} <= set(here.splitlines())
        assert here.splitlines() == there.splitlines()
        assert door.shell(_crun("kill plain QUIT")).code == 0
        assert _await(door, "busybox cat code 2> /dev/null").split() == ["7"]


def test_it_serves_its_owner_and_knows_how_it_is(realm: Realm) -> None:
    with realm.connect(80) as stream:
        stream.settimeout(120)
        stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := stream.recv(1 << 12):
            answer += data
    assert answer.endswith(b"served from a container\n")
    deadline = time.monotonic() + 120
    while (health := {one["name"]: one.get("health") for one in realm.status()["applications"]})["web"] == "starting":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert health == {"compare": None, "web": "healthy", "holder": None}
    said = realm.logs("web")[1].decode()
    assert said.splitlines() == [
        'desk: {"ok": true}',
        *("vsock: Operation not permitted", "user namespace: Operation not permitted"),
        *("disk: No such file or directory", "port: No such file or directory"),
        *("/scratch 0:0", "/scratch/mine 0:0", "/srv/notes/note 0:0"),
    ]
    assert [(file.path, file.size) for file in realm.results()] == [("/results/web/out", 5)]
    realm.encrypt("web", 90)
    assert {zone["name"]: zone["percent"] for zone in realm.stats()}["web"] == 90


def test_a_file_that_was_cut_off_goes_on_where_it_was(realm: Realm, server: Server, tmp_path: Path) -> None:
    """Into the container's volume, and out again; nobody else reads it there."""
    source, target, there = tmp_path / "source", tmp_path / "target", "web:/srv/notes/file"
    source.write_bytes(os.urandom(3 * PART - 5))

    def cut(step: str, done: int = 0, total: int = 0) -> None:
        realm.close()
        raise CutOff

    for transfer in (
        lambda told: realm.put_file(source, there, told),
        lambda told: realm.get_file(there, target, told),
    ):
        with pytest.raises(CutOff):
            transfer(cut)
        steps: list[int] = []
        transfer(lambda step, done=0, total=0, steps=steps: steps.append(done))
        assert steps == [2 * PART, 3 * PART - 5]
    assert target.read_bytes() == source.read_bytes()
    with Door(server) as host:
        assert files_with(server, host, source.read_bytes()[:64]) == []


def test_its_operator_does_not_see_its_files(realm: Realm, server: Server) -> None:
    """But how it is run: that is in the configuration, which everybody may know."""
    with Door(server) as host:
        assert files_with(server, host, b"GREETING") == [server.state.name]
        assert files_with(server, host, b"served from a container") == []


def test_its_end(realm: Realm) -> None:
    """A stop signal, an exit code, and who said what to the agent."""
    realm.stop("web")
    await_applications(realm, ("running", "succeeded", "running"))
    found = realm.events(realm.attest())
    assert Event(2, "web", "from a container") in found
    realm.stop()
    info = realm.host.wait(realm.uuid, lambda info: info.final, timeout=120)
    assert (info.state, info.reason) == ("failed", "application compare: exit code 7")


@pytest.mark.soak
def test_its_sealed_volume_opens_again(realm: Realm, boxes: Boxes) -> None:
    """For the same image, on the same machine, whose TrustZone gives the key once more."""
    assert realm.info().final, "one Realm has it at a time"
    with boxes.user.started(boxes.bundle) as again:
        assert b"a note of before\n" in await_log(again, "web", b"/srv/notes/note 0:0\n")


@contextlib.contextmanager
def plain(machine: Machine, base: RuntimeBase, image: str, tmp_path: Path) -> Iterator[Door]:
    """The image under crun on the host, its output in ``out`` and its exit code in ``code``."""
    bundle = tmp_path / "bundle"
    subprocess.run(["umoci", "unpack", "--image", image.removeprefix("oci:"), bundle], check=True, capture_output=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    with tarfile.open(tmp_path / "plain.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(bundle, "bundle")
        tar.add(base.tree / "usr/bin/crun", "crun")
        for library in LIBRARIES:
            tar.add((base.tree / "usr/lib/aarch64-linux-gnu" / library).resolve(), f"lib/{library}")
    with Door(machine.run(DOOR)) as door:
        done = door.shell(f"busybox mkdir {PLAIN} && busybox mount -t tmpfs tmpfs {PLAIN}")
        assert done.code == 0, done.output
        try:
            done = door.run("python3", "-c", UNPACK, PLAIN, data=(tmp_path / "plain.tar").read_bytes())
            assert done.code == 0, done.output
            run = f"{_crun('run --bundle bundle plain')} > out 2>&1; echo $? > code"
            # Nothing of it must keep the door's own output open.
            assert door.shell(f"({run}) < /dev/null > /dev/null 2>&1 &").code == 0
            yield door
        finally:
            door.shell(f"{_crun('delete --force plain')}; cd /; busybox umount {PLAIN}; busybox rmdir {PLAIN}")


def _crun(words: str) -> str:
    crun = f"LD_LIBRARY_PATH={PLAIN}/lib ./crun --root {PLAIN}/state --cgroup-manager=disabled"
    return f"cd {PLAIN}; {crun} {words}"


def _await(door: Door, command: str) -> str:
    """The output of ``command`` on the host, once it succeeds."""
    done = door.shell(f"cd {PLAIN}; i=0; until {command} || [ $i -gt 200 ]; do busybox sleep 0.3; i=$((i + 1)); done")
    assert done.code == 0, done.output
    return done.output
