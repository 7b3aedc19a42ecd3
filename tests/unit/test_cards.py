"""Network cards at the kernel's own bridges: who reaches whom."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vambrace.errors import PartitionError
from vambrace.partition.cards import Network, check, new_address

NAMESPACES = ("unshare", "--net", "--mount")


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    possible = subprocess.run([*NAMESPACES, "test", "-w", "/dev/net/tun"], check=False, capture_output=True)
    if possible.returncode:
        pytest.skip("needs root, namespaces and /dev/net/tun")
    program = Path(__file__).with_name("cards_world.py")
    done = subprocess.run([*NAMESPACES, sys.executable, program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_cards_of_one_network_reach_each_other(world: dict[str, Any]) -> None:
    assert world["addressed"] == {"two": ["to two"]}
    assert world["broadcast"] == {"two": ["to all"], "third": ["to all"]}


def test_nobody_speaks_as_another(world: dict[str, Any]) -> None:
    """Packets from a wrong address are dropped, those to an unknown one go to no domain, and addresses stay put."""
    assert world["spoofed"] == {}
    assert world["afterwards"] == {"one": ["still here"]}


def test_isolated_cards_reach_the_outside_only(world: dict[str, Any]) -> None:
    """The outside cannot take a card's address from it either."""
    assert world["isolated"] == {"uplink": ["to all"]}
    assert world["outside"] == {"uplink": ["out"], "alone": ["in"]}


def test_no_card_poses_as_a_bridge(world: dict[str, Any]) -> None:
    """Who speaks of spanning trees has its port closed (state 0)."""
    assert world["root"] is True
    assert world["rival"] == "0"


def test_hostile_headers_are_refused_and_harm_nothing(world: dict[str, Any]) -> None:
    assert world["header"] == world["sizes"] == "Invalid argument"
    assert world["even"] == {"two": ["even"]}


def test_a_card_is_gone_with_its_descriptor(world: dict[str, Any]) -> None:
    assert sorted(world["interfaces"]) == world["names"] and len(world["names"]) == 5
    assert world["left"] == []


def test_a_bridge_that_is_not_there(world: dict[str, Any]) -> None:
    assert world["refused"] == "network none: this host has no bridge nothing"


def test_sending_without_a_copy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net/lab/bridge").mkdir(parents=True)
    option = tmp_path / "vhost_net/parameters/experimental_zcopytx"
    option.parent.mkdir(parents=True)
    network = Network("lab", "lab")
    option.write_text("0\n")
    check(network, tmp_path / "net", tmp_path)
    option.write_text("1\n")
    with pytest.raises(PartitionError, match="without a copy"):
        check(network, tmp_path / "net", tmp_path)


def test_addresses_are_local_and_of_one_card() -> None:
    found = {new_address() for _ in range(64)}
    assert len(found) == 64
    assert all(len(mac) == 6 and mac[0] & 3 == 2 for mac in found)
