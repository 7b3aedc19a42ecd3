"""The main job, told step by step: a Realm from its image to its destruction on the emulated server.

``python -m examples.patients.demo`` (or ``make demo``). Ends with a table and build/demo-report.json; exit code 0
only if every step showed what it claims.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from vambrace.attest.owner import OwnerIdentity
from vambrace.client.host import Host
from vambrace.client.realm import Realm
from vambrace.client.zones import ZoneStats
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.emulator import memory
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.server import Access, Server
from vambrace.errors import MeasurementMismatch, VambraceError
from vambrace.host.agent import BACKLOG_BYTES
from vambrace.image.base import RuntimeBase, runtime_base
from vambrace.image.build import build_bundle
from vambrace.pager import PAGE_SIZE, window_pages

from examples.story import Story, owned_images, tell
from examples.user import User

HERE = Path(__file__).parent
CANARY = b"VAMBRACE-CANARY-"
# What the host may keep of a Realm's plaintext, in pages (docs/threat-model.md).
HOST_BOUND = BACKLOG_BYTES // PAGE_SIZE


def search(dump: Path) -> tuple[int, int]:
    """How many pages of ``dump`` hold patients' data, and how many AES-256 key schedules it holds. Removes the file."""
    os.nice(10)  # the server has the processors first
    try:
        return len(memory.pages_with(dump, CANARY)), len(memory.aes256_schedules(dump))
    finally:
        dump.unlink()


