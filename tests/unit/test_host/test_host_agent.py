"""A guest's agent, well-behaved and hostile, against the daemon's side of section 6."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import cbor2
import pytest
from harness import PATIENCE, Daemon, Vmm, alive, run
from harness_certificates import Certificates

from vambrace.host import percent
from vambrace.host.agent import LINE_LIMIT


class Owner:
    """Signs percentages for one running Realm."""

    def __init__(self, daemon: Daemon, instance: str) -> None:
        self.identity = daemon.certificates.owner
        self.stranger = daemon.certificates.stranger
        self.instance = bytes.fromhex(instance)

    def percent(self, zone: int, percent: int, counter: int) -> str:
        return text(self.identity.sign_percent(self.instance, zone, percent, counter))


def text(message: bytes) -> str:
    return base64.b64encode(message).decode()


async def begin(daemon: Daemon, **changes: Any) -> tuple[str, Vmm, Owner]:
    handle, vmm = await daemon.running(**changes)
    return handle, vmm, Owner(daemon, (await daemon.get(f"/v1/domains/{handle}")).json["instance"])


def test_attest(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, owner = await begin(daemon)
        challenge = os.urandom(64)
        reply = await vmm.ask("attest", challenge=challenge.hex())
        collection = cbor2.loads(base64.b64decode(reply["token"])).value
        claims = cbor2.loads(cbor2.loads(collection[44241][1]).value[2])
        assert claims[10] == challenge
        assert claims[-70001] == owner.instance
        for wrong in (challenge[:63].hex(), "zz" * 64, 7, None, [], challenge.hex() + "00"):
            assert not (await vmm.ask("attest", challenge=wrong))["ok"]
        await daemon.state(handle, "running")

    run(tmp_path, certificates, test)


async def changes_of(vmm: Vmm, message: str, count: int) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """What the daemon asks of the window for an order, and its reply to the agent."""
    await vmm.tell("encrypt", message=message)
    asked = [await vmm.request("encrypt") for _ in range(count)]
    return [(one["zone"], one["percent"]) for one in asked], await vmm.hear()


def test_percentage_and_following_system(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, owner = await begin(daemon)  # system 80, analysis 80, report 30
        # Up: the system first. Down: the system last, and only as far as the highest application.
        asked, reply = await changes_of(vmm, owner.percent(1, 95, 1), 2)
        assert asked == [(0, 95), (1, 95)]
        change = {"zone": 1, "percent": 95, "counter": 1, "state": "done", "working": 1, "left": 0, "total": 0}
        assert reply["change"] == change | {"error": "", "hint": ""}
        assert (await changes_of(vmm, owner.percent(2, 50, 2), 1))[0] == [(2, 50)]
        assert (await changes_of(vmm, owner.percent(1, 20, 3), 2))[0] == [(1, 20), (0, 50)]
        record = json.loads((daemon.settings.state / "domains" / f"{handle}.json").read_bytes())
        assert record["counter"] == 3

    run(tmp_path, certificates, test)


def test_system_that_does_not_follow(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        _, vmm, owner = await begin(daemon, follow=False)
        assert (await changes_of(vmm, owner.percent(1, 95, 1), 1))[0] == [(1, 95)]
        assert (await changes_of(vmm, owner.percent(0, 10, 2), 1))[0] == [(0, 10)]

    run(tmp_path, certificates, test)


def test_wrong_percentages(tmp_path: Path, certificates: Certificates) -> None:
    """Each refused by the monitor; none reaches the window (``ask`` fails on any other request)."""

    async def test(daemon: Daemon) -> None:
        _, vmm, owner = await begin(daemon)
        used = owner.percent(1, 90, 5)
        await changes_of(vmm, used, 2)
        other = bytes(16)
        wrong = {
            "replayed": used,
            "older": owner.percent(1, 0, 4),
            "stranger": text(owner.stranger.sign_percent(owner.instance, 1, 0, 9)),
            "other instance": text(owner.identity.sign_percent(other, 1, 0, 9)),
            "no such zone": owner.percent(3, 0, 9),
            "the system follows": owner.percent(0, 0, 9),
            "a verdict": text(owner.identity.sign_verdict(owner.instance, bytes(32), yes=True)),
            "noise": text(os.urandom(300)),
            "not base64": "%%%",
        }
        for what, message in wrong.items():
            reply = await vmm.ask("encrypt", message=message)
            assert not reply["ok"], what
            assert reply["error"]
        for message in (None, 7, [], {}):
            assert not (await vmm.ask("encrypt", message=message))["ok"]
        # Refused messages used up no counter.
        assert (await changes_of(vmm, owner.percent(1, 91, 6), 2))[1]["ok"]

    run(tmp_path, certificates, test)


def test_window_that_fails(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        _, vmm, owner = await begin(daemon, script={"encrypt": "error"})
        asked, reply = await changes_of(vmm, owner.percent(2, 40, 1), 1)
        assert asked == [(2, 40)]
        assert reply["change"]["state"] == "failed"
        assert (reply["change"]["error"], reply["change"]["hint"]) == ("encrypt fails", "a test")
        assert (await vmm.ask("encrypt", message=owner.percent(2, 40, 1)))["ok"] is False, "replayed"

    run(tmp_path, certificates, test)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reply waits for a change, and the daemon looks at one often."""
    monkeypatch.setattr(percent, "AT_ONCE_SECONDS", 0.0)
    monkeypatch.setattr(percent, "POLL_SECONDS", 0.01)


