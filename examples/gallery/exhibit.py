"""What an example of the gallery is: a folder with a manifest, what its image is made of, and its client.

An ``Exhibit`` is made for one visit. Its steps are called in the order in which they stand here.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from examples.gallery.images import Image, make_image
from examples.gallery.load import Load
from examples.story import Story
from examples.user import User
from vambrace.client.realm import Realm
from vambrace.debian.cache import Cache
from vambrace.emulator.server import Server
from vambrace.errors import VambraceError

#: How long an example may take from its start until it serves.
READY_SECONDS: Final = 400.0
_POLL_SECONDS: Final = 0.5

Address = tuple[str, int]


@dataclass(frozen=True)
class Stage:
    """Where the example ``name`` is shown: on ``server``, to ``user``. ``work`` is a folder of its own for what is
    made, ``source`` in it a copy of the example's folder, in which the image is the user's."""

    name: str
    server: Server
    user: User
    cache: Cache
    story: Story
    work: Path
    source: Path


class Exhibit(ABC):
    """``form`` says of what kind its image is. Its percentage is its manifest's at first, and then those in
    ``percentages``. Every step may raise ``VambraceError``."""

    form: ClassVar[str]
    percentages: ClassVar[tuple[int, ...]] = (85, 20)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @abstractmethod
    def prepare(self) -> None:
        """Make what the manifest names, in ``stage.source``."""

    def attended(self, bundle: Path) -> AbstractContextManager[None]:
        """What the Realm needs around it as long as it lives; its image is known."""
        return contextlib.nullcontext()

    @abstractmethod
    def client(self, realm: Realm) -> AbstractContextManager[Load]:
        """Wait until the example does what it is for, and then let its client work."""

    @abstractmethod
    def tell(self, load: Load) -> str:
        """What the client has done, in a few words."""

    @abstractmethod
    def end(self, realm: Realm) -> str:
        """Bring the Realm to its end in order, and say what came of it."""


class Service(Exhibit):
    """One that serves at ``port``, for clients that the user has anyway; ``program`` is theirs."""

    port: ClassVar[int]
    program: ClassVar[str]

    @abstractmethod
    def ask(self, address: Address) -> None:
        """Ask it anything. Raises ``VambraceError`` as long as it does not serve."""

    @abstractmethod
    def do_round(self, address: Address) -> int:
        """Some seconds of work of the client's; how many requests were answered, all of them as they should be."""

    @contextlib.contextmanager
    def client(self, realm: Realm) -> Iterator[Load]:
        with realm.forward(self.port) as local:
            assert isinstance(local.address, tuple)
            address = local.address
            self._await_answer(realm, address)
            with Load(lambda: self.do_round(address)) as load:
                yield load

    def tell(self, load: Load) -> str:
        return f"{self.program}: {load.requests} requests"

    def end(self, realm: Realm) -> str:
        """By its stop signal."""
        realm.stop()
        return f"stopped, {realm.finish(progress=self.stage.story.progress).state}"

    def _await_answer(self, realm: Realm, address: Address) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                return self.ask(address)
            except VambraceError as error:
                check_running(realm)
                if time.monotonic() > deadline:
                    raise VambraceError(f"it does not serve: {error}", hint=last_lines(realm)) from error
                time.sleep(_POLL_SECONDS)


class ContainerService(Service):
    """A service whose image is made of Debian's packages."""

    form = "container"
    image: ClassVar[Image]

    def prepare(self) -> None:
        files = self.stage.source / "files"
        downloads = self.stage.cache.root / "archive"
        make_image(self.image, self.stage.name, files if files.is_dir() else None, self.stage.source, downloads)


def check_running(realm: Realm) -> None:
    """Raises ``VambraceError`` with its last words where the application does not run (any more)."""
    (application,) = realm.status()["applications"]
    if application["state"] not in ("waiting", "starting", "running"):
        raise VambraceError(f"its application has ended: {application['state']}", hint=last_lines(realm))


def last_lines(realm: Realm) -> str:
    (application,) = realm.config.applications
    said, offset = b"", 0
    while True:
        offset, data, _ = realm.logs(application.name, offset)
        said += data
        if not data:
            break
    return "it said last: " + " | ".join(said.decode(errors="replace").splitlines()[-5:])
