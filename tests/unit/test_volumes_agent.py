"""Which state of a volume counts, as the agent decides it: with a real broker, and without one."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_world import VOLUME, World
from hypothesis import given
from hypothesis import strategies as st
from vambrace_agent import AgentError
from vambrace_agent.sealing import Sealing
from vambrace_agent.storage import BLOCK, LEAST, MIB, TAG_BYTES, Keys, Layout, derive, superblock_copies
from vambrace_agent.volumes import ByBroker, BySeal, Header, give

from vambrace.debian.tools import run

SIZE = 64 * MIB


def first(key: bytes, sealed: bytes = b"") -> tuple[Header, bytes]:
    """The header of generation 1, and its block."""
    header = Header(1, SIZE, os.urandom(32), os.urandom(32), sealed)
    return header, header.encode(key)


# --- headers and keys ------------------------------------------------------------------------------------------


def test_a_header_is_read_as_it_was_written_and_no_other_key_wrote_it() -> None:
    key = os.urandom(32)
    header, block = first(key, b"sealed")
    found = Header.decode(block)
    assert found is not None and len(block) == BLOCK
    assert (found.generation, found.size, found.salt, found.tags_salt, found.sealed) == (
        1, SIZE, header.salt, header.tags_salt, b"sealed",
    )  # fmt: skip
    assert found.genuine(block, key) and not found.genuine(block, os.urandom(32))


@given(st.integers(0, BLOCK - 1), st.binary(min_size=1, max_size=40))
def test_a_changed_header_is_none(place: int, text: bytes) -> None:
    key = bytes(32)
    block = Header(7, SIZE, bytes(32), bytes(range(32)), b"sealed").encode(key)
    changed = (block[:place] + text + block[place + len(text) :])[:BLOCK]
    found = Header.decode(changed)
    assert found is None or found.genuine(changed, key) == (changed == block)


@pytest.mark.parametrize("block", [bytes(BLOCK), b"\xff" * BLOCK, b"vambrace-volume1" + b"\xff" * (BLOCK - 16)])
def test_what_is_no_header(block: bytes) -> None:
    found = Header.decode(block)
    assert found is None or not found.genuine(block, bytes(32))


def test_the_next_generation_has_the_other_place_and_another_salt() -> None:
    header, _ = first(bytes(32))
    following = header.following(b"")
    assert (following.generation, following.which, header.which) == (2, 0, 1)
    assert following.salt == header.salt and following.tags_salt != header.tags_salt


def test_keys_are_hkdf_and_differ() -> None:
    key, salt = os.urandom(32), os.urandom(32)
    extracted = hmac.digest(salt, key, "sha256")
    expected = hmac.new(extracted, b"vambrace-volume-1 tag\x01", hashlib.sha256).digest()
    keys = Keys(key, salt)
    assert keys.tag == derive(key, salt, b"tag", 32) == expected
    assert len(keys.cipher) == len(keys.tags(salt)) == 64 and keys.cipher[:32] != keys.cipher[32:]
    found = [keys.cipher[:32], keys.cipher[32:], keys.tag, keys.journal, keys.header, keys.tags(salt)[:32]]
    assert len({*found, keys.tags(os.urandom(32))[:32]}) == 7


@pytest.mark.parametrize("size", [LEAST, 64 * MIB, 1000 * MIB, 1 << 40])
def test_the_parts_of_a_disk_do_not_overlap(size: int) -> None:
    layout = Layout(size)
    ends = [MIB, layout.tags_at(1), layout.data, size]
    begins = [0, layout.tags_at(0), layout.tags_at(1), layout.data]
    assert begins[1:] == ends[:3] and layout.data + layout.data_size == size
    needed = BLOCK + layout.journal + layout.data_size // BLOCK * TAG_BYTES
    assert needed <= layout.tags and layout.data_size > 0
    assert size < 128 * MIB or layout.data_size / size > 0.9


@pytest.mark.parametrize("size", [0, LEAST - MIB, 64 * MIB + 512])
def test_a_disk_that_is_too_small(size: int) -> None:
    with pytest.raises(AgentError, match="too small"):
        Layout(size)


@pytest.mark.parametrize("mib", [32, 128, 129, 1 << 10, 30 << 10])
def test_the_copies_of_a_superblock_are_where_they_are_written(mib: int, tmp_path: Path) -> None:
    """By the tool itself: it changes a part of these blocks, so it reads what was never written."""
    disk = tmp_path / "disk"
    with disk.open("xb") as file:
        file.truncate(mib * MIB)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-i", str(1 << 20), disk])
    found = re.findall(r"Backup superblock at (\d+)", run(["dumpe2fs", disk]))
    assert superblock_copies(mib * MIB // BLOCK) == [int(block) for block in found]


# --- with a broker ---------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path).running() as world:
        world.store()
        yield world


def made(world: World) -> tuple[bytes, Header]:
    """A volume that was opened once: its key and its header."""
    keeper = ByBroker(world.realm(), VOLUME)
    assert keeper.current([]) is None and keeper.sealed() == b""
    header, _ = first(keeper.key)
    keeper.commit(header)
    return keeper.key, header


def test_only_the_last_state_opens(world: World) -> None:
    key, old = made(world)
    keeper = ByBroker(world.realm(), VOLUME)
    assert keeper.key == key and keeper.current([old]) is old
    new = old.following(b"")
    keeper.commit(new)
    # Both headers are on the disk; the newer one counts. Of an older copy neither does.
    assert ByBroker(world.realm(), VOLUME).current([old, new]) is new
    for found in ([old], [], [old, old.following(b"")], [first(key)[0]]):
        with pytest.raises(AgentError, match="older copy"):
            ByBroker(world.realm(), VOLUME).current(found)


def test_a_cut_between_header_and_commit_locks_nobody_out(world: World) -> None:
    _, old = made(world)
    written = old.following(b"")
    keeper = ByBroker(world.realm(), VOLUME)
    assert keeper.current([old, written]) is old
    another = old.following(b"")
    keeper.commit(another)
    with pytest.raises(AgentError, match="older copy"):
        ByBroker(world.realm(), VOLUME).current([old, written])
    assert ByBroker(world.realm(), VOLUME).current([another, old]) is another


def test_a_cut_while_it_is_made_begins_anew(world: World) -> None:
    keeper = ByBroker(world.realm(), VOLUME)
    header, _ = first(keeper.key)
    assert keeper.current([header]) is None
    with pytest.raises(AgentError, match="used before"):
        keeper.current([header, header.following(b"")])


def test_two_realms_with_one_volume(world: World) -> None:
    _, old = made(world)
    one, two = ByBroker(world.realm(), VOLUME), ByBroker(world.realm(instance=bytes(range(16))), VOLUME)
    assert one.current([old]) is two.current([old]) is old
    one.commit(old.following(b""))
    with pytest.raises(AgentError, match="another Realm has opened it meanwhile"):
        two.commit(old.following(b""))


def test_an_answer_that_is_lost_is_asked_for_again(world: World) -> None:
    """The broker has done it, or it has not: afterwards it is done, once."""
    _, old = made(world)
    for arrives in (True, False):
        streams: list[socket.socket] = []

        def dial(streams: list[socket.socket] = streams) -> socket.socket:
            streams.append(world.dial())
            return streams[-1]

        keeper = ByBroker(world.realm(dial=dial), VOLUME)
        new = old.following(b"")
        if arrives:
            released = keeper._released
            released.commit(new.state(keeper.key))
            released.generation, released.state = old.generation, old.state(keeper.key)
        keeper._session._connection.sock.shutdown(socket.SHUT_RDWR)
        keeper.commit(new)
        assert len(streams) == 2
        old = new
        assert ByBroker(world.realm(), VOLUME).current([new]) is new


def test_who_is_late_after_a_lost_answer_does_not_go_on(world: World) -> None:
    """Neither as the next generation of what another Realm has made of it meanwhile."""
    _, old = made(world)
    late, quick = ByBroker(world.realm(), VOLUME), ByBroker(world.realm(), VOLUME)
    new = old.following(b"")
    quick.commit(new)
    late._session._connection.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(AgentError, match="another Realm has opened it meanwhile"):
        late.commit(old.following(b""))
    assert ByBroker(world.realm(), VOLUME).current([new]) is new


def test_a_broker_that_refuses(world: World) -> None:
    with world.client() as client:
        client.put(VOLUME, None, world.policy(measurements=["00" * 32]))
    with pytest.raises(AgentError, match="the broker refuses"):
        ByBroker(world.realm(), VOLUME)


# --- without one -----------------------------------------------------------------------------------------------


def sealing(key: bytes) -> Sealing:
    return Sealing(0, lambda _version: key)


def test_a_sealed_volume_takes_the_newest_header_that_is_there() -> None:
    machine = os.urandom(32)
    keeper = BySeal(sealing(machine), "records", [bytes(BLOCK), bytes(BLOCK)])
    assert keeper.current([]) is None
    header, block = first(keeper.key, keeper.sealed())
    following = header.following(keeper.sealed())
    again = BySeal(sealing(machine), "records", [following.encode(keeper.key), block])
    assert again.key == keeper.key and again.current([header, following]) is following
    # Half a header is as good as none.
    torn = following.encode(keeper.key)[:512].ljust(BLOCK, b"\0")
    assert BySeal(sealing(machine), "records", [torn, block]).key == keeper.key


def test_a_sealed_volume_of_another_machine_or_name() -> None:
    machine = os.urandom(32)
    keeper = BySeal(sealing(machine), "records", [bytes(BLOCK)] * 2)
    _, block = first(keeper.key, keeper.sealed())
    for name, key in (("records", os.urandom(32)), ("others", machine)):
        with pytest.raises(AgentError, match="sealed by somebody else"):
            BySeal(sealing(key), name, [block, bytes(BLOCK)])


# --- whose its files are ---------------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system, as far as its folders go, which may lie deeper than Python's own means remove."""
    folder = tmp_path / "volume"
    (folder / "lost+found").mkdir(parents=True)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def owners(folder: Path) -> set[str]:
    """All owners of what is there, found by a program that knows no longest path."""
    done = subprocess.run(["find", ".", "-printf", "%U:%G\\n"], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("name", "depth"), [("n" * 255, 40), ("d", 1500)], ids=["beyond PATH_MAX", "deep"])
def test_all_of_a_volume_is_given(volume: Path, name: str, depth: int) -> None:
    place = os.open(volume, os.O_RDONLY)
    for level in range(depth):
        os.mkdir(name, dir_fd=place)
        os.mkdir(f"beside-{level}", dir_fd=place)
        os.symlink("/etc/passwd", "link", dir_fd=place)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=place))
        above, place = place, os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(above)
    os.close(place)
    passwd = Path("/etc/passwd").stat().st_uid
    give(str(volume), 4242)
    assert owners(volume) == {"4242:4242"} and Path("/etc/passwd").stat().st_uid == passwd
    assert not (volume / "lost+found").exists() and volume.stat().st_mode & 0o777 == 0o700