async def until(vmm: Vmm, zone: int, state: str) -> dict[str, Any]:
    """What the agent is told of the zone's change, once it is in this state."""
    async with asyncio.timeout(PATIENCE):
        while True:
            change: dict[str, Any] = (await vmm.ask("change", zone=zone))["change"]
            if change["state"] == state:
                return change
            assert change["state"] in ("waiting", "running"), change
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_a_change_that_takes_long(tmp_path: Path, certificates: Certificates) -> None:
    """It goes on by itself, the system's zone first; meanwhile the agent is answered, and says how far it is."""

    async def test(daemon: Daemon) -> None:
        release = tmp_path / "release"
        handle, vmm, owner = await begin(daemon, script={"encrypt": "stuck", "release": str(release)})
        assert (await vmm.ask("change", zone=1))["change"] is None
        await vmm.tell("encrypt", message=owner.percent(1, 95, 1))
        reply = await vmm.hear_of("encrypt")
        assert reply["change"]["state"] in ("waiting", "running")
        record = json.loads((daemon.settings.state / "domains" / f"{handle}.json").read_bytes())
        assert record["counter"] == 1, "before anything changed"
        assert [(one["zone"], one["percent"]) for one in vmm.seen] == [(0, 95)], "the application's is not begun"
        assert (await vmm.ask("identity"))["ok"]
        await vmm.tell("stats")
        await vmm.request("stats")
        assert (await vmm.hear())["zones"]
        async with asyncio.timeout(PATIENCE):
            while (change := (await vmm.ask("change", zone=1))["change"])["total"] != 400:
                await asyncio.sleep(0.01)
        assert (change["state"], change["working"], change["left"]) == ("running", 0, 400)
        release.touch()
        second = await vmm.request("encrypt")
        assert (second["zone"], second["percent"]) == (1, 95)
        change = await until(vmm, 1, "done")
        assert (change["working"], change["left"]) == (1, 0)

    run(tmp_path, certificates, test)


@pytest.mark.usefixtures("quick")
def test_orders_wait_for_their_turn(tmp_path: Path, certificates: Certificates) -> None:
    """One zone after the other; the last order for a zone counts, and the same one again joins the one under way."""

    async def test(daemon: Daemon) -> None:
        release = tmp_path / "release"
        _, vmm, owner = await begin(daemon, script={"encrypt": "stuck", "release": str(release)}, follow=False)
        await vmm.tell("encrypt", message=owner.percent(1, 95, 1))
        await vmm.hear_of("encrypt")
        for counter, (zone, wanted) in enumerate(((2, 60), (2, 70), (1, 95)), 2):
            change = (await vmm.ask("encrypt", message=owner.percent(zone, wanted, counter)))["change"]
            assert change["counter"] == counter and change["state"] == ("waiting" if zone == 2 else "running")
        release.touch()
        asked = await vmm.request("encrypt")
        assert (asked["zone"], asked["percent"]) == (2, 70), "60 was overtaken"
        assert (await until(vmm, 2, "done"))["percent"] == 70
        assert (await until(vmm, 1, "done"))["counter"] == 4

    run(tmp_path, certificates, test)


