"""What each domain of a host has for itself: admission, and the account that the API shows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import fake_cgroups
import hypothesis
import pytest
from harness import CPUS, MIB, PATIENCE, Daemon, alone, run, two_processors
from harness_certificates import Certificates
from hypothesis import strategies as st

from vambrace.errors import CapacityError, ConfigError, Conflict, PartitionError
from vambrace.host import shares
from vambrace.host.settings import Settings
from vambrace.partition import cards, processors
from vambrace.partition.cards import Network, OpenCard
from vambrace.partition.cgroups import Cgroups


async def partition(daemon: Daemon) -> dict[str, Any]:
    view: dict[str, Any] = (await daemon.get("/v1/partition")).json
    return view


async def refused(daemon: Daemon, image: str, name: str) -> str:
    body = {"name": name, "image": image, "nonce": os.urandom(32).hex()}
    answer = await daemon.call("PUT", f"/v1/domains/{uuid.uuid4()}", json=body)
    assert answer.status == 507, answer.body
    text: str = answer.json["detail"]
    assert text.isprintable()
    return text


def test_shared_processors(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        empty = await partition(daemon)
        assert empty["domains"] == [] and empty["memory"] == {"total": 1 << 30, "free": 1 << 30}
        assert empty["enforcement"] == "affinity" and "no cgroup v2" in empty["reason"]
        assert empty["kinds"] == [{"name": "processors", "total": [], "free": []}]
        first, vmm = await daemon.running()
        other, _ = await daemon.awaiting(name="other")
        view = await partition(daemon)
        assert [domain["name"] for domain in view["domains"]] == ["patients", "other"]
        assert [domain["items"] for domain in view["domains"]] == [{}, {}]
        assert all(set(domain["shared_processors"]) <= set(CPUS) for domain in view["domains"])
        memory = (await daemon.get(f"/v1/domains/{first}")).json["memory"]
        assert view["domains"][0]["memory"] == memory
        assert view["memory"]["free"] == (1 << 30) - sum(domain["memory"] for domain in view["domains"])
        assert (await daemon.get("/v1/host")).json["memory"]["used"] == (1 << 30) - view["memory"]["free"]
        assert os.sched_getaffinity(vmm.pid) == set(view["domains"][0]["shared_processors"])
        for handle in (first, other):
            await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert await partition(daemon) == empty

    run(tmp_path, certificates, test)


@two_processors
def test_processors_of_one_s_own(tmp_path: Path, certificates: Certificates, tree: Cgroups) -> None:
    async def test(daemon: Daemon) -> None:
        cpu = CPUS[-1]
        empty = await partition(daemon)
        assert empty["kinds"] == [{"name": "processors", "total": [cpu], "free": [cpu]}]
        assert empty["enforcement"] == "cgroup" and empty["reason"] == ""
        handle, vmm = await daemon.running()
        group = tree.path(handle)
        assert (group / "cpuset.cpus.partition").read_text() == "isolated"
        assert tree.processes(handle) == [vmm.pid]
        assert os.sched_getaffinity(vmm.pid) == {cpu}
        memory = (await daemon.get(f"/v1/domains/{handle}")).json["memory"]
        assert int((group / "memory.max").read_text()) == memory + shares.MEMORY_HEADROOM
        assert (await partition(daemon))["domains"][0]["items"] == {"processors": [cpu]}

        text = await refused(daemon, await daemon.upload(), "other")
        assert text == f"other cannot be given 1 processors (free: 0 of 1 processors; patients holds {cpu})"
        assert tree.domains() == [handle]
        assert (await partition(daemon))["domains"][0]["uuid"] == handle, "and nothing of it is held"

        await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert await partition(daemon) == empty and tree.domains() == []
        again, _ = await daemon.awaiting(name="other")
        assert tree.domains() == [again]

    run(tmp_path, certificates, test, **alone(tree, CPUS[-1]))
    assert tree.domains() == [], "the daemon has stopped"


@two_processors
def test_more_processors_than_there_are(tmp_path: Path, certificates: Certificates, tree: Cgroups) -> None:
    """A domain of two vCPUs, one processor: refused; where some are shared, it gets these."""

    async def strict(daemon: Daemon) -> None:
        text = await refused(daemon, await daemon.upload(vcpus=2), "wide")
        assert text == f"wide cannot be given 2 processors (free: 1 of 1 processors: {CPUS[-1]})"
        assert (await partition(daemon))["domains"] == [] and tree.domains() == []

    run(tmp_path, certificates, strict, **alone(tree, CPUS[-1]))

    async def sharing(daemon: Daemon) -> None:
        await daemon.awaiting(vcpus=2)
        domain = (await partition(daemon))["domains"][0]
        assert domain["items"] == {} and domain["shared_processors"] == [CPUS[-1]]
        group = tree.path(domain["uuid"])
        assert (group / "cpuset.cpus").read_text() == str(CPUS[-1])
        assert not (group / "cpuset.cpus.partition").exists()

    (tmp_path / "sharing").mkdir()
    run(tmp_path / "sharing", certificates, sharing, **(alone(tree, CPUS[-1]) | {"shared_cpus": (CPUS[-1],)}))


@two_processors
def test_a_vmm_that_dies_leaves_nothing(tmp_path: Path, certificates: Certificates, tree: Cgroups) -> None:
    """Killed at any point of its life, ten times: everything is free each time."""

    async def test(daemon: Daemon) -> None:
        empty = await partition(daemon)
        for number in range(10):
            handle, vmm = await (daemon.running() if number % 2 else daemon.awaiting())
            assert (await partition(daemon))["kinds"][0]["free"] == []
            os.kill(vmm.pid, signal.SIGKILL)
            assert (await daemon.state(handle, "failed"))["final"]
            assert await partition(daemon) == empty and tree.domains() == []

    run(tmp_path, certificates, test, **alone(tree, CPUS[-1]))


@two_processors
def test_leftovers_of_an_earlier_daemon(tmp_path: Path, certificates: Certificates, tree: Cgroups) -> None:
    tree.create("of-before", (CPUS[-1],), alone=True, memory=1, tasks=1)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as left:
        tree.enter("of-before", left.pid)

        async def test(daemon: Daemon) -> None:
            assert tree.domains() == []
            await daemon.awaiting()

        run(tmp_path, certificates, test, **alone(tree, CPUS[-1]))
        assert left.wait(PATIENCE) == -signal.SIGKILL


@two_processors
def test_a_group_that_cannot_be_made(
    tmp_path: Path, certificates: Certificates, tree: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Realm is refused with the reason, and nothing is held."""
    monkeypatch.setattr("vambrace.partition.cgroups.PATIENCE", 0.1)

    async def test(daemon: Daemon) -> None:
        image = await daemon.upload()
        handle = str(uuid.uuid4())
        tree.path(handle).symlink_to("/dev/null")  # neither made nor removed
        body = {"name": "patients", "image": image, "nonce": os.urandom(32).hex()}
        answer = await daemon.call("PUT", f"/v1/domains/{handle}", json=body)
        assert answer.status == 503 and "cgroup" in answer.json["detail"]
        tree.path(handle).unlink()
        assert (await partition(daemon))["domains"] == []
        assert (await daemon.get(f"/v1/domains/{handle}")).status == 404
        assert (await daemon.call("PUT", f"/v1/domains/{handle}", json=body)).status == 201

    run(tmp_path, certificates, test, **alone(tree, CPUS[-1]))


