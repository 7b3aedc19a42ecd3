"""A guest that is nothing but a hostile virtio driver, beside an honest Realm: it harms its own devices, and itself."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
from pathlib import Path

from machine import processes, vmm_of
from user import User, await_log

from testbed.door import Door
from vambrace.application import Application
from vambrace.client.host import DomainInfo
from vambrace.client.realm import Realm
from vambrace.config import MIN_APPLICATION_MEMORY, MIN_SYSTEM_MEMORY, Disk, DomainConfig, Zone
from vambrace.image.bundle import write_bundle

SOURCE = Path(__file__).parent / "attacker"
CONTENTS = bytes(range(256)) * 256  # as the attacker knows it
FLAGS = (
    *("-O2", "-Wall", "-Wextra", "-Werror", "-std=c11", "-ffreestanding", "-nostdlib", "-static"),
    *("-no-pie", "-fno-pic", "-fno-stack-protector", "-fno-builtin", "-fno-tree-loop-distribute-patterns"),
    *("-fno-asynchronous-unwind-tables", "-mgeneral-regs-only", "-mstrict-align"),
    *("-Wl,--build-id=none", "-Wl,-n", "-Wl,--no-warn-rwx-segments"),
)
ZONES = (Zone("system", MIN_SYSTEM_MEMORY, 90), Zone("none", MIN_APPLICATION_MEMORY, 90))
#: Each kind is tried on each device that the VMM serves: console, disk, entropy, balloon. The kernel serves the socket.
BAD_REQUESTS, BAD_QUEUES, SERVED = 14, 8, 4


def attacker(user: User, name: str, *words: str) -> Path:
    """An image without an operating system."""
    folder = user.home / name
    folder.mkdir()
    program, kernel, initrd, disk = (folder / part for part in ("program", "kernel", "initrd", "disk"))
    sources = [str(SOURCE / part) for part in ("start.S", "attacker.c")]
    defined = [f"-DMEMORY={sum(zone.memory for zone in ZONES):#x}ul", *(f"-D{word}" for word in words)]
    linker = ["-T", str(SOURCE / "attacker.ld")]
    subprocess.run(["aarch64-linux-gnu-gcc", *FLAGS, *defined, *linker, *sources, "-o", program], check=True)
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", program, kernel], check=True)
    initrd.write_bytes(b"none")
    disk.write_bytes(CONTENTS)
    size, digest = len(CONTENTS), hashlib.sha256(CONTENTS).hexdigest()
    config = DomainConfig(
        name=name,
        cmdline="",
        owner=user.owner.certificate_pem,
        zones=ZONES,
        applications=(Application(name="none", command=("none",), environment={}, directory="/app/none"),),
        disks=(Disk("disk", digest, size, size, "00" * 32, ""),),
    )
    return write_bundle(folder / "image.vambrace", config, kernel, initrd, [disk]).path


def let_loose(user: User, image: Path) -> Realm:
    realm = user.create(image)
    realm.verify()
    realm.approve()
    return realm


def end(realm: Realm) -> DomainInfo:
    return realm.host.wait(realm.uuid, lambda info: info.final, timeout=240)


def test_hostile_driver(user: User, tmp_path: Path) -> None:
    steady = {"name": "steady", "memory": "64M", "results": ["chain.json"]}
    honest = user.create(user.bundle(steady), name="honest")
    attack: Realm | None = None
    try:
        honest.verify()
        honest.approve()
        honest.start()
        await_log(honest, "steady", b"round 2\n")
        with Door(user.server) as host:
            daemon = processes(host, "vambrace.host")
            attack = let_loose(user, attacker(user, "attack", "SECONDS=10"))
            vmm = vmm_of(host, honest.uuid)
            group = f"/sys/fs/cgroup/vambrace-{attack.uuid}"
            limit, peak = attack.info().memory, 0
            while not attack.info().final:
                # Nothing, once the group is gone.
                now = host.shell(f"cat {group}/memory.peak 2>/dev/null || true").output
                peak = max([peak, *map(int, now.split())])
            told = attack.info()
            print(told.reason, f"peak {peak >> 20} MiB of {limit >> 20}")
            count = {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", told.reason)}
            # Its devices stopped at each wrong request and queue, and served again after each reset.
            rounds, left = divmod(count["attacks"], SERVED * BAD_REQUESTS + (SERVED + 1) * BAD_QUEUES)
            assert told.state == "failed" and rounds >= 1 and left == 0
            assert count["devices"] == SERVED + 1
            assert count["stopped"] == count["attacks"] and count["broken"] == 0
            assert count["served"] == 8 * rounds and count["resets"] > 300 * rounds
            assert count["kicks"] > 2500 * rounds and count["accesses"] == 500 * rounds
            assert 0 < peak <= limit
            digest = hashlib.sha256(CONTENTS).hexdigest()
            assert digest in host.shell("sha256sum /state/host/images/*/disk-0").output

            # Another one, whose end is the monitor's doing.
            attack = let_loose(user, attacker(user, "flood", "SECONDS=0", "FLOOD"))
            flooded = end(attack)
            assert (flooded.state, flooded.reason) == ("failed", "the agent sent more requests than may wait")

            # All others are as they were.
            assert processes(host, "vambrace.host") == daemon and vmm_of(host, honest.uuid) == vmm
        assert user.host.verify_partition().findings == ()
        said = await_log(honest, "steady", b"\n").decode()
        done = len(said.splitlines())
        await_log(honest, "steady", f"round {done + 2}\n".encode())
        (file,) = honest.download(tmp_path / "results")
        result = json.loads(file.read_text())
        assert result == {"rounds": result["rounds"], "chain": chain(result["rounds"]), "same": True}
        assert result["rounds"] > done
    finally:
        honest.abandon()
        if attack is not None:
            attack.abandon()


def chain(rounds: int) -> str:
    """What ``steady`` computes."""
    data, value = random.Random(7).randbytes(1 << 20), b""
    for _ in range(rounds):
        value = hashlib.sha256(value + data).digest()
    return value.hex()
