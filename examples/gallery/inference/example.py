"""A model behind HTTP, encrypted in its image: only a Realm that the broker has verified reads it."""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from examples.gallery.broker import Broker, image_policy
from examples.gallery.exhibit import Address, Service
from examples.gallery.inference.digits import Images, Model, read_digits, train, write_digits
from examples.gallery.load import Load
from examples.gallery.web import request
from vambrace.broker.platforms import PlatformFiles
from vambrace.errors import VambraceError
from vambrace.image.build import key_file

RESOURCE: Final = "gallery/key/model"
IMAGES: Final = 32  # in a request
REQUESTS: Final = 8  # a round
LEAST: Final = 0.9  # of all digits must be read right


class Inference(Service):
    form = "Python, encrypted"
    port = 8080
    program = "python3"

    def prepare(self) -> None:
        """Train the model, and make the broker that will have its key."""
        self.chance = np.random.default_rng(7)
        self.model: Model = train(self.chance)
        np.savez(self.stage.source / "program/model.npz", allow_pickle=False, **self.model)
        server, access = self.stage.server, self.stage.server.access()
        platform = PlatformFiles(access.vendor_root, access.references)
        self.broker = Broker(self.stage.work / "broker", self.stage.user.owner, platform, server.running_broker())
        (self.stage.source / "broker.pem").write_bytes(self.broker.certificate.read_bytes())
        self.seen = self.right = 0

    @contextlib.contextmanager
    def attended(self, bundle: Path) -> Iterator[None]:
        needles = [part.tobytes() for part in self.model.values()]
        if not all(holds(self.stage.source / "program/model.npz", needle) for needle in needles):
            raise VambraceError("the model's file does not hold the model")
        if any(holds(bundle, needle) for needle in needles):
            raise VambraceError("the image holds the model in the clear")
        self.stage.story.say("the model is nowhere in the image in the clear")
        with self.broker:
            with self.broker.client() as client:
                client.put(RESOURCE, key_file(bundle, RESOURCE).read_bytes(), image_policy(bundle))
            yield

    def ask(self, address: Address) -> None:
        self._read(address, write_digits(self.chance, 1)[0])

    def do_round(self, address: Address) -> int:
        for _ in range(REQUESTS):
            images, digits = write_digits(self.chance, IMAGES)
            self.right += int((self._read(address, images) == digits).sum())
            self.seen += IMAGES
        if self.right < LEAST * self.seen:
            raise VambraceError(f"only {self.right} of {self.seen} digits are read right")
        return REQUESTS

    def tell(self, load: Load) -> str:
        return f"{super().tell(load)}, {self.right} of {self.seen} digits right"

    def _read(self, address: Address, images: Images) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Which digits the Realm takes ``images`` for: those that the model must."""
        try:
            found = np.array(json.loads(request(address, "/", images.tobytes())))
        except ValueError:
            raise VambraceError("the answer is no list of digits") from None
        if not np.array_equal(found, read_digits(self.model, images)):
            raise VambraceError("the Realm reads other digits than its model does here")
        return found


def holds(path: Path, needle: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(needle) >= 0


EXHIBIT = Inference
