"""The operator, who may call the host's API as they like: every path, every method, any body, to a living Realm.

None of it gives memory, console or statistics, changes a percentage, or starts a Realm whose user did not say yes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from described import Answer, check
from harness import SPECIFICATION, Daemon, Vmm, run, soon
from harness_certificates import Certificates

from vambrace.host import metrics

METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "OPTIONS", "TRACE", "DELETE")
# Names that somebody might try, beside those that are described.
GUESSES = (
    *(f"/v1/domains/{{uuid}}/{name}" for name in ("console", "memory", "dump", "stats", "encrypt", "start", "logs")),
    *("/v1/stats", "/v1/memory", "/v1/console", "/v1/debug", "/metrics/zones", "/", "/v1"),
    "/v1/domains/{uuid}/../../../etc/passwd",
    "/v1/images/{sha256}/kernel",
)
# What a guest says on its two ports: the test searches for it everywhere.
CONSOLE = b"canary-of-the-console-0123456789"
AGENT = b"canary-of-the-agent-0123456789"


async def asked(vmm: Vmm) -> list[str]:
    """The operations that the VMM was asked for since the test last looked."""
    loop, operations = asyncio.get_running_loop(), []
    while True:
        try:
            packet = await asyncio.wait_for(loop.sock_recv(vmm.stream, 1 << 17), 0.2)
        except TimeoutError:
            return operations
        if not packet:
            return operations
        operations.append(json.loads(packet)["op"])


def bodies(daemon: Daemon, view: dict[str, Any]) -> Iterator[bytes]:
    """Bodies for any call: nothing, noise, JSON of other APIs, and what the operator may have caught or forged."""
    instance = bytes.fromhex(view["instance"])
    owner, stranger = daemon.certificates.owner, daemon.certificates.stranger
    yield b""
    yield os.urandom(200)
    for value in (
        {},
        {"op": "start"},
        {"op": "encrypt", "zone": 1, "percent": 0},
        {"percent": 0},
        {"state": "running"},
    ):
        yield json.dumps(value).encode()
    yield json.dumps({"name": view["name"], "image": view["image"], "nonce": view["nonce"]}).encode()
    yield json.dumps({"name": view["name"], "image": view["image"], "nonce": "00" * 32}).encode()
    yield stranger.sign_verdict(instance, bytes(32), yes=True)
    yield owner.sign_verdict(instance, bytes(32), yes=True)  # for a token that is not this Realm's
    yield stranger.sign_percent(instance, 1, 0, 1 << 40)
    yield owner.sign_percent(instance, 1, 0, 1 << 40)  # caught on its way: to be carried by the agent only


def paths() -> list[str]:
    return [*SPECIFICATION["paths"], *GUESSES]


async def call(daemon: Daemon, method: str, template: str, body: bytes, **names: str) -> Answer:
    """One call, checked against the description where that has it."""
    path = template.format(owner="ab" * 64, name="records", **names)
    async with daemon.session.request(method, path, data=body or None) as response:
        answer = Answer(response.status, dict(response.headers), await response.read())
    if method.lower() in SPECIFICATION["paths"].get(template, {}):
        check(SPECIFICATION, method, path, answer)
    return answer


async def talk(vmm: Vmm) -> None:
    """The guest writes on its console and says things to the monitor; a VMM gone bad forwards both."""
    await vmm.emit(event="console", data=base64.b64encode(CONSOLE * 3 + b"\n").decode())
    await vmm.say(b'{"id": 1, "op": "' + AGENT + b'"}\n')
    assert AGENT.decode() not in (await vmm.hear())["error"]


def test_every_call_of_the_api(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    # A reading for the metrics is the daemon's own doing, whatever the operator calls: not while the test looks.
    monkeypatch.setattr(metrics, "REFRESH_SECONDS", 3600.0)

    async def test(daemon: Daemon) -> None:
        image = await daemon.upload()
        running = await daemon.create(image, "running")
        guest = await daemon.vmm()
        await guest.request("load")
        await daemon.state(running, "awaiting-verdict")
        assert (await daemon.verdict(running, "yes")).status == 200
        await guest.request("start")
        await daemon.state(running, "running")
        assert (await guest.ask("report", state="ready"))["ok"]
        await talk(guest)
        waiting = await daemon.create(image, "waiting")
        unapproved = await daemon.vmm()
        await unapproved.request("load")
        await daemon.state(waiting, "awaiting-verdict")

        answers: list[tuple[str, Answer]] = []
        for handle in (running, waiting):
            view = (await daemon.get(f"/v1/domains/{handle}")).json
            for template in paths():
                for method in METHODS:
                    if method == "DELETE" and template == "/v1/domains/{uuid}":
                        continue  # the operator may destroy: below
                    for body in bodies(daemon, view):
                        answer = await call(daemon, method, template, body, uuid=handle, sha256=image)
                        answers.append((f"{method} {template} {handle}", answer))
            for query in ("?wait=0.01", "?unless=running&wait=0.01", "?memory=1&console=1"):
                answers.append((query, await daemon.call("GET", f"/v1/domains/{handle}{query}", data=b"")))

        served = {what for what, answer in answers if answer.status < 400}
        assert f"GET /v1/domains/{{uuid}}/token {running}" in served, "the walk reached what there is"
        assert {what.split()[0] for what in served if what[0] != "?"} == {"GET", "HEAD", "PUT"}
        for what, answer in answers:
            text = answer.body + json.dumps(answer.headers).encode()
            for canary in (CONSOLE, AGENT, base64.b64encode(CONSOLE)[:24]):
                assert canary not in text, what
            assert b"plaintext" not in text, what

        # Nothing that a Realm did not do by itself.
        assert (await daemon.get(f"/v1/domains/{waiting}")).json["state"] == "awaiting-verdict"
        assert (await daemon.get(f"/v1/domains/{waiting}")).json["executed"] is False
        assert (await daemon.get(f"/v1/domains/{running}")).json["state"] == "running"
        assert await asked(guest) == []
        assert await asked(unapproved) == []

        for handle, vmm in ((running, guest), (waiting, unapproved)):
            view = (await daemon.call("DELETE", f"/v1/domains/{handle}")).json
            assert view["state"] == "destroyed" and view["executed"] is (handle == running)
            assert await asked(vmm) == ["destroy"]
        for path in daemon.settings.state.rglob("*"):
            data = b"" if path.is_dir() else path.read_bytes()
            assert CONSOLE not in data and AGENT not in data, path

    run(tmp_path, certificates, test)
    assert CONSOLE.decode() not in caplog.text and AGENT.decode() not in caplog.text


def test_statistics_and_percentages_are_not_the_operator_s(tmp_path: Path, certificates: Certificates) -> None:
    """The owner's order goes through the agent and changes the window; what the API shows is the same as before."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        before = (await daemon.get(f"/v1/domains/{handle}")).body
        instance = bytes.fromhex(json.loads(before)["instance"])
        order = certificates.owner.sign_percent(instance, 2, 35, 1)
        assert (await daemon.verdict_bytes(handle, order)).status == 409, "the operator hands it in"
        await vmm.tell("encrypt", message=base64.b64encode(order).decode())
        assert (await vmm.request("encrypt"))["percent"] == 35
        assert (await vmm.hear())["ok"]
        assert (await daemon.get(f"/v1/domains/{handle}")).body == before

    run(tmp_path, certificates, test)


