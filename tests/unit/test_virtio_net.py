"""The network card through its registers, with friendly and hostile drivers."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from fakes.fake_vhost import FakeVhost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import RAM, Driver

from vambrace.errors import KvmError
from vambrace.virtio import net, vhost
from vambrace.virtio.device import VERSION_1
from vambrace.virtio.net import Card, Net

NEEDS_RESET = 64
MAC = bytes.fromhex("021122334455")
SET_BACKEND = 0x4008AF30
CSUM, GUEST_CSUM, MTU, MERGED, GUEST_TSO4 = 1 << 0, 1 << 1, 1 << 3, 1 << 15, 1 << 7
ACCESS_PLATFORM, CONTROL_QUEUE, RING_RESET = 1 << 33, 1 << 17, 1 << 40


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeVhost:
    fake = FakeVhost(os.open("/dev/null", os.O_RDWR))
    for module in (net, vhost):
        monkeypatch.setattr(module.fcntl, "ioctl", fake.ioctl)
    return fake


def card(kernel: FakeVhost, mac: bytes = MAC, mtu: int = 1500) -> Card:
    return Card(kernel.tap, os.open("/dev/null", os.O_RDWR), mac, mtu)


@pytest.fixture
def driver(kernel: FakeVhost) -> Iterator[Driver]:
    made = Driver(Net(card(kernel)))
    yield made
    made.close()


def offered(driver: Driver) -> int:
    halves = []
    for half in (0, 1):
        driver.set(0x14, half)
        halves.append(driver.get(0x10))
    return halves[0] | halves[1] << 32


def test_says_its_address_and_its_largest_packet(driver: Driver) -> None:
    assert driver.get(8) == 1
    assert driver.transport.read(0x100, 6) == MAC
    assert driver.transport.read(0x10A, 2) == (1500).to_bytes(2, "little")
    assert driver.transport.read(0x10C, 4) == bytes(4)


def test_offers_what_was_looked_at_only(driver: Driver, kernel: FakeVhost) -> None:
    """Whatever a later kernel has: no platform access, no control queue, no header that the tap does not make."""
    assert kernel.offered & ACCESS_PLATFORM and kernel.offered & 1 << 27
    features = offered(driver)
    assert features & (VERSION_1 | CSUM | GUEST_CSUM | MTU | MERGED) == VERSION_1 | CSUM | GUEST_CSUM | MTU | MERGED
    assert not features & (ACCESS_PLATFORM | CONTROL_QUEUE | RING_RESET | 1 << 27)
    driver.features(features | ACCESS_PLATFORM)
    assert not driver.get(0x70) & 8


def test_the_kernel_gets_rings_and_features(driver: Driver, kernel: FakeVhost) -> None:
    driver.start(VERSION_1 | MERGED | GUEST_CSUM | GUEST_TSO4 | MTU)
    assert driver.get(0x70) == 15
    assert kernel.features == VERSION_1 | MERGED, "the tap's features are not vhost's"
    assert kernel.offload == 3
    assert kernel.backends == {0: kernel.tap, 1: kernel.tap}
    assert kernel.memory == (1, 0, RAM, driver.memory.size, driver.memory.host, 0)
    assert list(kernel.kicks.values()) == list(driver.transport.kicks)
    assert set(kernel.calls.values()) == {driver.transport.interrupt}
    for index, queue in enumerate(driver.queues):
        host = [driver.memory.host_address(at, 1) for at in (queue.descriptors, queue.used_ring, queue.available)]
        assert kernel.addresses[index] == (*host, 0) and kernel.sizes[index] == queue.size


def test_a_reset_takes_the_rings_away(driver: Driver, kernel: FakeVhost) -> None:
    for _ in range(2):
        driver.start(VERSION_1 | GUEST_CSUM)
        assert kernel.backends == {0: kernel.tap, 1: kernel.tap}
        driver.set(0x70, 0)
        assert (kernel.backends, kernel.offload) == ({0: -1, 1: -1}, 0)


def test_a_driver_with_one_queue(driver: Driver, kernel: FakeVhost) -> None:
    driver.features(VERSION_1)
    driver.set_queue(0, driver.queues[0])
    driver.set(0x70, 15)
    assert driver.get(0x70) & NEEDS_RESET
    assert kernel.backends == {0: -1, 1: -1}


def test_segments_without_checksums_are_refused(driver: Driver, kernel: FakeVhost) -> None:
    driver.start(VERSION_1 | GUEST_TSO4)
    assert driver.get(0x70) & NEEDS_RESET
    assert kernel.backends == {0: -1, 1: -1}
    driver.set(0x70, 0)
    driver.start(VERSION_1)
    assert driver.get(0x70) == 15


def test_the_second_ring_that_the_kernel_refuses(driver: Driver, kernel: FakeVhost) -> None:
    """The first was attached by then: it is let go."""
    kernel.refuse[SET_BACKEND, 1] = errno.EFAULT
    driver.start()
    assert driver.get(0x70) & NEEDS_RESET
    assert kernel.backends == {0: -1, 1: -1}


@pytest.mark.parametrize(
    ("mac", "mtu"), [(b"", 1500), (MAC + b"x", 1500), (bytes([1, *MAC[1:]]), 1500), (MAC, 67), (MAC, 65536)]
)
def test_a_card_that_is_none(kernel: FakeVhost, mac: bytes, mtu: int) -> None:
    with pytest.raises(KvmError, match="its address or its packet size"):
        Net(card(kernel, mac, mtu))


def test_a_kernel_without_virtio_1(kernel: FakeVhost) -> None:
    kernel.offered = MERGED
    with pytest.raises(KvmError, match="does not speak virtio 1"):
        Net(card(kernel))


def test_a_device_that_is_not_vhost_net() -> None:
    with pytest.raises(KvmError, match="cannot take the device"):
        Net(Card(os.open("/dev/null", os.O_RDWR), os.open("/dev/null", os.O_RDWR), MAC, 1500))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    writes=st.lists(
        st.tuples(
            st.sampled_from([0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x70, 0x80, 0x84, 0x90, 0xA0, 0xA4, 0x100]),
            st.one_of(st.integers(0, 16), st.sampled_from([RAM, RAM + 0x2000, 128, 0xFFFF_FFFF, 1 << 5 | 1 << 15])),
        ),
        max_size=60,
    )
)
def test_whatever_a_driver_writes(kernel: FakeVhost, writes: list[tuple[int, int]]) -> None:
    """It breaks its card at most: never an error here, and what is attached has rings within memory."""
    kernel.owned, kernel.tap = False, os.open("/dev/null", os.O_RDWR)
    driver = Driver(Net(card(kernel)))
    try:
        for offset, value in writes:
            driver.set(offset, value)
            low, high = driver.memory.host, driver.memory.host + driver.memory.size
            if max(kernel.backends.values()) >= 0:
                assert all(low <= at < high for rings in kernel.addresses.values() for at in rings[:3])
        driver.set(0x70, 0)
        assert set(kernel.backends.values()) == {-1}
    finally:
        driver.close()
