"""A Realm that runs and publishes ports: real agent, real TLS."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from client_harness import World, living_world
from config_factory import make_application
from messages_world import free_port

from vambrace import Realm
from vambrace.application import Port
from vambrace.errors import VambraceError

SCRIPT = 'while [ ! -e "$ROOT/go" ]; do sleep 0.05; done'
PATIENCE = 60.0


class Published:
    """A running Realm that publishes ``port`` (and another one, on which nobody serves)."""

    def __init__(self, world: World, realm: Realm, port: int, other: int) -> None:
        self.world, self.realm, self.port, self.other = world, realm, port, other
        self.told: list[VambraceError] = []

    def connect(self) -> socket.socket:
        connected = self.realm.connect(self.port)
        connected.settimeout(PATIENCE)
        return connected


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[Published]:
    port, other = free_port(), free_port()
    applications = (
        make_application("analysis", command=("sh", "-c", SCRIPT), ports=(Port(port), Port(other))),
        make_application("report", command=("sh", "-c", SCRIPT)),
    )
    with living_world(folder, applications=applications) as world, Realm.create(world.bundle) as realm:
        realm.verify()
        realm.approve()
        realm.start()
        yield Published(world, realm, port, other)
