"""Devices through their registers and queues, with friendly and hostile drivers."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import RAM, Driver, DriverQueue

from vambrace.errors import ConfigError, KvmError
from vambrace.virtio import block
from vambrace.virtio.block import Block
from vambrace.virtio.console import Console
from vambrace.virtio.device import VERSION_1
from vambrace.virtio.entropy import Entropy
from vambrace.virtio.vsock import Vsock

WRITE = 2
NEEDS_RESET = 64
FLUSH, DISCARD = 1 << 9, 1 << 13
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Driver, bytes]]:
    contents = os.urandom(64 << 10)
    path = tmp_path / "disk"
    path.write_bytes(contents)
    driver = Driver(Block(os.open(path, os.O_RDONLY), "base"))
    driver.start()
    yield driver, contents
    driver.close()


def request(kind: int, sector: int) -> tuple[bytes, int]:
    return struct.pack("<IIQ", kind, 0, sector), 0


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[tuple[Driver, Path]]:
    """A disk that the guest may write to: 16 blocks of ones."""
    path = tmp_path / "volume"
    path.write_bytes(b"\1" * (64 << 10))
    driver = Driver(Block(os.open(path, os.O_RDWR), "root", writable=True))
    driver.start(VERSION_1 | FLUSH | DISCARD)
    yield driver, path
    driver.close()


# --- transport --------------------------------------------------------------------------------------------


def test_identifies_itself(disk: tuple[Driver, bytes]) -> None:
    driver, contents = disk
    assert [driver.get(0), driver.get(4), driver.get(8)] == [0x74726976, 2, 2]
    assert driver.get(0x100) == len(contents) // 512
    assert driver.get(0xB0) == 0xFFFF_FFFF  # no shared memory
    assert driver.transport.read(0x1000 - 4, 8) == bytes(8)
    assert driver.transport.read(1, 4) == bytes(4)
    assert driver.transport.read(0, 8) == bytes(8)


def test_refuses_features_that_were_not_offered() -> None:
    driver = Driver(Entropy())
    driver.features(VERSION_1 | 1 << 28)
    assert not driver.get(0x70) & 8
    driver.set(0x70, 0)
    driver.features(0)  # a legacy driver
    assert not driver.get(0x70) & 8
    driver.close()


def test_a_wrong_queue_needs_a_reset_and_recovers_by_it() -> None:
    driver = Driver(Entropy())
    driver.features(VERSION_1)
    wrong = DriverQueue(driver.memory, 8)
    wrong.used_ring = RAM + driver.memory.size
    driver.set_queue(0, wrong)
    assert driver.get(0x70) & NEEDS_RESET
    assert driver.get(0x60) & 2  # a change of configuration is told
    driver.set(0x64, 2)
    assert not driver.get(0x60) & 2
    driver.transport.process(0)
    driver.set(0x70, 0)
    assert driver.get(0x70) == 0
    driver.queues = [DriverQueue(driver.memory, 8)]
    driver.start()
    head = driver.ask(0, [(bytes(8), WRITE)])
    assert driver.queues[0].used() == [(head, 8)]
    driver.close()


def test_after_a_failure_nothing_starts_but_after_a_reset() -> None:
    """Not even if the driver goes on as if nothing had been: its rings are not looked at again, its buffers neither."""
    driver = Driver(Entropy())
    driver.features(VERSION_1)
    wrong = DriverQueue(driver.memory, 8)
    wrong.used_ring = RAM + driver.memory.size
    driver.set_queue(0, wrong)
    driver.set_queue(0, driver.queues[0])
    driver.set(0x70, 15)
    assert driver.get(0x70) & (NEEDS_RESET | 4) == NEEDS_RESET
    driver.ask(0, [(bytes(8), WRITE)])
    assert driver.queues[0].used() == []
    driver.close()


def test_driver_without_features_needs_a_reset() -> None:
    driver = Driver(Entropy())
    driver.set(0x70, 7)
    assert driver.get(0x70) & NEEDS_RESET
    driver.close()


def test_queue_cannot_be_moved_while_it_is_used(disk: tuple[Driver, bytes]) -> None:
    driver, contents = disk
    driver.set(0x30, 0)
    driver.set(0x44, 0)
    driver.set(0x80, 0)
    head = driver.ask(0, [request(0, 0), (bytes(512), WRITE), (b"\xff", WRITE)])
    assert driver.answer(0, head, 1, 512) == contents[:512]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    writes=st.lists(
        st.tuples(
            st.sampled_from([0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x94, 0xA0, 0x100, 3]),
            st.one_of(st.integers(0, 16), st.sampled_from([RAM, 255, 0xFFFF_FFFF])),
        ),
        max_size=60,
    )
)
def test_no_sequence_of_register_writes_raises(writes: list[tuple[int, int]]) -> None:
    driver = Driver(Console(lambda data: None, None))
    for offset, value in writes:
        driver.set(offset, value)
        driver.get(offset)
        for index in range(6):
            driver.transport.process(index)
    driver.close()


def test_a_disk_reads_in_turns(disk: tuple[Driver, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits beyond the bound is served after the others had their turn; a larger request is refused."""
    driver, contents = disk
    monkeypatch.setattr(block, "READ_LIMIT", 1024)
    queue = driver.queues[0]
    heads = [queue.add([request(0, 2 * turn), (bytes(1024), WRITE), (b"\xff", WRITE)]) for turn in range(2)]
    kick = driver.transport.kicks[0]
    os.eventfd_read(kick)  # that of the start
    for turn, head in enumerate(heads):
        driver.transport.process(0)
        assert queue.used() == [(head, 1025)]
        assert driver.answer(0, head, 1, 1024) == contents[1024 * turn :][:1024]
        assert os.eventfd_read(kick) == 1, "it goes on later"
    head = driver.ask(0, [request(0, 0), (bytes(1536), WRITE), (b"\xff", WRITE)])
    assert queue.used() == [(head, 1)] and driver.answer(0, head, 2, 1) == b"\1"


