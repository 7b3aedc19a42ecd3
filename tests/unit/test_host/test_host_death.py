"""Deaths: of a VMM in every stage, and of the daemon itself, killed without a word while a Realm runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest
from harness import FAKES, PATIENCE, Daemon, alive, run, soon
from harness_certificates import Certificates

_DAEMON = """
import asyncio, sys
from pathlib import Path
from vambrace.host.__main__ import serve
from vambrace.host.settings import Settings
from plain_launcher import PlainLauncher

keys, state, devices, port, *vmm = sys.argv[1:]
keys, state, devices = Path(keys), Path(state), Path(devices)
settings = Settings(
    certificate=keys / "server.pem", key=keys / "server.key", client_ca=keys / "ca.pem", state=state,
    endorsement=state / "endorsement.pem", vendor_root=keys / "vendor-root.pem",
    listen="127.0.0.1", port=int(port), guest_memory=1 << 30,
    insecure="no-trustzone", vmm_cpus=(0,), shared_cpus=(0,), allow_affinity=True,
    cgroups=state / "no-cgroups", devices=devices,
)
asyncio.run(serve(settings, PlainLauncher(*vmm)))
"""


class DaemonProcess(Daemon):
    """The daemon as a process of its own, so that it can be killed."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            super().__init__(directory, certificates, port=probe.getsockname()[1])

    async def start(self, *, endorse: bool = True) -> None:
        settings = self.settings
        arguments = [str(settings.certificate.parent), str(settings.state), str(settings.devices), str(settings.port)]
        root = Path(__file__).parents[3]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _DAEMON, *arguments, sys.executable, str(FAKES / "fake_vmm.py")),
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(FAKES)},
        )
        self.url = f"https://127.0.0.1:{settings.port}"
        connector = aiohttp.TCPConnector(ssl=self.certificates.client_context())
        self.session = aiohttp.ClientSession(self.url, connector=connector)
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    platform = (await self.get("/v1/platform")).json
                    break
                assert self.process.returncode is None
                await asyncio.sleep(0.05)
        # Software keys are others after each start, so the vendor endorses them anew.
        chain = self.certificates.endorse(bytes.fromhex(platform["platform_key"]))
        assert (await self.call("PUT", "/v1/platform/endorsement", data=chain)).status == 200

    async def stop(self) -> None:
        await self.session.close()
        if self.process.returncode is None:
            self.process.terminate()
        await soon(self.process.wait())

    async def kill(self) -> None:
        self.process.kill()
        await soon(self.process.wait())
        await self.session.close()


async def gone(pid: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while alive(pid):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("eof", ["exits", "ignore"], ids=["VMM sees it", "VMM hangs"])
@pytest.mark.parametrize("stage", ["awaiting-verdict", "running"])
def test_the_daemon_is_killed(tmp_path: Path, certificates: Certificates, stage: str, eof: str) -> None:
    """A VMM wipes and ends when its daemon is gone; one that hangs is killed by the next daemon, which knows it."""

    async def test() -> None:
        async with DaemonProcess(tmp_path, certificates) as daemon:
            script = {"eof": eof}
            handle, vmm = await (daemon.running if stage == "running" else daemon.awaiting)(script)
            token = (await daemon.get(f"/v1/domains/{handle}/token")).body
            image = (await daemon.get(f"/v1/domains/{handle}")).json["image"]
            verdict = certificates.owner.sign_verdict(
                bytes.fromhex((await daemon.get(f"/v1/domains/{handle}")).json["instance"]), bytes(32), yes=True
            )
            assert token
            await daemon.kill()
            if eof == "ignore":
                assert alive(vmm.pid)
            (daemon.settings.state / "tmp" / "upload").write_bytes(b"half of an image")
            await daemon.start()
            await gone(vmm.pid)
            view = (await daemon.get(f"/v1/domains/{handle}")).json
            assert (view["state"], view["reason"]) == ("failed", "host restarted")
            assert view["executed"] is (stage == "running")
            assert not view["token"] and (await daemon.verdict_bytes(handle, verdict)).status == 409
            assert list((daemon.settings.state / "tmp").iterdir()) == []
            # Name, memory and image are there for the next one, which lives as ever.
            assert (await daemon.get("/v1/host")).json["memory"]["used"] == 0
            again = await daemon.create(image)
            second = await daemon.vmm()
            await second.request("load")
            await daemon.state(again, "awaiting-verdict")
            assert (await daemon.get(f"/v1/domains/{again}")).json["instance"] != view["instance"]
            assert (await daemon.call("DELETE", f"/v1/domains/{again}")).json["state"] == "destroyed"
            assert not alive(second.pid)

    asyncio.run(test())


@pytest.mark.parametrize("stage", ["awaiting-verdict", "running"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda number: number.name)
def test_a_vmm_dies(tmp_path: Path, certificates: Certificates, stage: str, number: signal.Signals) -> None:
    """Its Realm has failed, the others and the daemon go on, and the name is free."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await (daemon.running if stage == "running" else daemon.awaiting)()
        image = (await daemon.get(f"/v1/domains/{handle}")).json["image"]
        other = await daemon.create(image, "other")
        bystander = await daemon.vmm()
        await bystander.request("load")
        await daemon.state(other, "awaiting-verdict")
        os.kill(vmm.pid, number)
        view = await daemon.state(handle, "failed")
        assert view["executed"] is (stage == "running") and view["reason"]
        assert not alive(vmm.pid)
        assert (await daemon.verdict(other, "yes")).status == 200
        await bystander.request("start")
        await daemon.state(other, "running")
        assert (await daemon.get("/v1/host")).json["domains"] == 1
        assert await daemon.create(image)

    run(tmp_path, certificates, test)
