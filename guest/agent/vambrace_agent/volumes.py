"""Volumes that outlive their Realm, and scratch space that does not (docs/volumes.md).

A volume has two headers, of its last two generations, each in a place of its own. Whoever opens it encrypts its tags
anew, for the next generation, beside those that count; then writes the header; then has the broker name it; and only
then uses the volume. Cut anywhere, one of the two headers is the one that the broker names, and what it needs is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import struct
import time
from abc import ABC, abstractmethod

from vambrace_agent import AgentError
from vambrace_agent.devicemapper import Forged
from vambrace_agent.release import Broker, Refused, Session
from vambrace_agent.release import Volume as Released
from vambrace_agent.sealing import Sealing
from vambrace_agent.settings import Application, Disk
from vambrace_agent.storage import BLOCK, Keys, Layout, Stack, make_file_system, read, write
from vambrace_agent.system import MS_NOATIME, MS_NODEV, MS_NOSUID, call

HOME = "/run/vambrace/volumes"  # below a folder of root's
SEALED = "sealed"
SLOTS = (0, 64 << 10)  # where the headers are, by the last bit of their generation
MAGIC = b"vambrace-volume1"
MAX_SEALED = 512
_FIELDS = struct.Struct(f">16sQQ32s32sH{MAX_SEALED}s")
CHANGED = "what is on its disk was changed, or is older than its header"
_OPENED = "another Realm has opened it meanwhile"
_MAC_BYTES = 32
_APPEAR_SECONDS = 10.0
_LOST_AND_FOUND = "lost+found"


class Header:
    """What is known of a volume in one generation. ``salt`` is the volume's, ``tags_salt`` this generation's;
    ``sealed`` is the key, sealed to the Realm, where there is no broker."""

    def __init__(self, generation: int, size: int, salt: bytes, tags_salt: bytes, sealed: bytes = b"") -> None:
        self.generation = generation
        self.size = size
        self.salt = salt
        self.tags_salt = tags_salt
        self.sealed = sealed

    @property
    def which(self) -> int:
        """Which place its header and its tags have."""
        return self.generation % 2

    def following(self, sealed: bytes) -> Header:
        """That of the next generation."""
        return Header(self.generation + 1, self.size, self.salt, os.urandom(32), sealed)

    def encode(self, key: bytes) -> bytes:
        """A block that is authenticated with the volume's ``key``."""
        fields = _FIELDS.pack(
            MAGIC, self.generation, self.size, self.salt, self.tags_salt, len(self.sealed), self.sealed
        )
        text = fields.ljust(BLOCK - _MAC_BYTES, b"\0")
        return text + hmac.digest(Keys(key, self.salt).header, text, "sha256")

    def state(self, key: bytes) -> bytes:
        """What the broker keeps of it."""
        return hashlib.sha256(self.encode(key)).digest()

    @staticmethod
    def decode(block: bytes) -> Header | None:
        """What ``block`` says, which anybody may have written; None for what is no header."""
        magic, generation, size, salt, tags_salt, length, sealed = _FIELDS.unpack_from(block)
        if magic != MAGIC or length > MAX_SEALED:
            return None
        return Header(generation, size, salt, tags_salt, sealed[:length])

    def genuine(self, block: bytes, key: bytes) -> bool:
        return hmac.compare_digest(self.encode(key), block)


class Keeper(ABC):
    """Who has a volume's key, and says which of its generations counts."""

    key: bytes

    @abstractmethod
    def current(self, found: list[Header]) -> Header | None:
        """Of the genuine headers on the disk the one that counts; None where the volume is new. Raises ``AgentError``:
        none of them does."""

    @abstractmethod
    def sealed(self) -> bytes:
        """What the next header has in it."""

    @abstractmethod
    def commit(self, header: Header) -> None:
        """``header`` is on the disk: from now on it counts. Raises ``AgentError``."""