# --- entropy ----------------------------------------------------------------------------------------------


def test_entropy_fills_what_it_is_given_up_to_its_limit() -> None:
    driver = Driver(Entropy())
    driver.start()
    head = driver.ask(0, [(bytes(64), WRITE)])
    assert driver.queues[0].used() == [(head, 64)]
    assert driver.answer(0, head, 0, 64) != bytes(64)
    big = driver.ask(0, [(bytes(20000), WRITE)])
    assert driver.queues[0].used() == [(big, 4096)]
    driver.close()


# --- disk -------------------------------------------------------------------------------------------------


def test_disk_reads_into_scattered_buffers(disk: tuple[Driver, bytes]) -> None:
    driver, contents = disk
    parts = [request(0, 3), (bytes(1024), WRITE), (bytes(512), WRITE), (b"\xff", WRITE)]
    head = driver.ask(0, parts)
    assert driver.queues[0].used() == [(head, 1537)]
    data = driver.answer(0, head, 1, 1024) + driver.answer(0, head, 2, 512)
    assert data == contents[1536:3072]
    assert driver.answer(0, head, 3, 1) == b"\0"


@pytest.mark.parametrize(
    ("kind", "sector", "length", "status"),
    [
        (0, 128, 512, 1),
        (0, 127, 1024, 1),
        (0, (1 << 64) - 1, 512, 1),
        (0, 0, 100, 1),
        (4, 0, 512, 2),
        (99, 0, 512, 2),
    ],
)
def test_disk_refuses_what_it_cannot_do(
    disk: tuple[Driver, bytes], kind: int, sector: int, length: int, status: int
) -> None:
    driver, _ = disk
    head = driver.ask(0, [request(kind, sector), (bytes(length), WRITE), (b"\xff", WRITE)])
    assert driver.answer(0, head, 2, 1) == bytes([status])
    assert driver.answer(0, head, 1, length) == bytes(length)


def test_disk_is_never_written(disk: tuple[Driver, bytes], tmp_path: Path) -> None:
    driver, contents = disk
    head = driver.ask(0, [request(1, 0), (bytes(512), 0), (b"\xff", WRITE)])
    assert driver.answer(0, head, 2, 1) == b"\x01"
    assert (tmp_path / "disk").read_bytes() == contents


def test_disk_tells_its_name(disk: tuple[Driver, bytes]) -> None:
    driver, _ = disk
    head = driver.ask(0, [request(8, 0), (bytes(20), WRITE), (b"\xff", WRITE)])
    assert driver.answer(0, head, 1, 20) == b"base".ljust(20, b"\0")


@pytest.mark.parametrize(
    "parts",
    [
        [request(0, 0)],
        [request(0, 0), (bytes(512), WRITE)],
        [(b"short", 0), (b"\xff", WRITE)],
        [(b"\xff", WRITE)],
    ],
)
def test_broken_disk_requests_need_a_reset(disk: tuple[Driver, bytes], parts: list[tuple[bytes, int]]) -> None:
    driver, _ = disk
    driver.ask(0, parts)
    assert driver.get(0x70) & NEEDS_RESET
    assert driver.transport.failure