def test_the_channel_is_bytes_that_the_agent_alone_understands(tmp_path: Path, certificates: Certificates) -> None:
    """The operator may open it: what is said there reaches the guest's agent, and neither monitor nor VMM."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        received = asyncio.Event()
        heard = b""

        async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal heard
            while data := await reader.read(1000):
                heard += data
                received.set()
            writer.close()

        server = await asyncio.start_unix_server(agent, daemon.agent_path)
        sent = b'{"id": 1, "op": "encrypt", "zone": 1, "percent": 0}\n'
        async with daemon.session.ws_connect(f"/v1/domains/{handle}/channel") as channel:
            await channel.send_bytes(sent)
            await soon(received.wait())
            await channel.send_str("text is none of it")
            message = await soon(channel.receive())
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert heard == sent
        assert await asked(vmm) == []
        server.close()
        await server.wait_closed()

    run(tmp_path, certificates, test)


def test_a_realm_that_is_in_debug_mode_by_its_measured_word_only(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """A host set to allow debug Realms still shows no console of the others, wherever it logs to."""
    caplog.set_level(logging.DEBUG)

    async def test(daemon: Daemon) -> None:
        _, vmm = await daemon.running()
        await talk(vmm)
        await vmm.ask("identity")  # what came before it was dealt with

    run(tmp_path, certificates, test, allow_debug=True)
    assert CONSOLE.decode() not in caplog.text

    async def debug(daemon: Daemon) -> None:
        _, vmm = await daemon.running(debug=True)
        await talk(vmm)
        await vmm.ask("identity")

    (tmp_path / "debug").mkdir()
    run(tmp_path / "debug", certificates, debug, allow_debug=True)
    assert CONSOLE.decode() in caplog.text, "and the test would see it"