@pytest.mark.usefixtures("quick")
def test_orders_do_not_pile_up(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        _, vmm, owner = await begin(daemon, script={"encrypt": "stuck"}, follow=False)
        await vmm.tell("encrypt", message=owner.percent(1, 95, 1))
        await vmm.hear_of("encrypt")
        waiting = {task for task in asyncio.all_tasks() if "Percentages" in str(task.get_coro())}
        for counter in range(2, 30):
            assert (await vmm.ask("encrypt", message=owner.percent(2, counter, counter)))["ok"]
        # What the guest itself may ask for, while a change is under way, as often as it likes.
        for _ in range(6):
            assert (await vmm.ask("sample", on=False))["ok"]
        await asyncio.sleep(0)
        now = {task for task in asyncio.all_tasks() if "Percentages" in str(task.get_coro())}
        assert len(waiting) == 1 and len(now) == 2, "the one under way, and the last that waits"
        assert (await vmm.ask("change", zone=2))["change"]["percent"] == 29

    run(tmp_path, certificates, test)


@pytest.mark.usefixtures("quick")
def test_a_change_that_fails_half_way(tmp_path: Path, certificates: Certificates) -> None:
    """The VMM takes it on, and says later why it is impossible; the counter is used, the zones are as they were."""

    async def test(daemon: Daemon) -> None:
        _, vmm, owner = await begin(daemon, script={"encrypt": "slow", "change": "error"})
        await vmm.tell("encrypt", message=owner.percent(2, 40, 1))
        await vmm.hear_of("encrypt")
        change = await until(vmm, 2, "failed")
        assert (change["error"], change["hint"], change["left"]) == ("change fails", "a test", 0)
        assert not (await vmm.ask("encrypt", message=owner.percent(2, 40, 1)))["ok"], "replayed"
        # Another one, with the system's before it, which fails: the application's is not begun.
        await vmm.tell("encrypt", message=owner.percent(1, 95, 2))
        await vmm.hear_of("encrypt")
        await until(vmm, 1, "failed")
        assert [(one["zone"], one["percent"]) for one in vmm.seen] == [(2, 40), (0, 95)]

    run(tmp_path, certificates, test)


@pytest.mark.parametrize("end", ["the VMM dies", "destroyed", "the guest ends"])
@pytest.mark.usefixtures("quick")
def test_a_realm_that_ends_while_it_is_changed(tmp_path: Path, certificates: Certificates, end: str) -> None:
    async def test(daemon: Daemon) -> None:
        script = {"encrypt": "stuck", **({"stats": "die"} if end == "the VMM dies" else {})}
        handle, vmm, owner = await begin(daemon, script=script)
        await vmm.tell("encrypt", message=owner.percent(1, 95, 1))
        assert (await vmm.hear_of("encrypt"))["ok"]
        await vmm.ask("encrypt", message=owner.percent(2, 50, 2))  # waits
        if end == "the VMM dies":
            await vmm.tell("stats")
        elif end == "destroyed":
            await daemon.call("DELETE", f"/v1/domains/{handle}")
            await vmm.request("destroy")
        else:
            await vmm.emit(event="ended", reason="poweroff", detail="", ran=1.0)
        await daemon.state(handle, "destroyed" if end == "destroyed" else "failed")
        assert not alive(vmm.pid)
        assert (await daemon.get("/v1/host")).json["domains"] == 0

    run(tmp_path, certificates, test)


@pytest.mark.usefixtures("quick")
def test_a_vmm_that_does_not_say_how_far_it_is(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, owner = await begin(daemon, script={"encrypt": "lies"})
        await vmm.tell("encrypt", message=owner.percent(2, 40, 1))
        await vmm.hear_of("encrypt")
        assert "does not say how far" in (await until(vmm, 2, "failed"))["error"]
        await daemon.state(handle, "running")

    run(tmp_path, certificates, test)


@pytest.mark.usefixtures("quick")
def test_no_sampling_while_a_percentage_changes(tmp_path: Path, certificates: Certificates) -> None:
    """It would wait for the change, and the VMM with it. To end it is noted, and done afterwards."""

    async def test(daemon: Daemon) -> None:
        release = tmp_path / "release"
        _, vmm, owner = await begin(daemon, script={"encrypt": "stuck", "release": str(release)}, follow=False)
        await vmm.tell("sample", on=True, seconds=10)
        await vmm.request("sample")
        assert (await vmm.hear())["ok"]
        await vmm.tell("encrypt", message=owner.percent(1, 95, 1))
        await vmm.hear_of("encrypt")
        assert "being changed" in (await vmm.ask("sample", on=True, seconds=5))["error"]
        assert (await vmm.ask("sample", on=False))["ok"]
        release.touch()
        assert (await vmm.request("sample"))["on"] is False
        assert (await until(vmm, 1, "done"))["percent"] == 95

    run(tmp_path, certificates, test)


def test_no_such_change(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        _, vmm, _ = await begin(daemon)
        assert (await vmm.ask("change", zone=99))["change"] is None
        for zone in (-1, "1", None, True, 1.0, [1]):
            assert not (await vmm.ask("change", zone=zone))["ok"]

    run(tmp_path, certificates, test)


def test_stats_are_for_the_agent_only(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, _ = await begin(daemon)
        await vmm.tell("stats")
        await vmm.request("stats")
        assert (await vmm.hear())["zones"] == [{"pages": 1, "percent": 50}]
        assert "zones" not in (await daemon.get(f"/v1/domains/{handle}")).json

    run(tmp_path, certificates, test)


def test_sampling_is_for_the_agent_only(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vambrace.host.realm.SAMPLE_GRACE", 0.05)

    async def test(daemon: Daemon) -> None:
        _, vmm, _ = await begin(daemon)
        await vmm.tell("sample", on=True, seconds=0)
        assert (await vmm.request("sample"))["on"] is True
        assert (await vmm.hear())["ok"]
        assert (await vmm.request("sample"))["on"] is False, "nobody has ended it"
        for seconds in (-1, 1e9, True, 3601):
            await vmm.tell("sample", on=True, seconds=seconds)
            assert not (await vmm.hear())["ok"]
        for on in ("yes", 1, None):
            await vmm.tell("sample", on=on)
            assert not (await vmm.hear())["ok"]
        await vmm.tell("reuse")
        await vmm.request("reuse")
        assert (await vmm.hear())["fault_ns"] == 5

    run(tmp_path, certificates, test)


def test_malformed_lines(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, _ = await begin(daemon)
        lines = [
            b"",
            b"not JSON",
            b"\xff\xfe\x00",
            b"[]",
            b"7",
            b"[" * 60000,
            b'{"id": 1}',
            b'{"id": "1", "op": "identity"}',
            b'{"id": true, "op": "identity"}',
            b'{"id": -1, "op": "identity"}',
            b'{"id": 1e3, "op": "identity"}',
            b'{"id": 1, "op": ["identity"]}',
            b'{"id": 1, "op": "destroy"}',
            b'{"id": 1, "op": "report", "state": "destroyed"}',
            b'{"id": 1, "op": "report", "state": "ready", "detail": 7}',
            b'{"id": 1, "op": "report", "state": ["ready"]}',
        ]
        for line in lines:
            await vmm.say(line + b"\n")
            reply = await vmm.hear()
            assert reply["ok"] is False, line
        await vmm.say(b"x" * (LINE_LIMIT + 1))
        assert (await vmm.hear())["ok"] is False
        await vmm.say(b"x" * LINE_LIMIT + b"\n")
        assert (await vmm.ask("identity"))["ok"], "the port recovers after an overlong line"
        await daemon.state(handle, "running")

    run(tmp_path, certificates, test)


def test_flood_ends_the_realm_and_the_daemon_lives(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, _ = await begin(daemon)
        await vmm.say(b'{"id": 1, "op": "identity"}\n' * 3000)
        view = await daemon.state(handle, "failed")
        assert "more requests than may wait" in view["reason"]
        assert (await daemon.get("/v1/host")).json["domains"] == 0

    run(tmp_path, certificates, test)


def test_succeeded_and_failed(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, _ = await begin(daemon)
        await vmm.tell("report", state="failed", detail="analysis ended\nwith 1 " + "x" * 9999)
        view = await daemon.state(handle, "failed")
        assert view["reason"].startswith("analysis ended?with 1")
        assert len(view["reason"]) <= 200

    run(tmp_path, certificates, test)
