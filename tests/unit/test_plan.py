"""Memory map, device tree and boot plan: pure functions."""

from __future__ import annotations

import struct

import fdt
import pytest
from config_factory import MIB, make_kernel, make_realm

from vambrace.config import MAX_VCPUS, Zone
from vambrace.errors import ConfigError
from vambrace.machine import layout, plan_boot
from vambrace.machine.devicetree import build_tree
from vambrace.machine.kernel import parse_image
from vambrace.measure import measure_launch

KERNEL = make_kernel()
INITRD = b"initrd" * 5000


def cells(tree: fdt.FDT, name: str, path: str) -> list[int]:
    return list(tree.get_property(name, path).data)


def test_segments_are_in_order_inside_the_system_zone() -> None:
    config = make_realm()
    plan = plan_boot(config, KERNEL, INITRD)
    end = layout.RAM
    for segment in plan.segments:
        assert segment.gpa % layout.PAGE == 0
        assert segment.gpa >= end
        end = segment.gpa + len(segment.data)
    assert end <= plan.zones[0].base + plan.zones[0].size
    assert [segment.data for segment in plan.segments[:2]] == [KERNEL, INITRD]
    assert plan.segments[1].gpa >= layout.RAM + 1 * MIB  # above .bss


def test_zones_follow_each_other_without_gaps() -> None:
    config = make_realm(("one", "two"))
    plan = plan_boot(config, KERNEL, INITRD)
    assert [zone.name for zone in plan.zones] == ["system", "one", "two"]
    assert [zone.base for zone in plan.zones] == [0x4000_0000, 0x4800_0000, 0x4900_0000]
    assert [zone.percent for zone in plan.zones] == [80, 80, 80]
    assert plan.end == 0x4A00_0000


def test_only_the_first_vcpu_runs_at_the_kernel_with_the_tree() -> None:
    plan = plan_boot(make_realm(vcpus=3), KERNEL, INITRD)
    boot, *others = plan.vcpus
    assert boot.registers == {"pc": plan.segments[0].gpa, "x0": plan.segments[2].gpa, "pstate": 0x3C5}
    assert boot.powered_on
    assert [(vcpu.index, vcpu.registers, vcpu.powered_on) for vcpu in others] == [(1, {}, False), (2, {}, False)]


def test_the_same_input_gives_the_same_measurement_and_any_other_does_not() -> None:
    config = make_realm()
    digest = measure_launch(config, plan_boot(config, KERNEL, INITRD))
    assert digest == measure_launch(config, plan_boot(config, memoryview(KERNEL), memoryview(INITRD)))
    changed = [
        (config, KERNEL[:-1] + b"\x00", INITRD),
        (config, KERNEL, INITRD + b"\0"),
        (make_realm(vcpus=2), KERNEL, INITRD),
        (make_realm(cmdline="quiet x"), KERNEL, INITRD),
    ]
    digests = {measure_launch(c, plan_boot(c, k, i)) for c, k, i in changed}
    assert digest not in digests
    assert len(digests) == len(changed)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="do not fit") as caught:
        plan_boot(make_realm(), KERNEL, bytes(128 * MIB))
    assert caught.value.hint is not None
    assert "132 MiB" in caught.value.hint
    with pytest.raises(ConfigError, match="initrd is empty"):
        plan_boot(make_realm(), KERNEL, b"")


# --- kernel header ----------------------------------------------------------------------------------------


def image(text_offset: int = 0, size: int = 1 << 20, flags: int = 10, magic: bytes = b"ARM\x64") -> bytes:
    return struct.pack("<8xQQQ24s4s4x", text_offset, size, flags, b"", magic).ljust(4096, b"\0")


