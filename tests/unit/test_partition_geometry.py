"""The machine's caches, from files as Linux writes them, and from files as it should not."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from vambrace.errors import ConfigError, PartitionError
from vambrace.partition.geometry import Cache, configured, from_device_tree, from_sysfs, last_level, machine_caches

MIB = 1 << 20

#: Level, type, size, line, sets, ways of the caches that each CPU sees.
CACHES = [
    (1, "Data", "32K", 64, 64, 8),
    (1, "Instruction", "32K", 64, 64, 8),
    (2, "Unified", "1024K", 64, 2048, 8),
    (3, "Unified", "32768K", 64, 32768, 16),
]


def write_sysfs(root: Path, cpus: int = 2) -> Path:
    """A sysfs of ``cpus`` CPUs that share the last cache."""
    for cpu in range(cpus):
        for index, (level, kind, size, line, sets, ways) in enumerate(CACHES):
            folder = root / f"cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            values = {
                "type": kind,
                "level": level,
                "size": size,
                "coherency_line_size": line,
                "number_of_sets": sets,
                "ways_of_associativity": ways,
                "shared_cpu_list": f"0-{cpus - 1}" if level == 3 and cpus > 1 else cpu,
            }
            for name, value in values.items():
                (folder / name).write_text(f"{value}\n")
    return root


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return write_sysfs(tmp_path)


def test_sysfs(sysfs: Path) -> None:
    caches = from_sysfs(sysfs)
    assert [(cache.level, sorted(cache.cpus)) for cache in caches] == [
        *((1, [0]), (1, [1]), (2, [0]), (2, [1])),
        (3, [0, 1]),
    ]
    assert last_level(caches) == Cache(3, 32 * MIB, 64, 32768, 16, frozenset({0, 1}))


@pytest.mark.parametrize("missing", ["number_of_sets", "ways_of_associativity"])
def test_firmware_may_leave_one_number_out(sysfs: Path, missing: str) -> None:
    whole = from_sysfs(sysfs)
    for path in sysfs.glob(f"cpu*/cache/index*/{missing}"):
        path.unlink()
    assert from_sysfs(sysfs) == whole


def test_this_machine_is_told_of_or_refused_with_a_reason() -> None:
    try:
        caches = from_sysfs()
    except PartitionError as error:
        assert error.message and error.hint
    else:
        assert all(cache.size == cache.sets * cache.ways * cache.line for cache in caches)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("type", "Trace", "not known"),
        ("level", "three", "no number"),
        ("level", "0", "level of 0"),
        ("level", "9", "level of 9"),
        ("size", "32768G", "no size"),
        ("size", "-1K", "no size"),
        ("size", "32767K", "cannot have"),
        ("size", "9" * 12 + "M", "size of"),
        ("coherency_line_size", "0", "of 0 cannot be"),
        ("coherency_line_size", "", "no number"),
        ("coherency_line_size", "48", "line of 48"),
        ("number_of_sets", "0", "of 0 cannot be"),
        ("number_of_sets", "1" * 5000, "no short text"),
        ("ways_of_associativity", "0", "of 0 cannot be"),
        ("ways_of_associativity", "17", "cannot have"),
        ("ways_of_associativity", "\u0661", "no short text"),
        ("shared_cpu_list", "1-0", "no list"),
        ("shared_cpu_list", "0-99999999", "no list"),
        ("shared_cpu_list", "0-70000", "no list"),
        ("shared_cpu_list", "", "no list"),
        ("shared_cpu_list", "1", "is not shared by CPU 0"),
    ],
)
def test_what_cannot_be_is_refused(sysfs: Path, name: str, text: str, reason: str) -> None:
    (sysfs / "cpu0/cache/index3" / name).write_text(text)
    with pytest.raises(PartitionError) as raised:
        from_sysfs(sysfs)
    assert reason in raised.value.message and "\n" not in raised.value.message
    assert len(raised.value.message) < 200


def test_a_missing_file_and_a_folder_in_its_place(sysfs: Path) -> None:
    level = sysfs / "cpu0/cache/index3/level"
    level.unlink()
    with pytest.raises(PartitionError, match="level: No such file"):
        from_sysfs(sysfs)
    level.mkdir()
    with pytest.raises(PartitionError, match="level: Is a directory"):
        from_sysfs(sysfs)


def test_neither_sets_nor_ways(sysfs: Path) -> None:
    for name in ("number_of_sets", "ways_of_associativity"):
        (sysfs / "cpu0/cache/index3" / name).unlink()
    with pytest.raises(PartitionError, match="neither sets nor ways"):
        from_sysfs(sysfs)


def test_processors_that_disagree(sysfs: Path) -> None:
    folder = sysfs / "cpu1/cache/index3"
    (folder / "size").write_text("16384K")
    (folder / "number_of_sets").write_text("16384")
    with pytest.raises(PartitionError, match="CPUs 0,1 say different things"):
        from_sysfs(sysfs)
    (folder / "shared_cpu_list").write_text("1")
    with pytest.raises(PartitionError, match="CPU 1 has two caches of level 3"):
        from_sysfs(sysfs)
    (sysfs / "cpu0/cache/index3/shared_cpu_list").write_text("0")
    with pytest.raises(PartitionError, match="level 3 differ"):
        last_level(from_sysfs(sysfs))


def test_no_cache_and_no_shared_cache(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="sysfs tells of no cache"):
        from_sysfs(tmp_path)
    with pytest.raises(PartitionError, match="each CPU has one of level 3 to itself"):
        last_level(from_sysfs(write_sysfs(tmp_path, cpus=1)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.sampled_from(["type", "level", "size", "coherency_line_size", "number_of_sets", "shared_cpu_list"]),
    st.binary(max_size=64),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes) -> None:
    sysfs = write_sysfs(tmp_path_factory.mktemp("sysfs"))
    (sysfs / "cpu1/cache/index3" / name).write_bytes(data)
    try:
        caches = from_sysfs(sysfs)
    except PartitionError as error:
        assert "\n" not in error.message
    else:
        assert all(cache.size == cache.sets * cache.ways * cache.line for cache in caches)


# --- device tree ---------------------------------------------------------------------------------------------


def cell(value: int) -> bytes:
    return value.to_bytes(4, "big")


def write_device_tree(root: Path) -> Path:
    """Four CPUs with a level 2 cache for each two of them, and a level 3 cache for all beside the CPUs."""
    for cpu in range(4):
        node = root / f"cpus/cpu@{cpu * 256:x}"
        node.mkdir(parents=True)
        (node / "next-level-cache").write_bytes(cell(0x10 + cpu // 2))
    shapes = {"cpus/l2-cache0": (2, MIB, 1024), "cpus/l2-cache1": (2, MIB, 1024), "l3-cache": (3, 8 * MIB, 8192)}
    for number, (name, (level, size, sets)) in enumerate(shapes.items()):
        node = root / name
        node.mkdir()
        (node / "phandle").write_bytes(cell(0x10 + number))
        (node / "cache-level").write_bytes(cell(level))
        (node / "cache-size").write_bytes(cell(size))
        (node / "cache-line-size").write_bytes(cell(64))
        (node / "cache-sets").write_bytes(cell(sets))
        if level == 2:
            (node / "next-level-cache").write_bytes(cell(0x12))
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_device_tree(tmp_path)


def test_device_tree(tree: Path) -> None:
    caches = from_device_tree(tree)
    assert [(cache.level, sorted(cache.cpus)) for cache in caches] == [(2, [0, 1]), (2, [2, 3]), (3, [0, 1, 2, 3])]
    assert last_level(caches) == Cache(3, 8 * MIB, 64, 8192, 16, frozenset(range(4)))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cpus/cpu@0/next-level-cache", cell(0x99), "not there"),
        ("cpus/cpu@0/next-level-cache", b"\0\0", "not of one cell"),
        ("cpus/l2-cache0/next-level-cache", cell(0x10), "circle"),
        ("l3-cache/cache-size", cell(0), "of 0 cannot be"),
        ("l3-cache/cache-size", cell(8 * MIB + 1), "cannot have"),
        ("l3-cache/cache-level", cell(1 << 31), "level of"),
        ("l3-cache/cache-sets", bytes(8), "not of one cell"),
    ],
)
def test_device_trees_that_cannot_be(tree: Path, name: str, data: bytes, reason: str) -> None:
    (tree / name).write_bytes(data)
    with pytest.raises(PartitionError, match=reason):
        from_device_tree(tree)


def test_a_device_tree_that_says_little(tree: Path) -> None:
    (tree / "l3-cache/cache-sets").unlink()
    with pytest.raises(PartitionError, match="neither sets nor ways"):
        from_device_tree(tree)
    (tree / "l3-cache/cache-size").unlink()
    with pytest.raises(PartitionError, match="cache-size: No such file"):
        from_device_tree(tree)
    (tree / "cpus/cpu@zero").mkdir()
    with pytest.raises(PartitionError, match="no CPU"):
        from_device_tree(tree)


def test_sysfs_is_asked_first(tmp_path: Path) -> None:
    sysfs, tree = tmp_path / "sysfs", write_device_tree(tmp_path / "tree")
    sysfs.mkdir()
    assert last_level(machine_caches(sysfs=sysfs, tree=tree)).sets == 8192
    with pytest.raises(PartitionError, match="sysfs tells of no cache"):
        machine_caches(sysfs=sysfs, tree=tmp_path / "none")
    write_sysfs(sysfs)
    assert last_level(machine_caches(sysfs=sysfs, tree=tree)).sets == 32768


def test_what_is_configured_counts(sysfs: Path) -> None:
    last = configured({"size": 4 * MIB, "line": 64, "ways": 16})
    caches = machine_caches(last, sysfs=sysfs)
    assert [cache.level for cache in caches] == [1, 1, 2, 2, 3] and last_level(caches) == last
    assert machine_caches(last, sysfs=sysfs / "none", tree=sysfs / "none") == (last,)


# --- by hand -------------------------------------------------------------------------------------------------


def test_configured() -> None:
    assert configured({"size": 4 * MIB, "line": 64, "ways": 16}) == Cache(3, 4 * MIB, 64, 4096, 16)


@pytest.mark.parametrize(
    "change",
    [{"size": "4M"}, {"ways": True}, {"line": 64.0}, {"line": None}, {"sets": 4096}],
)
def test_settings_that_are_wrong(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        configured({"size": 4 * MIB, "line": 64, "ways": 16} | change)


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"ways": 0}, {"ways": -1}, {"line": 3}, {"size": 4 * MIB + 64}, {"level": 9}]
)
def test_settings_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(PartitionError):
        configured({"size": 4 * MIB, "line": 64, "ways": 16} | change)
