"""Files that the owner sends and takes (docs/volumes.md): below an application's results, scratch space and volumes.

The application owns these folders and may put there what it likes, so nothing is followed: every path is opened name by
name. What is sent grows in a hidden file beside its place, and takes it when its hash is right. It is made as the
application's user: a container's disks know no other.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator

from vambrace_agent import AgentError
from vambrace_agent.opened import Opened
from vambrace_agent.settings import Application
from vambrace_agent.system import libc

CHUNK = 256 << 10
MAX_ENTRIES = 500
_MAX_DEPTH = 32
_MAX_NAME = 200
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HEX = frozenset("0123456789abcdef")

Reply = dict[str, object]
#: The application, the request, and what the guest's paths are below; raises ``AgentError``, ``OSError``.
Operation = Callable[[Application, Reply, str], tuple[Reply, bytes]]


def open_below(folder: str, names: list[str], flags: int = os.O_RDONLY) -> int:
    """Open ``names``, one in the other, below ``folder``, none of them by a link. Raises ``OSError``."""
    directory = os.open(folder, _FOLDER)
    for number, name in enumerate(names, 1):
        try:
            found = os.open(name, flags | _FILE if number == len(names) else _FOLDER, dir_fd=directory)
        finally:
            os.close(directory)
        directory = found
    return directory


def listing(application: Application, request: Reply, root: str) -> tuple[Reply, bytes]:
    """What is in a folder, up to ``MAX_ENTRIES``; of a file, itself."""
    folder, names = _place(application, request, root)
    with Opened(open_below(folder, names)) as fd:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            return {"files": [_described(names[-1], os.fstat(fd))], "more": False}, b""
        found: list[Reply] = []
        more = False
        with os.scandir(fd) as entries:
            for entry in entries:
                if len(found) == MAX_ENTRIES:
                    more = True
                    break
                found.append(_described(entry.name, entry.stat(follow_symlinks=False)))
    return {"files": found, "more": more}, b""


def read(application: Application, request: Reply, root: str) -> tuple[Reply, bytes]:
    """A part of a file, from ``offset`` on."""
    offset = _number(request, "offset")
    with _regular(*_place(application, request, root)) as fd:
        return {"offset": offset, "size": os.fstat(fd).st_size}, os.pread(fd, CHUNK, offset)


def digest(application: Application, request: Reply, root: str) -> tuple[Reply, bytes]:
    """The size of a file, and the SHA-256 of so much of it."""
    with _regular(*_place(application, request, root)) as fd:
        size = os.fstat(fd).st_size
        return {"size": size, "sha256": _hash(fd, size)}, b""


def begin(application: Application, request: Reply, root: str) -> tuple[Reply, bytes]:
    """A file with this ``sha256`` is sent: how much of it is here already."""
    folder, names = _place(application, request, root)
    size = _number(request, "size")
    with Opened(_parents(folder, names[:-1], application.uid)) as directory:
        space = os.fstatvfs(directory)
        with _user(application.uid):
            partial = os.open(_partial(names, request), os.O_RDWR | os.O_CREAT | _FILE, 0o600, dir_fd=directory)
        with Opened(partial) as fd:
            _check_regular(fd)
            here = os.fstat(fd).st_size
            if here > size:
                os.ftruncate(fd, 0)
                here = 0
            if size - here > space.f_bavail * space.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return {"offset": here}, b""


def write(application: Application, request: Reply, root: str) -> tuple[Reply, bytes]:
    """A part of it, ``body``, from ``offset`` on, which is not behind what is here."""
    folder, names = _place(application, request, root)
    offset, body = _number(request, "offset"), request.get("body", b"")
    assert isinstance(body, bytes)
    with Opened(open_below(folder, [*names[:-1], _partial(names, request)], os.O_RDWR)) as fd:
        _check_regular(fd)
        if offset > os.fstat(fd).st_size:
            raise AgentError("there is a gap before this part")
        done = 0
        while done < len(body):
            done += os.pwrite(fd, body[done:], offset + done)
        return {"offset": offset + done}, b""


def end(application: Application, request: Reply, root: str) -> tuple[Reply, bytes]:
    """All of it was sent: it takes its place, on the disk, if it is what was meant."""
    folder, names = _place(application, request, root)
    size, partial = _number(request, "size"), _partial(names, request)
    with Opened(open_below(folder, names[:-1]) if names[:-1] else os.open(folder, _FOLDER)) as directory:
        with Opened(os.open(partial, os.O_RDWR | _FILE, dir_fd=directory)) as fd:
            _check_regular(fd)
            if os.fstat(fd).st_size != size or _hash(fd, size) != request.get("sha256"):
                os.unlink(partial, dir_fd=directory)
                raise AgentError("what was sent is not what was meant: send it again")
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        # The agent's own user is nobody's on a container's volume, and may make no name there.
        with _user(application.uid):
            os.rename(partial, names[-1], src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    return {"size": size}, b""


OPERATIONS: dict[str, Operation] = {
    "files": listing,
    "file-read": read,
    "file-digest": digest,
    "file-begin": begin,
    "file-write": write,
    "file-end": end,
}


def serve(operation: str, application: Application, request: Reply, root: str) -> tuple[Reply, bytes]:
    """One of ``OPERATIONS``. Raises ``AgentError``."""
    try:
        return OPERATIONS[operation](application, request, root)
    except OSError as error:
        raise AgentError(f"{str(request.get('path'))[:200]}: {error.strerror}") from None


def _place(application: Application, request: Reply, root: str) -> tuple[str, list[str]]:
    """The folder of the application's that ``path`` is below, as the agent sees it, and the names that are left."""
    path = request.get("path")
    if not isinstance(path, str):
        raise AgentError("path: a text is expected")
    own = application.results_directory
    places = [(root + own, own), *((root + folder, target) for folder, target in application.mounts)]
    for folder, target in sorted(places, key=lambda place: -len(place[1])):
        if path == target or path.startswith(f"{target}/"):
            names = path[len(target) + 1 :].split("/") if path != target else []
            if len(names) > _MAX_DEPTH or not all(map(_good, names)):
                raise AgentError("the path has a name that is none")
            if not names and request.get("op") != "files":
                raise AgentError("the path is that of a folder")
            return folder, names
    known = ", ".join(target for _, target in places)
    raise AgentError(f"the path must be below one of {known}")


