"""Containers: a disk under dm-verity, a layer of the run over it, and an OCI runtime that starts the application in it.

Each container has a user namespace, made before anything runs and never another: its users and groups, root too, are
numbers of the Realm that nobody else has. So the kernel tells whose a process or socket is, and root inside is nobody
outside. What it writes is on the NUMA node of its application.

    /run/containers/NAME/user     the user namespace
                         lower    its image, with owners as the namespace has them
                         mounts   its volumes and scratch space, with such owners, too
                         data     a tmpfs: what it writes (upper), /dev/shm
                         root     both together
                         bundle   what crun is told;  state  what crun remembers
"""

from __future__ import annotations

import json
import os
import shutil
import signal

from vambrace_agent import AgentError, bundle, confine, images
from vambrace_agent.identities import allow_user_namespaces, make_user_namespace, mount_mapped
from vambrace_agent.release import Broker
from vambrace_agent.settings import Application, Image
from vambrace_agent.system import MS_NODEV, MS_NOSUID, allow_small_ports, call

RUN = "/run/containers"
RUNTIME = "/usr/bin/crun"


def folder(application: Application) -> str:
    """Where all of a container is."""
    return f"{RUN}/{application.name}"


def begin(containers: list[Application]) -> None:
    """Make folders and user namespaces for ``containers``, before anything of an application is mounted or runs.

    Raises ``AgentError``.
    """
    try:
        os.makedirs(f"{RUN}/.images")
        os.chmod(RUN, 0o711)
        # Containers have no capability over the network that all share, and images serve on small ports.
        allow_small_ports()
        allow_user_namespaces(len(containers))
        for application in containers:
            make_folder(application)
            make_user_namespace(f"{folder(application)}/user", application.identities)
        allow_user_namespaces(0)
    except OSError as error:
        raise AgentError(f"containers cannot be prepared: {error.strerror}") from None


def complete(containers: list[Application], disks: dict[str, Image], broker: Broker | None) -> None:
    """Mount the images and make the roots of ``containers``; of an encrypted image ``broker`` has the key.

    Raises ``AgentError``.
    """
    try:
        for name in sorted({application.container.disk for application in containers if application.container}):
            where = f"{RUN}/.images/{name}"
            os.mkdir(where, 0o700)
            images.mount_image(disks[name], broker, where)
        for application in containers:
            make_root(application)
            write_bundle(application)
    except OSError as error:
        raise AgentError(f"containers cannot be prepared: {error.strerror}") from None


def adopt(application: Application, mounted: str, name: str) -> str:
    """Take what is mounted at the folder ``mounted`` over to the container's own, and return where it is then.

    On it are owners as the container has them, so that it may be another application of the Realm the next time.
    """
    where = f"{folder(application)}/mounts/{name}"
    os.mkdir(where, 0o700)
    mount_mapped(mounted, where, f"{folder(application)}/user")
    call("umount", mounted.encode())
    os.rmdir(mounted)
    return where


def make_folder(application: Application) -> None:
    """For the container's root and nobody else but us: the runtime is that when it looks for the root."""
    top = folder(application)
    os.mkdir(top)
    os.chown(top, 0, application.identities)
    os.chmod(top, 0o710)
    for name, mode in (("lower", 0o700), ("data", 0o700), ("bundle", 0o700), ("root", 0o711), ("mounts", 0o711)):
        os.mkdir(f"{top}/{name}", mode)
    for name, text in (("hosts", f"127.0.0.1 localhost {application.name}\n::1 localhost\n"), ("hostname", "")):
        with open(f"{top}/{name}", "x", encoding="ascii") as file:
            file.write(text or f"{application.name}\n")
        os.chmod(f"{top}/{name}", 0o644)


def make_root(application: Application) -> None:
    """The image with a layer over it that takes what the container writes, on its own node."""
    assert application.container is not None
    top = folder(application)
    lower, data = f"{top}/lower", f"{top}/data"
    mount_mapped(f"{RUN}/.images/{application.container.disk}", lower, f"{top}/user")
    confine.mount_tmpfs(data, application.index, application.memory // 2, mode=0o700, uid=0)
    for name, mode in (("upper", 0o755), ("work", 0o700), ("shm", 0o1777)):
        os.mkdir(f"{data}/{name}")
        os.chown(f"{data}/{name}", application.identities, application.identities)
        os.chmod(f"{data}/{name}", mode)
    # What is seen of the root itself is the upper layer's.
    status = os.stat(lower)
    os.chown(f"{data}/upper", status.st_uid, status.st_gid)
    os.chmod(f"{data}/upper", status.st_mode & 0o7777)
    os.utime(f"{data}/upper", ns=(status.st_mtime_ns, status.st_mtime_ns))
    layers = f"lowerdir={lower},upperdir={data}/upper,workdir={data}/work"
    call("mount", b"overlay", f"{top}/root".encode(), b"overlay", MS_NOSUID | MS_NODEV, layers.encode())


def write_bundle(application: Application) -> None:
    place = f"{folder(application)}/bundle"
    with open(f"{place}/config.json", "x", encoding="utf-8") as file:
        json.dump(bundle.describe(application, folder(application)), file)
    health = application.container.health if application.container else None
    if health:
        with open(f"{place}/health.json", "x", encoding="utf-8") as file:
            json.dump(bundle.process(application, health.command), file)


def launch(application: Application, output: int) -> int:
    """Start the container with its output going to ``output``; returns the runtime's process number, whose exit code
    is the container's."""
    state = f"{folder(application)}/state"
    # The runtime may have been killed, and have left what it remembers.
    shutil.rmtree(state, ignore_errors=True)
    os.mkdir(state, 0o700)
    # Programs open it once more, as /dev/stdout, which is its owner's to allow.
    os.fchown(output, application.uid, application.gid)
    return _spawn(application, output, ["run", "--bundle", f"{folder(application)}/bundle"])


def launch_health(application: Application) -> int:
    """Start the health check in the running container; returns the process number of what waits for it."""
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    try:
        return _spawn(application, null, ["exec", "--process", f"{folder(application)}/bundle/health.json"])
    finally:
        os.close(null)


def terminate(application: Application) -> None:
    """Send the container's first process its stop signal, if there is one."""
    assert application.container is not None
    # Its parent is crun, which is in the same cgroup: nobody else can have this number meanwhile.
    for pid in confine.members(application):
        if _first_of_container(pid):
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if _first_of_container(pid):
                    signal.pidfd_send_signal(fd, application.container.stop_signal)
            except ProcessLookupError:
                pass
            finally:
                os.close(fd)


def _first_of_container(pid: int) -> bool:
    """Whether a process is number 1 of a process namespace below ours."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            numbers = next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
    except OSError:
        return False
    return len(numbers) == 2 and numbers[1] == "1"


def _spawn(application: Application, output: int, words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.setsid()
        confine.usual_signals()
        common = [RUNTIME, "--root", f"{folder(application)}/state", "--cgroup-manager=disabled"]
        command = [*common, *words, application.name]
        confine.step_through(confine.gate(application), command, {"PATH": "/usr/sbin:/usr/bin"})
    except OSError as error:
        os.write(2, f"vambrace: the container cannot be started: {error.strerror}\n".encode())
    finally:
        os._exit(126)
    return 0
