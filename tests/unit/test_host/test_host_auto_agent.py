"""Bounds of a percentage that an owner sends through the agent: kept by the daemon, and ended."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, Vmm, run
from harness_certificates import Certificates

from vambrace.attest.owner import Bounds, OwnerIdentity
from vambrace.host import auto, realm

BOUNDS = Bounds(30, 90, 50)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "SAMPLE_SECONDS", 0.005)
    monkeypatch.setattr(auto, "PAUSE_SECONDS", 0.01)


def text(message: bytes) -> str:
    return base64.b64encode(message).decode()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No round comes while the agent talks."""
    monkeypatch.setattr(auto, "PAUSE_SECONDS", 1000.0)
    yield


async def begin(daemon: Daemon, **changes: Any) -> tuple[str, Vmm, bytes]:
    handle, vmm = await daemon.running(**changes)
    return handle, vmm, bytes.fromhex((await daemon.get(f"/v1/domains/{handle}")).json["instance"])


async def first_round(vmm: Vmm) -> None:
    """The fake VMM's statistics are of other zones: the round ends with an error."""
    await vmm.request("stats")


@pytest.mark.usefixtures("slow")
def test_bounds_through_the_agent(tmp_path: Path, certificates: Certificates) -> None:
    """The owner's message is verified, its counter kept, the percentage brought within; stats show it, the API not."""

    async def test(daemon: Daemon) -> None:
        handle, vmm, instance = await begin(daemon)  # system 80, analysis 80, report 30
        sign = certificates.owner.sign_bounds
        before = (await daemon.get(f"/v1/domains/{handle}")).body
        await vmm.tell("auto", message=text(sign(instance, 2, Bounds(40, 90, 50), 5)))
        reply = await vmm.hear()
        held = {"lowest": 40, "highest": 90, "slowdown": 50, "idle": False, "expected": None, "error": ""}
        assert reply["auto"] == [None, None, held]
        asked = await vmm.request("encrypt")
        assert (asked["zone"], asked["percent"]) == (2, 40)
        await first_round(vmm)
        await vmm.tell("stats")
        await vmm.request("stats")
        shown = await vmm.hear()
        assert shown["zones"] and shown["auto"][2]["error"] == "the VMM speaks of other zones than there are"
        assert (await daemon.get(f"/v1/domains/{handle}")).body == before
        record = json.loads((daemon.settings.state / "domains" / f"{handle}.json").read_bytes())
        assert record["counter"] == 5
        assert (await vmm.ask("auto", message=text(sign(instance, 2, None, 6))))["auto"] == [None, None, None]

    run(tmp_path, certificates, test)


@pytest.mark.usefixtures("slow")
def test_a_plain_percentage_ends_it(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        _, vmm, instance = await begin(daemon)
        owner = certificates.owner
        await vmm.tell("auto", message=text(owner.sign_bounds(instance, 1, Bounds(40, 90, 50), 1)))
        assert (await vmm.hear())["auto"][1]
        await first_round(vmm)
        await vmm.tell("encrypt", message=text(owner.sign_percent(instance, 1, 20, 2)))
        assert [(await vmm.request("encrypt"))["percent"] for _ in range(2)] == [20, 30], "outside of the bounds"
        assert (await vmm.hear())["change"]["state"] == "done"
        await vmm.tell("stats")
        await vmm.request("stats")
        assert (await vmm.hear())["auto"] == [None, None, None]

    run(tmp_path, certificates, test)


def wrong_bounds(owner: OwnerIdentity, stranger: OwnerIdentity, instance: bytes) -> dict[str, str]:
    good = Bounds(40, 90, 50)
    return {
        "replayed": text(owner.sign_bounds(instance, 1, good, 5)),
        "older": text(owner.sign_bounds(instance, 1, None, 4)),
        "a percentage's counter": text(owner.sign_bounds(instance, 1, good, 5)),
        "stranger": text(stranger.sign_bounds(instance, 1, good, 9)),
        "other instance": text(owner.sign_bounds(bytes(16), 1, good, 9)),
        "no such zone": text(owner.sign_bounds(instance, 3, good, 9)),
        "the system follows": text(owner.sign_bounds(instance, 0, good, 9)),
        "a percentage": text(owner.sign_percent(instance, 1, 50, 9)),
        "noise": text(bytes(range(250))),
        "not base64": "%%%",
    }


@pytest.mark.usefixtures("slow")
def test_wrong_bounds(tmp_path: Path, certificates: Certificates) -> None:
    """Each refused by the monitor; none reaches the window (``ask`` fails on any request to the VMM)."""

    async def test(daemon: Daemon) -> None:
        _, vmm, instance = await begin(daemon)
        owner = certificates.owner
        await vmm.tell("encrypt", message=text(owner.sign_percent(instance, 1, 90, 5)))
        for _ in range(2):
            await vmm.request("encrypt")
        assert (await vmm.hear())["ok"]
        for what, message in wrong_bounds(owner, certificates.stranger, instance).items():
            reply = await vmm.ask("auto", message=message)
            assert not reply["ok"] and reply["error"], what
        for value in (None, 7, [], {}):
            assert not (await vmm.ask("auto", message=value))["ok"]
        # Refused messages used up no counter, and those of percentages are no bounds.
        assert not (await vmm.ask("encrypt", message=text(owner.sign_bounds(instance, 1, None, 6))))["ok"]
        assert (await vmm.ask("auto", message=text(owner.sign_bounds(instance, 1, None, 6))))["ok"]

    run(tmp_path, certificates, test)


@pytest.mark.parametrize("end", ["the VMM dies", "destroyed"])
def test_it_ends_with_its_realm(tmp_path: Path, certificates: Certificates, end: str) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, instance = await begin(daemon, script={"stats": "die"} if end == "the VMM dies" else {})
        await vmm.tell("auto", message=text(certificates.owner.sign_bounds(instance, 1, Bounds(40, 90, 50), 1)))
        if end == "destroyed":
            await daemon.call("DELETE", f"/v1/domains/{handle}")
        await daemon.state(handle, "failed" if end == "the VMM dies" else "destroyed")
        assert (await daemon.get("/v1/host")).json["domains"] == 0
        assert not [task for task in asyncio.all_tasks() if "_loop" in repr(task.get_coro())]

    run(tmp_path, certificates, test)


def test_what_the_owner_has_sampled_is_left_to_be_read(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No round begins while the owner samples, nor before the owner's client has fetched what that found."""
    monkeypatch.setattr(realm, "READ_SECONDS", 0.5)

    async def test(daemon: Daemon) -> None:
        _, vmm, instance = await begin(daemon)
        await vmm.tell("sample", on=True, seconds=10)
        assert "zones" not in await vmm.request("sample")
        assert (await vmm.hear())["ok"]
        assert (await vmm.ask("auto", message=text(certificates.owner.sign_bounds(instance, 1, BOUNDS, 1))))["ok"]
        await asyncio.sleep(0.1)
        await vmm.tell("sample", on=False)
        assert (await vmm.request("sample"))["on"] is False
        assert (await vmm.hear())["ok"]
        await asyncio.sleep(0.1)
        await vmm.tell("reuse")
        await vmm.request("reuse")
        assert (await vmm.hear())["fault_ns"] == 5
        await vmm.request("stats")  # a round begins

    run(tmp_path, certificates, test)
