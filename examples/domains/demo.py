"""Three classes of domain at once on the emulated server: a Normal VM, a Secure VM and two Realms, each at work.

``python -m examples.domains.demo`` (or ``make demo-domains``). Exit code 0 only if every step showed what it claims.
"""

from __future__ import annotations

import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from vambrace.attest.image import ImageStatement, load_key, sign_image
from vambrace.cli.output import size
from vambrace.cli.partition import table_of
from vambrace.client.attested import Attested
from vambrace.client.console import Console
from vambrace.client.normal import NormalVm
from vambrace.client.realm import Realm
from vambrace.client.secure import SecureVm
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.system import stock_system
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.server import Access, Server
from vambrace.errors import MessageRefused
from vambrace.image import Bundle
from vambrace.image.base import runtime_base
from vambrace.image.build import build_bundle
from vambrace.image.bundle import sign_bundle
from vambrace.image.manifest import NormalManifest, read_manifest
from vambrace.image.normal import build_normal
from vambrace.suite import Suite

from examples.story import Story, owned_images, tell
from examples.user import User

HERE = Path(__file__).parent
PATIENCE = 300.0


class Scene:
    """Everything of one user on the server that ``access`` leads to."""

    def __init__(self, work: Path, access: Access, story: Story, suite: Suite) -> None:
        self.work, self.story = work, story
        self.platform_owner = access.platform_owner
        self.user = User.at(access, work / "user", suite)
        self.host = self.user.host
        self.sources = owned_images(HERE, work / "images", self.user.owner)

    def images(self) -> dict[str, Path]:
        cache = Cache()
        archive = Archive(cache.root / "archive", LOCK_FILE)
        base = runtime_base(archive, cache)
        found = {}
        for name in ("vault", "registry", "ward"):
            found[name] = self.work / f"{name}.vambrace"
            build_bundle(self.sources / name / f"{name}.yaml", found[name], base)
            self.story.say(f"{name}: {size(found[name].stat().st_size)}")
        manifest = read_manifest(self.sources / "debian/debian.yaml")
        assert isinstance(manifest, NormalManifest)
        found["debian"] = self.work / "debian.vambrace"
        build_normal(manifest, found["debian"], stock_system(archive, cache))
        self.story.say(f"debian: {size(found['debian'].stat().st_size)}")
        return found

    def attested(self, kind: type[Attested], bundle: Path) -> Attested:
        return kind.create(bundle, progress=self.story.progress, **self.user.options)

    def signed(self, path: Path) -> Path:
        """The image refused without a signature, then signed by the platform's owner."""
        try:
            self.attested(SecureVm, path).abandon()
            self.story.claim("the image without a signature", "was accepted", False)
        except MessageRefused as error:
            self.story.claim("the image without a signature", error.message, "is not signed" in error.message)
        bundle = Bundle.open(path)
        config = bundle.config
        statement = ImageStatement.of(config.kind.name, config.hash, bundle.measurement(), config.encode())
        sign_bundle(bundle, sign_image(load_key(self.platform_owner), statement), path)
        return path


def await_log(domain: Attested, application: str, words: bytes) -> str:
    """The line of the application's output with ``words``."""
    deadline = time.monotonic() + PATIENCE
    said, offset = b"", 0
    while words not in said and time.monotonic() < deadline:
        offset, data, _ = domain.logs(application, offset)
        said += data
        if not data:
            time.sleep(1)
    return next((line for line in said.decode().splitlines() if words.decode() in line), "")


def play(work: Path, server: Server, story: Story) -> None:
    with story.step("server", "An ARM server", "TF-A, OP-TEE, Linux/KVM at EL2; its owner's key is provisioned"):
        scene = Scene(work, server.up(story.progress), story, server.suite)
    with story.step("images", "Four images", "one way to describe them, a class for each"):
        images = scene.images()
    with ExitStack() as stack:
        with story.step("normal", "A Normal VM", "a stock Debian system, neither measured nor signed"):
            normal = stack.enter_context(
                NormalVm.create(images["debian"], host=scene.host, context=scene.user.context, progress=story.progress)
            )
            normal.start(story.progress)
            story.progress("Debian boots, which takes minutes on an emulated server")
            with Console(scene.host, normal.uuid) as console:
                console.expect(b"primes below", PATIENCE)
            story.say("Debian has booted, and its service writes to the console")
        with story.step("secure", "A Secure VM", "it starts by the platform owner's signature only"):
            secure = stack.enter_context(scene.attested(SecureVm, scene.signed(images["vault"])))
            assert isinstance(secure, SecureVm)
            measured = secure.verify(story.progress).measurement
            story.claim("the Secure VM's token", f"verified, {measured.hex()[:16]}…", True)
            secure.start(story.progress)
        with story.step("realms", "Two Realms", "each starts by its owner's verdict on its token"):
            realms = [stack.enter_context(scene.attested(Realm, images[name])) for name in ("registry", "ward")]
            for realm in realms:
                assert isinstance(realm, Realm)
                measured = realm.verify(story.progress).measurement
                realm.approve()
                realm.start(story.progress)
                story.claim(f"the token of {realm.state.name}", f"verified, {measured.hex()[:16]}…", True)
        with story.step("work", "All four at work", "each does what it is for"):
            with Console(scene.host, normal.uuid) as console:
                printed = console.expect(b"primes below", PATIENCE) + console.read(2)
            counted = re.search(r"debian: \d+ primes", printed.decode(errors="replace"))
            story.claim("the Normal VM, on its console", counted[0] if counted else "nothing", counted is not None)
            line = await_log(secure, "notary", b"entry 5")
            story.claim("the Secure VM", line, bool(line))
            line = await_log(realms[0], "server", b"asked about north")
            story.claim("the first Realm, by a message of the second", line, bool(line))
            line = await_log(realms[1], "client", b"beds of all")
            story.claim("the second Realm", line, bool(line))
        with story.step("partition", "Who has what", "no page frame, processor or file of one is another's"):
            for line in table_of(scene.host.partition()):
                story.say(line)
            found = scene.host.verify_partition()
            story.claim("vambrace partition --verify", f"{len(found.domains)} domains apart", found.passed)
        with story.step("end", "Their ends", "Realms end by themselves, the others when they are told to"):
            for realm in reversed(realms):
                assert isinstance(realm, Realm)
                info = realm.finish(progress=story.progress)
                story.claim(f"{info.name}", f"{info.state}: {info.reason}", info.state == "succeeded")
            now = secure.info()
            story.claim("the Secure VM, its work done", f"{now.state}, agent: {now.agent}", now.state == "running")
            story.claim("the Secure VM, destroyed", secure.destroy().state, True)
            with Console(scene.host, normal.uuid) as console:
                console.write(b"systemctl poweroff\r")
                info = scene.host.wait(normal.uuid, lambda info: info.final, timeout=PATIENCE)
            story.claim("the Normal VM, switched off", info.state, info.state == "stopped")
            left = scene.host.partition()
            story.claim("given to domains now", f"{len(left.owners)} shares", not left.owners)


if __name__ == "__main__":
    about = __doc__.splitlines()[0]
    sys.exit(tell(about, play, work="build/demo-domains", report="build/demo-domains.json"))
