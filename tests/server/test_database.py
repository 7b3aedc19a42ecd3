"""PostgreSQL on a volume, and the power goes while it writes: what it has acknowledged is there afterwards.

In a plain guest, where QEMU is the host; and once more in a Realm in test_volumes.py.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import time
from pathlib import Path

import pytest
import yaml
from database import PORT, VOLUME_MIB, database
from machine import free_port
from plain_guest import ADDRESS, Guest, sparse
from transactions import Transactions, await_database, open_database
from user import PROGRAMS

from vambrace.attest.owner import OwnerIdentity
from vambrace.canonical import canonical
from vambrace.image.base import RuntimeBase
from vambrace.image.build import read_attested_manifest
from vambrace.image.configuration import agent_settings
from vambrace.image.containers.program import settle

CUTS = int(os.environ.get("VAMBRACE_SOAK_CUTS", "20"))
MIB = 1 << 20


def plain(folder: Path, base: RuntimeBase, image: str) -> tuple[Guest, int]:
    """A plain guest with the database, and where that is reached."""
    owner = OwnerIdentity.create(folder / "owner")
    (folder / "owner.pem").write_text(owner.certificate_pem)
    manifest = folder / "manifest.yaml"
    other = {
        "name": "plain",
        "owner": "owner.pem",
        "system": {"memory": "192M"},
        "networks": [{"name": "outside", "address": f"{ADDRESS}/24"}],
        "broker": {"url": "https://192.0.2.1:8444", "certificate": "owner.pem"},  # it is played
    }
    manifest.write_text(yaml.safe_dump({**database(image), **other}))
    read = read_attested_manifest(manifest)
    programs, images = settle(read.programs, folder)
    settings = agent_settings(
        dataclasses.replace(read, programs=programs), {name: image.verity for name, image in images.items()}
    )
    port = free_port()
    disks = {"volume_0": sparse(folder / "volume", VOLUME_MIB * MIB), "broker": sparse(folder / "broker", MIB)}
    guest = Guest(
        folder,
        base,
        PROGRAMS / "disks/database.py",
        (512, 160),
        settings=canonical(settings),
        images=[image.disk for image in images.values()],
        forward=(port, PORT),
        **disks,
    )
    return guest, port


@pytest.mark.soak
def test_power_cuts_lose_no_transaction(containers: RuntimeBase, postgresql: str, tmp_path: Path) -> None:
    """At random moments of writing, and sometimes once more while it recovers."""
    chance = random.Random(2026)
    guest, port = plain(tmp_path, containers, postgresql)
    connect = functools.partial(open_database, port)
    transactions = Transactions("")
    for cut in range(CUTS + 1):
        if cut and chance.random() < 0.3:
            with guest.running():
                time.sleep(chance.uniform(4, 25))
        with guest.running():
            with await_database(connect, 240) as session:
                if not cut:
                    transactions.begin(session)
                found = transactions.check(session)
            print(f"after {cut} cuts: {found} transactions are there", flush=True)
            if cut < CUTS:
                with transactions.writing(connect):
                    time.sleep(chance.uniform(0, 8))
                print(f"{len(transactions.acknowledged)} are acknowledged", flush=True)
        transactions.join()
