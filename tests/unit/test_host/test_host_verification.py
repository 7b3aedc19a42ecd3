"""Whether each domain has for itself what the account says: the host's verification, and the command that shows it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from harness import CPUS, MIB, Daemon, alive, alone, introduce, run, soon, two_processors
from harness_certificates import Certificates

from vambrace.cli.main import main
from vambrace.errors import HostError
from vambrace.host import shares
from vambrace.partition.cgroups import Cgroups

root = pytest.mark.skipif(os.geteuid() != 0, reason="page frame numbers are shown to root only")


async def verified(daemon: Daemon) -> dict[str, Any]:
    view: dict[str, Any] = (await daemon.get("/v1/partition/verification")).json
    assert view["passed"] is not bool(view["findings"])
    return view


@root
def test_verification(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        assert (await verified(daemon))["domains"] == []
        _, vmm = await daemon.running()
        await daemon.awaiting(name="other")
        found = await verified(daemon)
        assert found["passed"], found
        assert found["domains"] == ["patients", "other"] and found["threads"] >= 2 and found["descriptors"] >= 6
        assert found["enforcement"] == "affinity"
        if len(CPUS) > 1:
            # Both domains keep to one processor; one of them is put on another.
            os.sched_setaffinity(vmm.pid, CPUS[1:])
            found = await verified(daemon)
            assert len(found["findings"]) == 1
            assert found["findings"][0].startswith(f"patients: its thread {vmm.pid} (")

    run(tmp_path, certificates, test, vmm_cpus=CPUS[:1], shared_cpus=CPUS[:1])


@root
@two_processors
def test_what_the_kernel_does_not_enforce_is_found(tmp_path: Path, certificates: Certificates, tree: Cgroups) -> None:
    """The directory is no kernel: strangers may run on the domain's processor, and its VMM is in no group."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        found = (await verified(daemon))["findings"]
        for words in (f"threads of others may run on its processor {CPUS[-1]}: ", f"its process {vmm.pid} is in the"):
            assert any(line.startswith(f"patients: {words}") for line in found)
        (tree.path(handle) / "cpuset.cpus.partition").write_text("isolated invalid (hotplug)")
        assert (
            "patients: its processors are not isolated: isolated invalid (hotplug)"
            in (await verified(daemon))["findings"]
        )

    run(tmp_path, certificates, test, **alone(tree, CPUS[-1]))


# The command

@root
@two_processors
def test_the_command(tmp_path: Path, certificates: Certificates, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(daemon: Daemon) -> None:
        introduce(daemon)

        async def command(*words: str) -> tuple[int, str]:
            capsys.readouterr()
            code = await asyncio.to_thread(main, ["partition", *words])
            return code, capsys.readouterr().out

        handle, vmm = await daemon.running()
        await daemon.awaiting(name="other")
        code, out = await command("--verify")
        assert code == 0
        lines = out.splitlines()
        assert lines[0].split() == ["DOMAIN", "MEMORY", "PROCESSORS", "SHARED", "PROCESSORS"]
        memory = (await daemon.get(f"/v1/domains/{handle}")).json["memory"]
        assert lines[1].split() == ["patients", str(memory // MIB), "MiB", "-", str(CPUS[0])]
        assert lines[2].split()[0] == "other"
        assert lines[4].split() == ["(all)", "1024", "MiB", "-", str(CPUS[0])]
        assert "NOT enforced by the kernel" in out and "no cgroup v2" in out
        assert f"patients and other share processor {CPUS[0]}, as the host's settings allow" in lines
        assert lines[-1].startswith("verified: page frames, processors and files are each domain's as they were given")
        assert "(2 domains, " in lines[-1]

        os.sched_setaffinity(vmm.pid, CPUS[1:])
        code, out = await command("--verify")
        assert code == HostError.exit_code
        assert "NOT APART" in out and "  patients: its thread" in out
        code, out = await command("--verify", "--json")
        assert code == HostError.exit_code
        value = json.loads(out)
        assert value["verification"]["passed"] is False and len(value["domains"]) == 2
        assert "verification" not in json.loads((await command("--json"))[1])

        path = tmp_path / "partition.svg"
        assert (await command("--picture", str(path)))[0] == 0
        texts = [element.text for element in ElementTree.parse(path).iter() if element.text and element.text.strip()]
        assert "memory" in texts and "shared" in texts and texts.count("patients") == 2, "in its bar, and the legend"
        assert f"{CPUS[0]}: patients, other" in texts

    run(tmp_path, certificates, test, vmm_cpus=CPUS[:1], shared_cpus=CPUS[:1])


def test_one_verification_at_a_time(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is asked for, and the host answers others meanwhile."""
    running, most = 0, 0

    async def test(daemon: Daemon) -> None:
        real = shares.verify

        def counted(domains: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return real(domains)
            finally:
                running -= 1

        monkeypatch.setattr(shares, "verify", counted)
        asked = [asyncio.create_task(daemon.get("/v1/partition/verification")) for _ in range(5)]
        assert (await daemon.get("/v1/host")).status == 200
        for answer in await soon(asyncio.gather(*asked)):
            assert answer.status in (200, 503)
        assert most == 1
        handle, vmm = await daemon.awaiting()
        await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert not alive(vmm.pid)

    run(tmp_path, certificates, test)
