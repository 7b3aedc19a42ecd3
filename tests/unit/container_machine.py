"""Containers on this machine by the agent's own code: an image's disk, a user namespace, crun. Not for the tests' own
process.

What this machine has not got is left out: NUMA nodes and the cgroup of the application; its /run and /results are new.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "guest/agent"))

from vambrace_agent import confine, container, identities, system  # noqa: E402
from vambrace_agent.desk import Desk, Request  # noqa: E402
from vambrace_agent.settings import DESK, Application  # noqa: E402

MEMORY = 64 << 20


def begin() -> None:
    """Namespaces of our own, and no node or cgroup: this process is not to be used for anything else."""
    system.call("unshare", 0x00020000)  # CLONE_NEWNS
    system.call("mount", b"none", b"/", None, (1 << 14) | (1 << 18), None)  # private
    Path("/results").mkdir(exist_ok=True)
    for path in ("/run", "/results"):
        system.call("mount", b"tmpfs", path.encode(), b"tmpfs", 0, b"mode=755")
    # As in a Realm, whatever this machine has: crun does not run where version 1 is in use.
    system.call("mount", b"cgroup2", b"/sys/fs/cgroup", b"cgroup2", 0, None)
    Path(container.RUN, ".images").mkdir(parents=True)
    Path(container.RUN).chmod(0o711)

    def on_node_0(path: str, _node: int, size: int, *, mode: int, uid: int) -> None:
        tmpfs(path, 0, size, mode=mode, uid=uid)

    tmpfs, confine.mount_tmpfs = confine.mount_tmpfs, on_node_0
    confine.gate = lambda application: os.open("/dev/null", os.O_WRONLY)
    confine.members = lambda application: [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def application(index: int, name: str, command: list[str], **fields: Any) -> Application:
    box = {"disk": "image", "uid": 0, "gid": 0, "groups": [], "capabilities": [], "stop_signal": 15, "stop_seconds": 5}
    box |= {"processes": 64, "files": 256} | fields.pop("container", {})
    told = {"name": name, "command": command, "environment": {"PATH": "/bin"}, "directory": "/", "restarts": 0}
    return Application(index, {**told, "results": [], "memory": MEMORY, "container": box, **fields})


def prepare(disk: Path, *applications: Application) -> None:
    """All but dm-verity and the Realm's settings."""
    loop = subprocess.run(["losetup", "-r", "-f", "--show", disk], check=True, capture_output=True, text=True)
    try:
        Path(container.RUN, ".images/image").mkdir()
        device, where = loop.stdout.strip().encode(), f"{container.RUN}/.images/image".encode()
        system.call("mount", device, where, b"erofs", 1, None)
    finally:
        subprocess.run(["losetup", "-d", loop.stdout.strip()], check=True)  # once it is unmounted
    for each in applications:
        Path(each.results_directory).mkdir()
        confine.mount_tmpfs(each.results_directory, 0, MEMORY, mode=0o700, uid=each.uid)
        container.make_folder(each)
        identities.make_user_namespace(f"{container.folder(each)}/user", each.identities)
        container.make_root(each)
        container.write_bundle(each)


def open_desk(*applications: Application) -> None:
    """A desk that says who asks."""

    def who(asks: Application, _request: Request) -> Request:
        return {"name": asks.name}

    Desk(DESK, applications, {"who": who}).start()


def run(each: Application, launch: Callable[[Application, int], int] = container.launch) -> tuple[int, str]:
    """Exit code and output."""
    read, write = os.pipe()
    pid = launch(each, write)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as output:
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def tell(value: object) -> None:
    print(json.dumps(value))