def _good(name: str) -> bool:
    try:
        return name not in ("", ".", "..") and "\0" not in name and len(name.encode()) <= _MAX_NAME
    except UnicodeEncodeError:
        return False


def _partial(names: list[str], request: Reply) -> str:
    """The name that a file has until it is whole: another one for other contents."""
    sha256 = request.get("sha256")
    if not isinstance(sha256, str) or len(sha256) != 64 or not _HEX.issuperset(sha256):
        raise AgentError("sha256: 64 hexadecimal digits are expected")
    return f".{names[-1]}.{sha256[:16]}.part"


def _parents(folder: str, names: list[str], uid: int) -> int:
    """Open the folders ``names``, one in the other, made where they are not there."""
    directory = os.open(folder, _FOLDER)
    for name in names:
        try:
            with contextlib.suppress(FileExistsError), _user(uid):
                os.mkdir(name, 0o700, dir_fd=directory)
            found = os.open(name, _FOLDER, dir_fd=directory)
        finally:
            os.close(directory)
        directory = found
    return directory


@contextlib.contextmanager
def _user(uid: int) -> Iterator[None]:
    """What this thread makes belongs to ``uid`` (setfsuid(2)), whose rights it has meanwhile."""
    group, user = libc.setfsgid(uid), libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(user)
        libc.setfsgid(group)


def _regular(folder: str, names: list[str]) -> Opened:
    fd = open_below(folder, names)
    try:
        _check_regular(fd)
        space = os.fstatvfs(fd)
        if os.fstat(fd).st_size > space.f_blocks * space.f_frsize:
            raise AgentError("the file has holes: it is larger than what it is on")
    except BaseException:
        os.close(fd)
        raise
    return Opened(fd)


def _check_regular(fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise AgentError("it is no regular file")


def _described(name: str, status: os.stat_result) -> Reply:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "other")
    shown = name.encode(errors="replace").decode()
    return {"name": shown, "kind": kind, "size": status.st_size, "changed": int(status.st_mtime)}


def _number(request: Reply, key: str) -> int:
    value = request.get(key, 0)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise AgentError(f"{key}: a number from 0 up is expected")
    return value


def _hash(fd: int, size: int) -> str:
    found = hashlib.sha256()
    for part in _parts(fd, size):
        found.update(part)
    return found.hexdigest()


def _parts(fd: int, size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size:
        part = os.pread(fd, min(CHUNK, size - offset), offset)
        if not part:
            return
        offset += len(part)
        yield part
