"""What a host says of its partition: checked before it is shown, and drawn without trusting a name in it."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from vambrace.client.partition import Partition, Verification, draw, picture, spelled
from vambrace.errors import HostError

MIB = 1 << 20
ACCOUNT: dict[str, Any] = {
    "enforcement": "cgroup",
    "reason": "",
    "memory": {"total": 1024 * MIB, "free": 524 * MIB},
    "kinds": [
        {"name": "processors", "total": [1, 2, 3], "free": [3]},
        {"name": "colours", "total": list(range(1000)), "free": list(range(500, 998))},
        {"name": "devices", "total": ["0000:01:00.0"], "free": []},
    ],
    "shared_processors": [4],
    "cache": {"partition": "colours-unconfirmed", "reason": "a virtual machine", "host": [998, 999]},
    "domains": [
        {
            "uuid": "a" * 36,
            "name": "patients",
            "memory": 300 * MIB,
            "items": {"processors": [1, 2], "colours": list(range(500)), "devices": ["0000:01:00.0"]},
            "shared_processors": [],
        },
        {"uuid": "b" * 36, "name": "<lab & co>", "memory": 200 * MIB, "items": {}, "shared_processors": [4]},
    ],
}
FOUND = {"passed": True, "findings": [], "domains": ["a"], "threads": 4, "descriptors": 9, "enforcement": "cgroup"}


def texts(document: str) -> list[str]:
    said = [element.text or "" for element in ElementTree.fromstring(document).iter()]
    return [text for text in said if text.strip()]


def test_a_partition_and_its_picture(tmp_path: Path) -> None:
    partition = Partition.decode(ACCOUNT)
    assert partition.free == 524 * MIB and partition.owners[0].items["processors"] == (1, 2)
    assert partition.kinds[2].free == () and partition.owners[1].shared_processors == (4,)
    found = texts(picture(partition))
    assert {"memory", "processors", "colours", "devices", "shared", "patients", "<lab & co>", "free"} <= set(found)
    assert "patients: 300 MiB" in found and "1: patients" in found and "3: free" in found
    assert {"0-499: patients", "500-997: free", "998, 999: the host"} <= set(found)
    assert "processor 4: <lab & co>" in found
    draw(tmp_path / "file.svg", partition)
    assert (tmp_path / "file.svg").read_text() == picture(partition)


def test_what_the_host_keeps_is_not_free() -> None:
    kinds = [{"name": "ways", "total": [0, 1, 2, 3], "free": [2]}]
    domain = ACCOUNT["domains"][0] | {"items": {"ways": [3]}}
    cache = {"partition": "ways", "reason": "", "host": [0, 1]}
    partition = Partition.decode(ACCOUNT | {"kinds": kinds, "domains": [domain], "cache": cache})
    assert {"0: the host", "1: the host", "2: free", "3: patients"} <= set(texts(picture(partition)))


def test_items_in_words() -> None:
    assert spelled(()) == "-"
    assert spelled((1, 2, 3, 5, 7, 8, 10)) == "1-3, 5, 7, 8, 10"
    assert spelled(("nvme0", "nic0", 4)) == "nvme0, nic0, 4"
    assert spelled(("lab/8", "lab/9", "lab/10", "ward/0", "ward/1", "/", "a/x")) == "lab/8-10, ward/0, ward/1, /, a/x"
    assert spelled((3, 2, 1)) == "3, 2, 1"


def test_a_host_with_nothing_and_one_that_has_given_all() -> None:
    empty = ACCOUNT | {"kinds": [], "domains": [], "shared_processors": [], "memory": {"total": 0, "free": 0}}
    assert "memory" in texts(picture(Partition.decode(empty)))
    full = ACCOUNT | {"memory": {"total": 500 * MIB, "free": 0}}
    assert "free: 0 MiB" not in texts(picture(Partition.decode(full)))


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, child in children for rest in paths(child))]


@pytest.mark.parametrize("path", paths(ACCOUNT))
@pytest.mark.parametrize("wrong", [None, -1, 1.5, {"x": [{}]}, [[]]])
def test_what_is_no_partition(path: tuple[Any, ...], wrong: Any) -> None:
    """One thing in it is of another kind: an error, or another valid account, never anything else."""
    value: Any = copy.deepcopy(ACCOUNT)
    if not path:
        value = wrong
    else:
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
    try:
        partition = Partition.decode(value)
    except HostError as error:
        assert error.message == "the host's answer is not a partition"
    else:
        pytest.fail(f"{path}: {wrong} is taken, as {partition}")


def test_names_do_not_speak_to_a_terminal() -> None:
    value = copy.deepcopy(ACCOUNT)
    value["domains"][0]["name"] = "a\x1b[31m\n\u202e"
    assert Partition.decode(value).owners[0].name == "a?[31m??"
    assert Verification.decode(FOUND | {"passed": False, "findings": ["\x07"]}).findings == ("?",)


def test_what_is_no_verification() -> None:
    assert Verification.decode(FOUND).passed
    for name in FOUND:
        for wrong in (None, -1, os, [None]):
            if (name, wrong) != ("passed", None):
                with pytest.raises(HostError):
                    Verification.decode(FOUND | {name: wrong})
        with pytest.raises(HostError):
            Verification.decode({key: value for key, value in FOUND.items() if key != name})
    for contradiction in ({"findings": ["x"]}, {"passed": False}, {"passed": 1}):
        with pytest.raises(HostError, match="contradicts itself"):
            Verification.decode(FOUND | contradiction)