def test_reads_a_kernel_header() -> None:
    parsed = parse_image(image(0x80000, 1 << 21))
    assert (parsed.text_offset, parsed.size) == (0x80000, 1 << 21)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (b"", "not an arm64 Image"),
        (b"\x7fELF" + bytes(100), "not an arm64 Image"),
        (image()[:63], "not an arm64 Image"),
        (image(magic=b"ARMd"[:3] + b"\0"), "not an arm64 Image"),
        (b"\x1f\x8b" + bytes(100), "compressed"),
        (b"MZ\0\0zimg" + bytes(100), "compressed"),
        (image(flags=1), "big-endian"),
        (image(size=0), "no size"),
        (image(size=4095), "contradicts"),
        (image(size=1 << 40), "contradicts"),
        (image(text_offset=0x80001), "contradicts"),
        (image(text_offset=2 << 20), "contradicts"),
    ],
)
def test_refuses_kernels(kernel: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_image(kernel)


# --- device tree ------------------------------------------------------------------------------------------


def tree_of(config_vcpus: int = 2) -> fdt.FDT:
    config = make_realm(("one", "two"), vcpus=config_vcpus)
    return fdt.parse_dtb(bytes(plan_boot(config, KERNEL, INITRD).segments[2].data))


def test_tree_has_a_numa_node_for_each_zone() -> None:
    tree = tree_of()
    for node, base, size in ((0, 0x4000_0000, 128 * MIB), (1, 0x4800_0000, 16 * MIB), (2, 0x4900_0000, 16 * MIB)):
        path = f"/memory@{base:x}"
        assert cells(tree, "reg", path) == [0, base, 0, size]
        assert cells(tree, "numa-node-id", path) == [node]
    matrix = cells(tree, "distance-matrix", "/distance-map")
    triples = [tuple(matrix[i : i + 3]) for i in range(0, len(matrix), 3)]
    assert len(triples) == 9
    assert all(distance == (10 if a == b else 20) for a, b, distance in triples)


def test_tree_has_cpus_on_node_0_and_psci() -> None:
    tree = tree_of(2)
    assert [node.name for node in tree.get_node("/cpus").nodes] == ["cpu@0", "cpu@1"]
    assert cells(tree, "numa-node-id", "/cpus/cpu@1") == [0]
    assert tree.get_property("enable-method", "/cpus/cpu@1").value == "psci"
    assert tree.get_property("method", "/psci").value == "hvc"


def test_tree_has_devices_in_slot_order_with_their_own_interrupts() -> None:
    tree = tree_of()
    slots = layout.device_slots(make_realm().disks)
    assert slots == ("console", "disk base", "disk apps", "vsock", "entropy", "balloon")
    nodes = [node for node in tree.root.nodes if node.name.startswith("virtio_mmio@")]
    assert [node.name for node in nodes] == [f"virtio_mmio@{layout.device_address(n):x}" for n in range(6)]
    assert [cells(tree, "interrupts", "/" + node.name) for node in nodes] == [[0, n, 1] for n in range(6)]


def test_tree_has_command_line_and_initrd_but_no_randomness() -> None:
    config = make_realm()
    plan = plan_boot(config, KERNEL, INITRD)
    data = bytes(plan.segments[2].data)
    tree = fdt.parse_dtb(data)
    assert tree.get_property("bootargs", "/chosen").value == config.cmdline
    start = plan.segments[1].gpa
    assert cells(tree, "linux,initrd-start", "/chosen") == [0, start]
    assert cells(tree, "linux,initrd-end", "/chosen") == [0, start + len(INITRD)]
    assert b"seed" not in data


def test_tree_is_the_same_every_time() -> None:
    arguments = {
        "cmdline": "",
        "vcpus": 16,
        "zones": [(layout.RAM + n * 16 * MIB, 16 * MIB) for n in range(16)],
        "initrd": (1, 2),
        "devices": 12,
    }
    first = build_tree(**arguments)
    assert first == build_tree(**arguments)
    assert len(first) < layout.BLOCK


def test_the_map_does_not_overlap_itself() -> None:
    regions = sorted(
        [
            (layout.GIC_DISTRIBUTOR, layout.GIC_DISTRIBUTOR_SIZE),
            (layout.GIC_REDISTRIBUTORS, layout.GIC_REDISTRIBUTOR_SIZE * MAX_VCPUS),
            (layout.MMIO, layout.MMIO_SIZE * layout.MAX_DEVICES),
            (layout.RAM, 1 << 40),
        ]
    )
    for (base, size), (following, _) in zip(regions, regions[1:], strict=False):
        assert base + size <= following


def test_zone_sizes_decide_where_the_next_begins() -> None:
    config = make_realm(zones=(Zone("system", 256 * MIB, 0, True), Zone("analysis", 16 * MIB, 0)))
    assert plan_boot(config, KERNEL, INITRD).zones[1].base == layout.RAM + 256 * MIB