class ByBroker(Keeper):
    """Knows which generation was the last."""

    def __init__(self, broker: Broker, resource: str) -> None:
        self._broker = broker
        self._resource = resource
        self._session, self._released = self._ask()
        self.key = self._released.key

    def current(self, found: list[Header]) -> Header | None:
        if self._released.generation == 0:
            if any(header.generation > 1 for header in found):
                raise AgentError("its broker says that it is new, but it was used before")
            return None
        for header in found:
            if self._released.admits(header.generation, header.state(self.key)):
                return header
        raise AgentError("the host gives an older copy of it, or another volume: its broker knows a newer state")

    def sealed(self) -> bytes:
        return b""

    def commit(self, header: Header) -> None:
        state = header.state(self.key)
        try:
            self._commit(header.generation, state)
        except Refused as refusal:
            raise AgentError(f"{_OPENED} ({refusal})") from None
        finally:
            self._session.close()

    def _commit(self, generation: int, state: bytes) -> None:
        try:
            self._released.commit(state)
            return
        except Refused:
            raise
        except AgentError:
            # No answer: it may have been done.
            self._session.close()
            self._session, self._released = self._ask()
        if self._released.admits(generation, state):
            return
        if self._released.generation != generation - 1:
            raise AgentError(_OPENED)
        self._released.commit(state)

    def _ask(self) -> tuple[Session, Released]:
        session = self._broker.session()
        try:
            return session, session.volume(self._resource)
        except BaseException:
            session.close()
            raise


class BySeal(Keeper):
    """Nobody counts: the newest header that is there is taken."""

    def __init__(self, sealing: Sealing, name: str, blocks: list[bytes]) -> None:
        self._sealing = sealing
        self._label = f"volume:{name}"  # no application's name has a colon
        headers = [header for block in blocks if any(block) and (header := Header.decode(block))]
        headers.sort(key=lambda header: header.generation, reverse=True)
        if not headers:
            self.key = os.urandom(32)
        for number, header in enumerate(headers):
            try:
                self.key = sealing.unseal(self._label, header.sealed)
                return
            except AgentError:
                if number == len(headers) - 1:
                    raise

    def current(self, found: list[Header]) -> Header | None:
        return max(found, key=lambda header: header.generation, default=None)

    def sealed(self) -> bytes:
        return self._sealing.seal(self._label, self.key)

    def commit(self, header: Header) -> None:
        """That it is on the disk is all there is."""


class Volume:
    """One volume on the disk ``path``; open until ``close``."""

    def __init__(self, disk: Disk, path: str, keeper: Keeper, blocks: list[bytes]) -> None:
        """``blocks`` are those of the two headers, as read from the disk. Raises ``AgentError``."""
        key = keeper.key
        layout = Layout(disk.size)
        genuine = [header for block in blocks if (header := Header.decode(block)) and header.genuine(block, key)]
        if any(header.size != disk.size for header in genuine):
            raise AgentError("it has another size than the image says")
        current = keeper.current(genuine)
        if current is None and not genuine and any(map(any, blocks)):
            raise AgentError("the disk holds another volume, or this one with another key: remove it from the host")
        if current is None:
            following = Header(1, disk.size, os.urandom(32), os.urandom(32), keeper.sealed())
        else:
            following = current.following(keeper.sealed())
        self.stack = Stack(f"volume-{disk.name}", path, layout, Keys(key, following.salt))
        if current is None:
            self.stack.make(following.which, following.tags_salt, lasting=True)
            make_file_system(self.stack.path, layout.data_size, lasting=True)
        else:
            self.stack.renew(current.which, current.tags_salt, following.tags_salt)
        try:
            write(path, SLOTS[following.which], following.encode(key))
            keeper.commit(following)
            if current is not None:
                self.stack.open(following.which, following.tags_salt)
        except BaseException:
            self.stack.close()
            raise


