"""One example from its image to its end, and the row of the table that it gives."""

from __future__ import annotations

import contextlib
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final

from examples.gallery.exhibit import Exhibit, Stage
from examples.gallery.load import Load
from examples.story import Story, owned_images
from examples.user import User
from vambrace.client.domain import END_SECONDS
from vambrace.client.realm import Realm
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.server import Server
from vambrace.errors import VambraceError
from vambrace.image.build import build_bundle, read_attested_manifest
from vambrace.image.prepare import environments, manifest_base

HERE: Final = Path(__file__).parent
MANIFEST: Final = "manifest.yaml"


@dataclass
class Row:
    """What one visit has shown; what it did not come to is None. Times are in seconds.

    ``build``: the image, from Debian's packages to the bundle. ``launch``: sent to the server, loaded, measured, its
    token verified. ``ready``: from the owner's yes until it did what it is for. ``percentages`` were each in force
    for at least one whole round of the client. ``error`` is why it ended early.
    """

    example: str
    form: str
    build: float | None = None
    size: int | None = None  # of the bundle, in bytes
    launch: float | None = None
    ready: float | None = None
    percentages: list[int] = field(default_factory=list)
    client: str | None = None
    errors: int = 0
    end: str | None = None
    error: str | None = None


def known() -> list[str]:
    """The examples that there are."""
    return sorted(path.parent.name for path in HERE.glob("*/example.py"))


def exhibit_of(name: str) -> type[Exhibit]:
    found: type[Exhibit] = import_module(f"examples.gallery.{name}.example").EXHIBIT
    return found


def visit(name: str, server: Server, user: User, work: Path, story: Story) -> Row:
    """Show the example ``name``. What goes wrong with it is in the row, and is no error of the gallery's."""
    kind = exhibit_of(name)
    source = owned_images(HERE / name, work / "image", user.owner)
    exhibit = kind(Stage(name, server, user, Cache(), story, work, source))
    row = Row(name, kind.form)
    try:
        with story.step(f"{name}-image", f"{name}: its image", "made of Debian's packages, unmodified"):
            bundle = _build(exhibit, row)
            story.say(f"{row.size or 0:,} bytes after {row.build:.1f} s")
        with exhibit.attended(bundle):
            _live(exhibit, bundle, row)
    except VambraceError as error:
        row.error = str(error)
        story.say(f"{error}" + (f" ({error.hint})" if error.hint else ""))
    return row


def _build(exhibit: Exhibit, row: Row) -> Path:
    stage = exhibit.stage
    begun = time.monotonic()
    exhibit.prepare()
    manifest = read_attested_manifest(stage.source / MANIFEST)
    # What it is made of is recorded in the example's own folder.
    beside = HERE / stage.name / MANIFEST
    base = manifest_base(manifest, Archive(stage.cache.root / "archive", LOCK_FILE), stage.cache, beside)
    bundle = stage.work / f"{stage.name}.vambrace"
    build_bundle(manifest, bundle, base, environments(manifest, base, stage.cache, beside))
    row.build, row.size = time.monotonic() - begun, bundle.stat().st_size
    return bundle


def _live(exhibit: Exhibit, bundle: Path, row: Row) -> None:
    story, name, user = exhibit.stage.story, exhibit.stage.name, exhibit.stage.user
    with ExitStack() as stack:
        with story.step(f"{name}-launch", f"{name}: sent, measured, verified", "it has executed nothing yet"):
            begun = time.monotonic()
            realm = Realm.create(bundle, progress=story.progress, **user.options)
            stack.callback(_leave_nothing, realm)
            story.say(f"verified: {realm.verify(story.progress).measurement.hex()}")
            row.launch = time.monotonic() - begun
        with ExitStack() as outside:
            with story.step(f"{name}-start", f"{name}: started", "its client reaches it through the attested channel"):
                begun = time.monotonic()
                realm.approve()
                realm.start(story.progress)
                load = outside.enter_context(exhibit.client(realm))
                row.ready = time.monotonic() - begun
                story.say(f"ready after {row.ready:.1f} s")
            with story.step(f"{name}-work", f"{name}: its client at work", "no percentage makes it see an error"):
                _change(exhibit, realm, load, row)
        with story.step(f"{name}-end", f"{name}: its end", "in order, and nothing stays on the server"):
            row.end = exhibit.end(realm)
            story.say(row.end)


def _change(exhibit: Exhibit, realm: Realm, load: Load, row: Row) -> None:
    """Under the client's load: a whole round of it at each percentage."""
    story = exhibit.stage.story
    zone = realm.config.zones[1]
    try:
        for percent in (zone.percent, *exhibit.percentages):
            if percent != zone.percent:
                realm.encrypt(zone.name, percent, story.progress)
            load.await_whole_round()
            found = next(each["percent"] for each in realm.stats() if each["name"] == zone.name)
            if found != percent:
                raise VambraceError(f"the Realm says that {found} % are encrypted, not {percent}")
            row.percentages.append(percent)
            story.say(f"{percent} %: {exhibit.tell(load)} so far")
        load.finish()
    finally:
        row.errors = int(load.failure is not None)
        row.client = exhibit.tell(load)


def _leave_nothing(realm: Realm) -> None:
    """On the server: neither the Realm nor its image, of which the next one may need the place."""
    realm.abandon()
    with contextlib.suppress(VambraceError):
        realm.host.wait(realm.uuid, lambda info: info.final, timeout=END_SECONDS)
        realm.host.delete_image(realm.state.image)