SIBLINGS = tuple((cpu, cpu + 8) for cpu in range(8))  # a machine with SMT
OWN = tuple(cpu for core in SIBLINGS[1:6] for cpu in core)
WISHES = st.tuples(st.integers(0, 400), st.integers(1, 7), st.booleans())  # MiB, vCPUs, whether the kernel refuses
STEPS = st.lists(st.tuples(st.sampled_from("abcde"), st.one_of(st.none(), WISHES)), max_size=15)


class Refusing(Cgroups):
    """A kernel that does not isolate processors while it is told so."""

    refuses = False

    def _isolate(self, group: Path, cpus: str) -> None:
        if self.refuses:
            raise PartitionError("as told")
        super()._isolate(group, cpus)


def check_account(host: shares.Shares, groups: Cgroups, places: dict[str, shares.Place]) -> None:
    """Account, groups and places tell the same; nobody's own processors are another's, and cores are whole."""
    assert sorted(share.domain for share in host.ledger.shares) == groups.domains() == sorted(places)
    own = [cpu for place in places.values() if place.alone for cpu in place.cpus]
    assert len(own) == len(set(own))
    assert set(own) | set(host.ledger.free("processors")) == set(host.ledger.kinds["processors"].items)
    for domain, place in places.items():
        isolated = (groups.path(domain) / "cpuset.cpus.partition").exists()
        assert isolated is place.alone
        assert all(set(core) <= set(place.cpus) or not place.alone for core in SIBLINGS if set(core) & set(place.cpus))
        assert place.alone or set(place.cpus) <= set(host.shared)
    assert host.ledger.memory_used == sum(place.memory for place in places.values())


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(STEPS, st.sampled_from([(), (6, 14)]))
def test_any_sequence_of_creations_and_ends(
    steps: list[tuple[str, tuple[int, int, bool] | None]], shared: tuple[int, ...]
) -> None:
    """Also where the kernel refuses some: at the end nothing is held."""

    async def test(folder: Path) -> None:
        sysfs = fake_cgroups.machine(folder / "cpu", SIBLINGS)
        groups = Refusing(fake_cgroups.make(folder / "cgroups").root, fake_cgroups.remove)
        paths = ("certificate", "key", "client_ca", "state", "endorsement", "vendor_root")
        names: dict[str, Any] = dict.fromkeys(paths, folder)
        settings = Settings(**names, vmm_cpus=(*OWN, *shared), shared_cpus=shared)
        host = shares.Shares(settings, 1024 * MIB, groups, sysfs)
        places: dict[str, shares.Place] = {}
        for domain, wish in steps:
            if wish is None:
                if place := places.pop(domain, None):
                    await place.leave()
                    await place.leave()
            else:
                memory, vcpus, groups.refuses = wish
                with contextlib.suppress(CapacityError, Conflict, PartitionError):
                    places[domain] = await host.reserve(domain, domain, memory * MIB, vcpus)
            check_account(host, groups, places)
        for place in places.values():
            await place.leave()
        check_account(host, groups, {})
        assert host.ledger.memory_free == 1024 * MIB

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(test(Path(folder)))


