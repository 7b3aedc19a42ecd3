"""The agent's side of network cards: which one is which, and what each is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from vambrace_agent import AgentError, network
from vambrace_agent.settings import Network

LAB = Network({"name": "lab", "address": "10.0.0.2/24", "gateway": "10.0.0.1"})
APART = Network({"name": "apart", "address": "", "gateway": ""})


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two cards, found by the kernel in another order than they lie, beside a loopback and a card of another kind."""
    for name, device in (("eth0", "a00c000.virtio_mmio/virtio3"), ("eth1", "a007000.virtio_mmio/virtio9")):
        (tmp_path / "devices/platform" / device / "net" / name).mkdir(parents=True)
        (tmp_path / "class" / name).mkdir(parents=True)
        (tmp_path / "class" / name / "device").symlink_to(tmp_path / "devices/platform" / device)
    (tmp_path / "class/lo").mkdir()
    (tmp_path / "class/enp1s0").mkdir()
    (tmp_path / "devices/pci0000:00/0000:00:01.0").mkdir(parents=True)
    (tmp_path / "class/enp1s0/device").symlink_to(tmp_path / "devices/pci0000:00/0000:00:01.0")
    for name in ("eth0", "eth1"):
        for setting in ("ipv4/conf/{}/accept_redirects", "ipv6/conf/{}/accept_redirects", "ipv6/conf/{}/accept_ra"):
            file = tmp_path / "conf" / setting.format(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("1")
    return tmp_path


def bring_up(machine: Path, *networks: Network) -> list[str]:
    said: list[str] = []
    network.bring_up(
        networks, str(machine / "class"), str(machine / "conf"), lambda *words: said.append(" ".join(words))
    )
    return said


def test_cards_are_known_by_their_place(machine: Path) -> None:
    assert bring_up(machine, LAB, APART) == [
        "address add 10.0.0.2/24 dev eth1",
        "link set eth1 up",
        "route add default via 10.0.0.1 dev eth1",
        "link set eth0 up",
    ]


def test_who_has_an_address_takes_none_from_routers(machine: Path) -> None:
    bring_up(machine, LAB, APART)
    settings = {str(file.relative_to(machine / "conf")): file.read_text() for file in machine.glob("conf/*/conf/*/*")}
    assert {name.split("/")[2] for name, value in settings.items() if value == "0"} == {"eth1"}
    assert sum(value == "0" for value in settings.values()) == 3


def test_a_card_too_few(machine: Path) -> None:
    with pytest.raises(AgentError, match="2 network cards, but 1 networks"):
        bring_up(machine, LAB)


def test_an_address_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_text("#!/bin/sh\nexit 2\n")
    busybox.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AgentError, match="ip address add nonsense: exit code 2"):
        network.run("address", "add", "nonsense")
