"""The launch measurement: a fixed vector, and one changed bit anywhere changes it."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.errors import ConfigError
from vambrace.measure import PAGE, LaunchMeasurement, measure_launch


@dataclass(frozen=True)
class Config:
    data: bytes = b'{"schema":"vambrace.realm/1"}'
    hash: str = "sha-256"

    def encode(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class Segment:
    gpa: int
    data: bytes


@dataclass(frozen=True)
class Vcpu:
    index: int = 0
    registers: dict[str, int] = field(default_factory=lambda: {"pc": 0x40200000, "x0": 0x48000000})
    powered_on: bool = True


@dataclass(frozen=True)
class Plan:
    segments: tuple[Segment, ...]
    vcpus: tuple[Vcpu, ...]


PLAN = Plan(
    (Segment(0x40000000, bytes(range(256)) * 33), Segment(0x40010000, b"initrd")),
    (Vcpu(), Vcpu(index=1, registers={}, powered_on=False)),
)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def by_hand(config: Config, plan: Plan) -> bytes:
    """The same value, written a second time straight from the specification."""

    def sha(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    def extend(kind: int, value: bytes, gpa: int, length: int, content: bytes) -> bytes:
        head = struct.pack("<QQ", kind, 256) + value.ljust(64, b"\0") + struct.pack("<QQ", gpa, length)
        return sha((head + content).ljust(256, b"\0"))

    value = extend(3, b"", 0, len(config.data), sha(config.data))
    for segment in plan.segments:
        padded = segment.data + bytes(-len(segment.data) % PAGE)
        pages = b"".join(sha(padded[i : i + PAGE]) for i in range(0, len(padded), PAGE))
        value = extend(0, value, segment.gpa, len(segment.data), sha(pages))
    for vcpu in plan.vcpus:
        content = struct.pack("<QQ", vcpu.index, vcpu.powered_on)
        for name, register in sorted(vcpu.registers.items()):
            content += struct.pack("<Q", len(name)) + name.encode() + register.to_bytes(16, "little")
        value = extend(1, value, 0, len(content), sha(content))
    return value


def test_fixed_vector() -> None:
    value = measure_launch(Config(), PLAN)
    assert value == by_hand(Config(), PLAN)
    assert value.hex() == "8aa9d36f33ee2dc4a442c14cf12a088229842eff35b9dee7227561e05c467dd4"


def test_measuring_while_loading_gives_the_same() -> None:
    running = LaunchMeasurement("sha-256", Config().encode())
    for segment in PLAN.segments:
        running.data(segment.gpa, memoryview(bytearray(segment.data)))
    for vcpu in PLAN.vcpus:
        running.vcpu(vcpu)
    assert running.digest() == measure_launch(Config(), PLAN)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_changed_bit_changes_it(data: st.DataObject) -> None:
    original = measure_launch(Config(), PLAN)
    part = data.draw(st.integers(0, len(PLAN.segments)))
    if part == len(PLAN.segments):
        config = Config().data
        changed = measure_launch(Config(flip(config, data.draw(st.integers(0, len(config) * 8 - 1)))), PLAN)
    else:
        segments = list(PLAN.segments)
        content = segments[part].data
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        segments[part] = replace(segments[part], data=flip(content, bit))
        changed = measure_launch(Config(), replace(PLAN, segments=tuple(segments)))
    assert changed != original


VCPU = Vcpu()


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, segments=PLAN.segments[::-1]),
        replace(PLAN, segments=PLAN.segments[:1]),
        replace(PLAN, segments=(replace(PLAN.segments[0], gpa=0x40001000), PLAN.segments[1])),
        replace(PLAN, segments=(PLAN.segments[0], replace(PLAN.segments[1], data=b"initrd\0"))),
        replace(PLAN, vcpus=PLAN.vcpus[:1]),
        replace(PLAN, vcpus=PLAN.vcpus[::-1]),
        replace(PLAN, vcpus=(replace(VCPU, powered_on=False), PLAN.vcpus[1])),
        replace(PLAN, vcpus=(replace(VCPU, index=2), PLAN.vcpus[1])),
        replace(PLAN, vcpus=(replace(VCPU, registers={"pc": 0x40200000, "x1": 0x48000000}), PLAN.vcpus[1])),
        *(
            replace(PLAN, vcpus=(replace(VCPU, registers={"pc": 0x40200000 ^ (1 << i), "x0": 0x48000000}),))
            for i in range(64)
        ),
    ],
)
def test_another_plan_changes_it(plan: Plan) -> None:
    assert measure_launch(Config(), plan) != measure_launch(Config(), PLAN)


def test_order_of_registers_does_not_count() -> None:
    swapped = replace(VCPU, registers={"x0": 0x48000000, "pc": 0x40200000})
    assert measure_launch(Config(), replace(PLAN, vcpus=(swapped, PLAN.vcpus[1]))) == measure_launch(
        Config(), PLAN
    )


def test_empty_memory_and_parameters_are_measured() -> None:
    empty = LaunchMeasurement("sha-256", b"")
    first = empty.digest()
    assert len(first) == 32
    empty.data(0, b"")
    assert empty.digest() != first


@pytest.mark.skipif("sm3" not in hashlib.algorithms_available, reason="hashlib has no SM3 here")
def test_sm3_is_another_value() -> None:
    value = measure_launch(Config(hash="sm3"), PLAN)
    assert len(value) == 32 and value != measure_launch(Config(), PLAN)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="not known"):
        LaunchMeasurement("md5", b"")
    measurement = LaunchMeasurement("sha-256", b"")
    for gpa in (1, 4095, -4096, 1 << 64):
        with pytest.raises(ConfigError, match="address"):
            measurement.data(gpa, b"x")
    for value in (-1, 1 << 128):
        with pytest.raises(ConfigError, match="register pc"):
            measurement.vcpu(Vcpu(registers={"pc": value}))


def test_pages_are_data_by_the_hashes_of_its_pages() -> None:
    data = bytes(range(251)) * 40
    whole, paged = LaunchMeasurement("sha-256", b""), LaunchMeasurement("sha-256", b"")
    whole.data(0x40000000, data)
    padded = data.ljust(-(-len(data) // PAGE) * PAGE, b"\0")
    digests = [hashlib.sha256(padded[start : start + PAGE]).digest() for start in range(0, len(padded), PAGE)]
    paged.pages(0x40000000, len(data), b"".join(digests))
    assert paged.digest() == whole.digest()
    for gpa, size, hashes in ((0x40000001, len(data), digests), (0x40000000, len(data), digests[1:])):
        with pytest.raises(ConfigError, match="cannot be measured"):
            paged.pages(gpa, size, b"".join(hashes))