class Demo:
    def __init__(self, work: Path, server: Server, story: Story) -> None:
        self.work = work
        self.server = server
        self.story = story
        story.report["dumps"] = []
        # Dumps are searched beside the story: one after the other, in a process of its own.
        self.searcher = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self.searches: list[tuple[dict[str, Any], Future[tuple[int, int]]]] = []
        # So is the tampered image sent: it takes as long as the first one did.
        self.sender = ThreadPoolExecutor(1)

    def run(self) -> None:
        story = self.story
        with story.step("server", "An ARM server", "TF-A at EL3, OP-TEE in TrustZone, Linux/KVM at EL2, all measured"):
            access = self.server.up(story.progress)
            user = User.at(access, self.work / "user", self.server.suite)
        with story.step("image", "The secure image", "anyone computes the launch measurement offline"):
            base = runtime_base(Archive(Cache().root / "archive", LOCK_FILE), Cache())
            bundle = build_bundle(self._manifest(user.owner), self.work / "patients.vambrace", base)
            expected = bundle.measurement()
            story.report["measurement"] = {"expected": expected.hex()}
            story.say(f"expected measurement {expected.hex()}")
        with story.step("launch", "401, 402: create, load, measure; sign in TrustZone", "the host runs what was built"):
            realm = Realm.create(self.work / "patients.vambrace", progress=story.progress, **user.options)
            verified = realm.verify(story.progress)
            story.say("the verified token says")
            story.say(json.dumps(verified.as_dict(), indent=1).replace("\n", "\n    "))
            story.report["measurement"]["token"] = verified.measurement.hex()
            story.claim("measurement in the token", "as computed offline", verified.measurement == expected)
        sent = self.sender.submit(self._send_tampered, base, access)
        try:
            self._life(realm)
        finally:
            realm.abandon()
        with story.step("after", "406: destroyed", "nothing of the Realm is left in memory"):
            self._dump("after destruction", None, None)
        with story.step("tampered", "403: an image changed by one byte", "the user's no destroys it unexecuted"):
            self._tampered(sent.result(), expected, user)
        with story.step("dumps", "What the dumps of physical memory hold", "no more plaintext than the window"):
            self._tell_dumps()

    def _life(self, realm: Realm) -> None:
        story = self.story
        with story.step("start", "403 yes, 404: encrypt, 405: run", "attested TLS to the agent; applications run"):
            realm.approve()
            realm.start(story.progress)
            executed = realm.info().executed
            story.report["verification"] = {"verdict": "yes" if executed else "no"}
            story.claim("the owner's signed yes", f"executed: {executed}", executed)
            self._await_log(realm, "analysis", b"table of")
        zones_before = self._zones(realm)
        for percent in (80, 30, 95):
            with story.step(f"percent-{percent}", f"{percent} % of the analysis encrypted", "plaintext is bounded"):
                realm.encrypt("analysis", percent)
                zones = self._zones(realm)
                before, after = (int(stats["analysis"]["plaintext"]) for stats in (zones_before, zones))
                story.say(f"plaintext pages of the analysis: {before} before, {after} after")
                self._dump("running", percent, zones)
                zones_before = zones
        with story.step("results", "405: every application succeeded", "results go to their owner only"):
            results = self.work / "results"
            shutil.rmtree(results, ignore_errors=True)
            info = realm.finish(results, progress=story.progress)
            files = sorted(path for path in results.rglob("*") if path.is_file())
            for file in files:
                story.say(f"{file.relative_to(results)}: {file.read_text()[:200]!r}")
            story.claim("results received", f"{len(files)} files, the Realm {info.state}", len(files) == 2)

    def _manifest(self, owner: OwnerIdentity) -> Path:
        return owned_images(HERE, self.work / "image", owner) / "manifest.yaml"

    def _zones(self, realm: Realm) -> dict[str, ZoneStats]:
        return {zone["name"]: zone for zone in realm.stats()}

    def _await_log(self, realm: Realm, application: str, word: bytes) -> None:
        said = b""
        deadline = time.monotonic() + 240
        offset = 0
        while word not in said:
            offset, data, done = realm.logs(application, offset)
            said += data
            if (done and word not in said) or time.monotonic() > deadline:
                raise VambraceError(f"{application} did not say {word.decode()!r}: {said[-300:].decode()}")
            time.sleep(1)

    def _dump(self, moment: str, percent: int | None, zones: dict[str, ZoneStats] | None) -> None:
        file = self.work / f"memory-{len(self.searches)}.dump"
        file.unlink(missing_ok=True)
        self.server.dump(file)
        allowed = {}
        if zones is not None and percent is not None:
            allowed = {
                "application": window_pages(zones["analysis"]["pages"], percent),
                "system": int(zones["system"]["window"]),
                "host": HOST_BOUND,
            }
        figures = {
            "moment": moment,
            "percent": percent,
            "pages_found": None,
            "pages_allowed": sum(allowed.values()),
            "allowed_by": allowed,
        }
        self.story.report["dumps"].append(figures)
        self.searches.append((figures, self.searcher.submit(search, file)))
        self.story.say("memory dumped; its search goes on beside")

    def _tell_dumps(self) -> None:
        story = self.story
        for figures, searched in self.searches:
            found, schedules = searched.result()
            figures["pages_found"], figures["aes256_key_schedules"] = found, schedules
            percent, allowed = figures["percent"], figures["pages_allowed"]
            what = f"pages with patients' data, {figures['moment']}" + (f" at {percent} %" if percent else "")
            parts = ", ".join(f"{name} {pages}" for name, pages in figures["allowed_by"].items())
            story.claim(what, f"{found} found, {allowed} allowed" + (f" ({parts})" if parts else ""), found <= allowed)
            story.say(f"AES-256 key schedules in the dump: {schedules} (the page key is in the host's memory)")

    def close(self) -> None:
        """Let go of what was not searched or sent."""
        self.searcher.shutdown(cancel_futures=True)
        self.sender.shutdown(cancel_futures=True)
        for file in self.work.glob("memory-*.dump"):
            file.unlink()

    def _send_tampered(self, base: RuntimeBase, access: Access) -> Path:
        """The same image with one byte of its initrd changed, on the host. Returns its bundle."""
        changed = bytearray(base.initrd.read_bytes())
        changed[len(changed) // 2] ^= 1
        initrd = self.work / "tampered-initrd"
        initrd.write_bytes(changed)
        path = self.work / "tampered.vambrace"
        bundle = build_bundle(self.work / "image/manifest.yaml", path, replace(base, initrd=initrd))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        host = Host(access.url, str(access.certificate), str(access.key), str(access.ca))
        if not host.has_image(digest):
            host.send(bundle, digest)
        return path

    def _tampered(self, path: Path, expected: bytes, user: User) -> None:
        realm = Realm.create(path, expected=expected, name="tampered", progress=self.story.progress, **user.options)
        try:
            realm.verify(self.story.progress)
            verdict = "yes"
        except MeasurementMismatch as error:
            verdict = "no"
            self.story.say(str(error))
        info = realm.info()
        self.story.report["tampered"] = {"verdict": verdict, "executed": info.executed, "state": info.state}
        refused = verdict == "no" and not info.executed
        self.story.claim("tampered image", f"{info.state}, executed: {info.executed}", refused)
        realm.abandon()


def play(work: Path, server: Server, story: Story) -> None:
    with contextlib.closing(Demo(work, server, story)) as demo:
        demo.run()


if __name__ == "__main__":
    sys.exit(tell(__doc__.splitlines()[0], play, work="build/demo", report="build/demo-report.json"))
