"""Two Realms that exchange bytes by messages and by their network cards, started as users start theirs."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from bench.parts import asker, peer
from vambrace.attest.owner import OwnerIdentity
from vambrace.client.context import Context
from vambrace.client.host import Host
from vambrace.client.realm import Realm
from vambrace.client.trust import Trust
from vambrace.debian.archive import Archive
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.server import Server
from vambrace.image.base import RuntimeBase, runtime_base
from vambrace.image.build import build_bundle

PATIENCE = 600.0
PORT = 9000
SERVER, CLIENT = "10.0.0.1", "10.0.0.2"


def between(server: Server, rounds: int, seconds: float) -> dict[str, Any]:
    """Of each work of ``asker``, by ``messages`` and by ``cards``: operations per second, one of each round.

    Raises RuntimeError with what the programs said.
    """
    work = server.home / "exchange"
    access = server.access()
    context = Context(work / "user")
    OwnerIdentity.create(context.owner)
    base = runtime_base(Archive(server.cache.root / "archive", LOCK_FILE), server.cache)
    host = Host(access.url, access.certificate, access.key, access.ca)
    trust = Trust.load(access.vendor_root, access.references)
    with ExitStack() as stack:

        def start(name: str, program: Path, command: list[str], address: str, endpoint: dict[str, Any]) -> Realm:
            bundle = _bundle(base, context, work / name, program, command, address, endpoint)
            realm = Realm.run(bundle, host=host, trust=trust, context=context, name=name)
            stack.callback(realm.abandon)
            return realm

        start("callee", Path(peer.__file__), ["0.0.0.0", str(PORT)], SERVER, {"offer": "bench", "port": PORT})
        words = [SERVER, str(PORT), str(rounds), str(seconds)]
        caller = start("caller", Path(asker.__file__), words, CLIENT, {"connect": "bench", "port": 9001})
        return _result(caller)


def _result(realm: Realm) -> dict[str, Any]:
    said, offset, deadline = b"", 0, time.monotonic() + PATIENCE
    while not said.endswith(b"\n"):
        offset, more, ended = realm.logs("program", offset)
        said += more
        if (ended and not said.endswith(b"\n")) or time.monotonic() > deadline:
            raise RuntimeError(f"the Realms did not exchange bytes: {said[-2000:].decode(errors='replace')}")
        time.sleep(1)
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        raise RuntimeError(said[-2000:].decode(errors="replace")) from None
    return found


def _bundle(
    base: RuntimeBase,
    context: Context,
    work: Path,
    program: Path,
    words: list[str],
    address: str,
    endpoint: dict[str, Any],
) -> Path:
    """An image of one program, at 0 percent: what is measured is the way, not the window."""
    files = work / "program"
    files.mkdir(parents=True)
    shutil.copyfile(program, files / "main.py")
    (work / "owner.pem").write_text(OwnerIdentity.load(context.owner).certificate_pem)
    application = {"name": "program", "files": "program", "command": ["python3", "main.py", *words]}
    manifest = {
        "name": work.name,
        "owner": "owner.pem",
        "system": {"memory": "256M", "percent": 0},
        "applications": [application | {"memory": "64M", "percent": 0}],
        "endpoints": [endpoint],
        "networks": [{"name": "lab", "address": f"{address}/24"}],
    }
    (work / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    bundle = work / "image.vambrace"
    build_bundle(work / "manifest.yaml", bundle, base)
    return bundle