def test_disk_that_was_cut_short_is_an_error_of_that_request(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    driver = Driver(Block(os.open(path, os.O_RDONLY), "base"))
    driver.start()
    os.truncate(path, 512)
    head = driver.ask(0, [request(0, 0), (bytes(4096), WRITE), (b"\xff", WRITE)])
    assert driver.answer(0, head, 2, 1) == b"\x01"
    driver.close()


def test_disk_file_must_be_whole_sectors(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(513))
    file = os.open(tmp_path / "odd", os.O_RDONLY)
    with pytest.raises(ConfigError, match="sectors"):
        Block(file, "base")
    with pytest.raises(OSError):
        os.fstat(file)


# --- console ----------------------------------------------------------------------------------------------


# --- socket -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFF_FFFF, -1])
def test_vsock_refuses_addresses_that_are_no_guests(cid: int) -> None:
    device = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(KvmError, match="not the address of a guest"):
        Vsock(device, cid)
    with pytest.raises(OSError):
        os.fstat(device)


# --- a disk that is written to ----------------------------------------------------------------------------


def ask(driver: Driver, *parts: tuple[bytes, int]) -> int:
    """Send one request without data to read; its status."""
    head = driver.ask(0, [*parts, (b"\xff", WRITE)])
    return driver.answer(0, head, len(parts), 1)[0]


def test_what_is_written_is_on_the_disk(volume: tuple[Driver, Path]) -> None:
    driver, path = volume
    data = os.urandom(1536)
    assert ask(driver, request(1, 3), (data[:700], 0), (data[700:], 0)) == OK
    assert path.read_bytes() == b"\1" * 1536 + data + b"\1" * (61 * 1024 + 512 - 512)
    # The header and what follows in one buffer, as no driver of Linux does.
    header, _ = request(1, 0)
    assert ask(driver, (header + bytes(512), 0)) == OK
    assert path.read_bytes()[:1024] == bytes(512) + b"\1" * 512
    assert ask(driver, request(4, 0)) == OK  # flush


def test_writes_that_cannot_be_change_nothing(volume: tuple[Driver, Path]) -> None:
    driver, path = volume
    before = path.read_bytes()
    last = (64 << 10) // 512
    for sector, data in ((last, bytes(512)), (last - 1, bytes(1024)), (1 << 60, bytes(512)), (0, bytes(100))):
        assert ask(driver, request(1, sector), (data, 0)) == IO_ERROR
    assert ask(driver, request(99, 0)) == UNSUPPORTED
    assert path.read_bytes() == before and path.stat().st_size == len(before)


def test_discarded_space_goes_back_and_reads_as_zeros(volume: tuple[Driver, Path]) -> None:
    driver, path = volume
    os.sync()
    blocks = path.stat().st_blocks
    pieces = struct.pack("<QII", 8, 16, 0) + struct.pack("<QII", 64, 8, 0)
    assert ask(driver, request(11, 0), (pieces, 0)) == OK
    found = path.read_bytes()
    assert found == b"\1" * 4096 + bytes(8192) + b"\1" * 20480 + bytes(4096) + b"\1" * 28672
    assert path.stat().st_blocks < blocks and path.stat().st_size == 64 << 10


@pytest.mark.parametrize(
    ("piece", "status"),
    [
        (struct.pack("<QII", 120, 16, 0), IO_ERROR),  # beyond the end
        (struct.pack("<QII", 1 << 60, 8, 0), IO_ERROR),
        (struct.pack("<QII", 0, 8, 1), UNSUPPORTED),  # a flag
        (struct.pack("<QII", 0, 8, 0)[:15], UNSUPPORTED),
        (struct.pack("<QII", 0, 8, 0) * 17, UNSUPPORTED),
        # The second one is wrong: nor is the first one done.
        (struct.pack("<QII", 0, 8, 0) + struct.pack("<QII", 0, 1 << 23, 0), IO_ERROR),
    ],
)
def test_discards_that_cannot_be_change_nothing(volume: tuple[Driver, Path], piece: bytes, status: int) -> None:
    driver, path = volume
    assert ask(driver, request(11, 0), (piece, 0)) == status
    assert path.read_bytes() == b"\1" * (64 << 10)


def test_a_read_only_disk_takes_no_write_flush_or_discard(disk: tuple[Driver, bytes]) -> None:
    driver, contents = disk
    assert ask(driver, request(1, 0), (bytes(512), 0)) == IO_ERROR
    assert ask(driver, request(4, 0)) == UNSUPPORTED
    assert ask(driver, request(11, 0), (struct.pack("<QII", 0, 8, 0), 0)) == UNSUPPORTED
    head = driver.ask(0, [request(0, 0), (bytes(512), WRITE), (b"\xff", WRITE)])
    assert driver.answer(0, head, 1, 512) == contents[:512]
