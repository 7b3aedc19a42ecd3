"""What becomes of a volume that a host changes, puts back or mixes. The host's deeds are done to the disk from inside;
a broker is played: it compares and sets."""

import hashlib
import os

from played import Played
from vambrace_agent import AgentError
from vambrace_agent.settings import Application, Disk
from vambrace_agent.storage import Layout
from vambrace_agent.volumes import SLOTS, Header, Volumes, find

MIB = 1 << 20
MOUNT = "/run/vambrace/volumes/volume-records"


class Broker(Played):
    """Compares and sets, and may fall silent."""

    def __init__(self):
        self.key, self.last, self.silent = os.urandom(32), (0, b""), 0

    @property
    def generation(self):
        return self.last[0]

    def admits(self, generation, state):
        return (generation, state) == self.last

    def commit(self, state):
        if self.silent:
            self.silent -= 1
            raise AgentError("nobody answers")
        self.last = (self.last[0] + 1, state)


def device(serial, data=None):
    """All of a disk, or ``data`` in its place."""
    fd = os.open(find(serial), os.O_RDWR)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        if data is None:
            return b"".join(iter(lambda: file.read(MIB), b""))
        file.write(data)
        os.fsync(fd)
    return data


broker = Broker()
SIZE = len(device("volume-0"))
layout = Layout(SIZE)
of = {"name": "a", "command": [], "environment": {}, "directory": "/", "restarts": 0, "results": [], "memory": 1 << 25}
fields = {"name": "records", "serial": "volume-0", "application": "a", "size": SIZE, "mount": "/data/r", "key": "a/b/c"}


def opened():
    volumes = Volumes(broker, None)
    volumes.attach(Disk(fields), Application(1, of))
    return volumes


def tell(scene):
    """How it comes out to open the volume and to read what is on it."""
    try:
        volumes = opened()
    except AgentError as error:
        print(f"{scene}: refused: {error}", flush=True)
        return
    try:
        with open(f"{MOUNT}/file", "rb") as file:
            print(f"{scene}: opens: {file.read(7).decode()}", flush=True)
    except OSError as error:
        print(f"{scene}: opens: {error.strerror}", flush=True)
    volumes.close()


def write(word):
    volumes = opened()
    with open(f"{MOUNT}/file", "wb") as file:
        file.write(word * (256 << 10))
        os.fsync(file.fileno())
    volumes.close()


def at(image, generation):
    """The broker knows this generation, which is in ``image``, as the last one."""
    block = image[SLOTS[generation % 2] :][:4096]
    assert Header.decode(block).generation == generation
    broker.last = (generation, hashlib.sha256(block).digest())


os.makedirs("/run/vambrace", mode=0o700)
write(b"first  ")
one = device("volume-0")
write(b"second ")
two = device("volume-0")
print(f"plaintext: {b'first  ' * 9 in one}, {b'second ' * 9 in two}", flush=True)
device("volume-0", one)
tell("an older copy")
device("volume-0", two[: layout.data] + one[layout.data :])
tell("the newest header and tags, older data")
# Generation 3 has the place of 1. Of 1 are tags and data, of 3 is the header.
at(two, 2)
device("volume-0", two)
write(b"third  ")
three = device("volume-0")
device("volume-0", three[:MIB] + one[MIB:])
tell("the newest header, older tags and data")
flipped = bytearray(three)
for place in range(layout.data, SIZE, 4096):
    flipped[place + 7] ^= 1
at(three, 3)
device("volume-0", bytes(flipped))
tell("a bit of each block")
journal = bytearray(three)
journal[layout.tags_at(1) + 8] ^= 1
at(three, 3)
device("volume-0", bytes(journal))
tell("a bit of the superblock of the tags")
at(three, 3)
device("volume-0", three)
broker.silent = 2
tell("a header that is not committed")
tell("after that")
broker.silent = 1
tell("an answer that is lost")
kept = device("volume-0")
broker.key, broker.last = os.urandom(32), (0, b"")
tell("another key")
device("volume-0", bytes(MIB) + kept[MIB:])
broker.key, broker.last = os.urandom(32), (0, b"")
tell("a new volume on a used disk")
fields |= {"serial": "large", "size": len(device("large"))}
broker.last = (0, b"")
tell("a disk with copies of the superblock")
print("end: of it", flush=True)
