"""Users and groups that are somebody's inside and nobody's outside: a user namespace, and mounts as it has them.

Numbers 0 to IDENTITIES - 1 inside are as many of the Realm's, from ``first`` on. Root inside is a user without any
right outside: no device, module, process or setting of the Realm is its own.
"""

from __future__ import annotations

import ctypes
import os

from vambrace_agent import AgentError
from vambrace_agent.settings import IDENTITIES
from vambrace_agent.system import MS_BIND, call, system_call

_USER_NAMESPACES = "/proc/sys/user/max_user_namespaces"
_CLONE_NEWUSER = 0x10000000
# Numbers of system calls, the same on all architectures; and their flags.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 1, 4
_MOUNT_ATTR_IDMAP = 0x100000


def allow_user_namespaces(count: int) -> None:
    """How many there may be in the Realm: none, but while we make ours. Raises ``AgentError``."""
    with open(_USER_NAMESPACES, "w", encoding="ascii") as file:
        file.write(str(count))
    with open(_USER_NAMESPACES, encoding="ascii") as file:
        if int(file.read()) != count:
            raise AgentError("the kernel's setting user/max_user_namespaces cannot be set")


def make_user_namespace(path: str, first: int) -> None:
    """A user namespace with the identities from ``first`` on, kept by a mount at ``path``. Raises ``AgentError``,
    ``OSError``."""
    told, tell = os.pipe()
    waits, lets = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            call("unshare", _CLONE_NEWUSER)
            os.write(tell, b"x")
            os.close(lets)
            os.read(waits, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        tell = -1
        if os.read(told, 1) != b"x":
            raise AgentError("a user namespace cannot be made")
        for table in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{table}", "w", encoding="ascii") as file:
                file.write(f"0 {first} {IDENTITIES}")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        call("mount", f"/proc/{pid}/ns/user".encode(), path.encode(), None, MS_BIND, None)
    finally:
        for fd in (told, tell, waits, lets):
            if fd >= 0:
                os.close(fd)
        os.waitpid(pid, 0)


def mount_mapped(source: str, target: str, namespace: str) -> None:
    """Mount ``source`` once more at ``target``, its owners as the user ``namespace`` has them (mount_setattr(2))."""
    tree = system_call(_OPEN_TREE, _AT_FDCWD, source.encode(), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_IDMAP, 0, 0, fd)
            size = ctypes.sizeof(attributes)
            system_call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
        finally:
            os.close(fd)
        system_call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)
