"""One emulated machine for the tests of this folder, started as seldom as can be.

Most tests run on a host with a door (``testbed``). Two Realms of one image live through many of them; the tests that
end these Realms, or that start the machine anew, come last: ``ORDER``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from database import make_postgresql
from machine import DOOR, Machine, new_server
from user import Pair, User, await_log

from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.hostroot import PRODUCT, Variant
from vambrace.emulator.server import Server
from vambrace.image.base import RuntimeBase, runtime_base

ORDER = (
    *("test_storage", "test_nodes"),  # no server
    *("test_verdicts", "test_suite_tokens", "test_freed", "test_auto", "test_neighbours"),  # DOOR
    *("test_census", "test_applications", "test_secrets", "test_volumes", "test_hostile"),
    *("test_domains", "test_devices", "test_containers", "test_vm_form", "test_database"),
    *("test_inside", "test_published", "test_owner", "test_relay"),  # pair
    *("test_operator", "test_partition", "test_jail", "test_death"),
    "test_colours",
    "test_secure_flash",  # OPEN, then PRODUCT
    *("test_resume", "test_main_job", "test_gallery"),  # PRODUCT
    *("test_boot_chain", "test_life_cycle"),
    *("test_insecure", "test_sm_demo"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.server)
    rank = {name: number for number, name in enumerate(ORDER)}
    ours.sort(key=lambda item: rank.get(item.path.stem, len(ORDER)))
    # In the places that they had among the others, in their order.
    places = [number for number, item in enumerate(items) if here in item.path.parents]
    for place, item in zip(places, ours, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home = tmp_path_factory.mktemp("machine") / "server"

    def make(variant: Variant) -> Server:
        return new_server(home, variant=variant, devices=variant == DOOR)

    machine = Machine(home, make)
    yield machine
    machine.stop()


@pytest.fixture
def server(machine: Machine) -> Server:
    """The machine with the host that has a door."""
    return machine.run(DOOR)


@pytest.fixture
def product(machine: Machine) -> Server:
    """The machine with the product's own host."""
    return machine.run(PRODUCT)


@pytest.fixture(scope="session")
def base() -> RuntimeBase:
    cache = Cache()
    return runtime_base(Archive(cache.root / "archive", LOCK_FILE), cache)


@pytest.fixture(scope="session")
def containers() -> RuntimeBase:
    """The base of Realms that run containers."""
    cache = Cache()
    return runtime_base(Archive(cache.root / "archive", LOCK_FILE), cache, containers=True)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A container image with a database."""
    return make_postgresql(tmp_path_factory.mktemp("postgresql"))


@pytest.fixture
def user(tmp_path: Path, server: Server, base: RuntimeBase) -> User:
    return User(tmp_path, server, base)


@pytest.fixture(scope="session")
def pair(machine: Machine, base: RuntimeBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two Realms of one image with two processors and three applications, all started."""
    server = machine.run(DOOR)
    user = User(tmp_path_factory.mktemp("pair"), server, base)
    bundle = user.bundle(
        {"name": "intruder", "results": ["attempts.json"]},
        {"name": "holder", "memory": "64M", "publish": [8002], "registers": [1]},
        {"name": "worker", "results": ["processors.json"], "publish": [8001]},
        vcpus=2,
        verdict_seconds=600,
    )
    realms = (user.create(bundle, name="first"), user.create(bundle, name="second"))
    try:
        for realm in realms:
            realm.verify()
            realm.approve()
        for realm in realms:
            realm.start()
        said = [await_log(realm, "holder", b"\n") for realm in realms]
        secrets = [bytes.fromhex(re.fullmatch(rb"holding ([0-9a-f]+)\n", text)[1].decode()) for text in said]
        yield Pair(user, server, bundle, realms, (secrets[0], secrets[1]))
    finally:
        for realm in realms:
            realm.abandon()