class Volumes:
    """Everything that an image's disks are for, mounted where its applications find it. ``close`` ends all of it."""

    def __init__(self, broker: Broker | None, sealing: Sealing) -> None:
        self._broker = broker
        self._sealing = sealing
        self._open: list[tuple[str, Stack]] = []

    def attach(self, disk: Disk, application: Application) -> None:
        """Open ``disk``, and mount it for ``application``. Raises ``AgentError``."""
        try:
            path = find(disk.serial)
            stack = self._volume(disk, path).stack if disk.key else _scratch(disk, path)
            self._mount(disk, stack, application)
        except Forged:
            raise AgentError(f"{disk.title}: {CHANGED}") from None
        except AgentError as error:
            raise AgentError(f"{disk.title}: {error}") from None
        except OSError as error:
            raise AgentError(f"{disk.title}: the disk fails: {error.strerror}") from None

    def close(self) -> None:
        """Once nobody uses them. What cannot be ended stays as it is: it is on the disk up to the last sync."""
        while self._open:
            folder, stack = self._open.pop()
            with contextlib.suppress(AgentError, OSError):
                call("umount", folder.encode())
                os.rmdir(folder)
                stack.close()

    def _volume(self, disk: Disk, path: str) -> Volume:
        blocks = [read(path, place, BLOCK) for place in SLOTS]
        keeper: Keeper
        if disk.key == SEALED:
            keeper = BySeal(self._sealing, disk.name, blocks)
        elif self._broker is None:
            raise AgentError("there is no broker")
        else:
            keeper = ByBroker(self._broker, disk.key)
        return Volume(disk, path, keeper, blocks)

    def _mount(self, disk: Disk, stack: Stack, application: Application) -> None:
        folder = f"{HOME}/{stack.name}"
        os.makedirs(folder, mode=0o700)
        flags = MS_NOSUID | MS_NODEV | (0 if disk.key else MS_NOATIME)
        try:
            call("mount", stack.path.encode(), folder.encode(), b"ext4", flags, b"errors=remount-ro")
        except OSError:
            os.rmdir(folder)
            stack.close()
            raise AgentError(CHANGED) from None
        self._open.append((folder, stack))
        if application.container:
            from vambrace_agent import container  # not every Realm has any

            folder = container.adopt(application, folder, stack.name)
            self._open[-1] = (folder, stack)
            welcome(folder, application.uid)
        else:
            give(folder, application.uid)
        application.mounts.append((folder, disk.mount))


def find(serial: str) -> str:
    """The disk that calls itself so. Which one the host gives under that name does not matter: its contents prove
    themselves. Raises ``AgentError``."""
    deadline = time.monotonic() + _APPEAR_SECONDS
    while time.monotonic() < deadline:
        for name in os.listdir("/sys/block"):
            with contextlib.suppress(OSError), open(f"/sys/block/{name}/serial", encoding="ascii") as file:
                if file.read().strip() == serial:
                    return f"/dev/{name}"
        time.sleep(0.05)
    raise AgentError("the host has not given its disk")


def give(folder: str, uid: int) -> None:
    """Make the file system at ``folder`` the application's: all of it, where it was another one's before."""
    if os.stat(folder).st_uid == uid:
        return
    _give_all(folder, uid)
    with contextlib.suppress(OSError):
        os.rmdir(f"{folder}/{_LOST_AND_FOUND}")  # an application wants to find nothing
    os.chmod(folder, 0o700)
    os.chown(folder, uid, uid)  # last: until it is done, it is done again


def _give_all(top: str, uid: int) -> None:
    """All that is below ``top``, however deep: a path may be longer than the kernel takes, and folders deeper within
    each other than there are descriptors. So one folder is open at a time, and each is entered from the one above."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    place = os.open(top, flags)
    waiting: list[list[str]] = []  # folders to enter, of each one on the way
    try:
        while True:
            folders = []
            with os.scandir(place) as entries:
                for entry in entries:
                    os.chown(entry.name, uid, uid, dir_fd=place, follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
            waiting.append(folders)
            while waiting and not waiting[-1]:
                waiting.pop()
                if waiting:
                    place = _enter("..", flags, place)
            if not waiting:
                return
            place = _enter(waiting[-1].pop(), flags, place)
    finally:
        os.close(place)


def _enter(name: str, flags: int, place: int) -> int:
    """Open ``name`` in the place of the folder ``place``."""
    found = os.open(name, flags, dir_fd=place)
    os.close(place)
    return found


def welcome(folder: str, uid: int) -> None:
    """Give a file system that is new to the user whom a container begins as. Later its users share it as they like."""
    try:
        os.rmdir(f"{folder}/{_LOST_AND_FOUND}")
    except FileNotFoundError:
        return
    os.chown(folder, uid, uid)


def _scratch(disk: Disk, path: str) -> Stack:
    """Under a key that nobody has but this kernel, and that ends with it."""
    stack = Stack(f"scratch-{disk.name}", path, Layout(disk.size), Keys(os.urandom(32), os.urandom(32)))
    stack.make(0, os.urandom(32), lasting=False)
    try:
        make_file_system(stack.path, disk.size, lasting=False)
    except BaseException:
        stack.close()
        raise
    return stack