def test_settings_that_the_machine_cannot_do(tmp_path: Path, certificates: Certificates) -> None:
    everywhere = processors.online()
    absent = max(everywhere) + 1

    async def start(daemon: Daemon) -> None:
        pytest.fail("it starts")

    for number, (changes, error, says) in enumerate((
        ({"vmm_cpus": (absent,), "shared_cpus": ()}, ConfigError, f"no processor {absent} runs here"),
        ({"vmm_cpus": everywhere, "shared_cpus": ()}, ConfigError, "no processor is left for the host"),
        ({"allow_affinity": False}, PartitionError, "processors of their own: there is no cgroup v2"),
    )):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        with pytest.raises(error, match=says):
            run(tmp_path / str(number), certificates, start, **changes)


def test_network_cards(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one domain's, and comes to its VMM with the address that the guest will have; more are refused."""
    opened: list[tuple[Network, OpenCard]] = []
    closed: list[OpenCard] = []
    close = OpenCard.close

    def close_card(card: OpenCard) -> None:
        closed.append(card)
        close(card)

    def open_card(network: Network, mac: bytes, devices: Path) -> OpenCard:
        taps = (os.open(devices / name, os.O_RDWR) for name in ("net/tun", "vhost-net"))
        opened.append((network, OpenCard(*taps, mac, 1500, "vmbnet0")))
        return opened[-1][1]

    monkeypatch.setattr("vambrace.host.opened.open_card", open_card)
    monkeypatch.setattr(OpenCard, "close", close_card)
    monkeypatch.setattr(cards, "check", lambda network: None)

    async def test(daemon: Daemon) -> None:
        empty = await partition(daemon)
        handle = await daemon.create(await daemon.upload(networks=("lab",)))
        vmm = await daemon.vmm()
        asked = await vmm.request("load")
        ((network, card),) = opened
        assert network == lab and asked["cards"] == [{"mac": card.mac.hex(), "mtu": 1500}]
        assert {"net:0", "vhost-net:0"} <= {*asked["descriptors"]}
        await daemon.state(handle, "awaiting-verdict")
        view = await partition(daemon)
        assert view["domains"][0]["items"]["cards of lab"] == ["lab/0"]
        assert {kind["name"]: kind["free"] for kind in view["kinds"]}["cards of lab"] == []

        text = await refused(daemon, await daemon.upload(networks=("lab",), name="other"), "other")
        assert text == "other cannot be given 1 cards of lab (free: 0 of 1 cards of lab; patients holds lab/0)"
        text = await refused(daemon, await daemon.upload(networks=("nowhere",), name="more"), "more")
        assert text == "more needs the network nowhere"

        await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert await partition(daemon) == empty
        assert closed == [card]

    lab = Network("lab", "br-lab", cards=1)
    run(tmp_path, certificates, test, networks=(lab,))
