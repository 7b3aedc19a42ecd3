"""What domains use of the processors, as far as an operator may know."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from harness import CPUS, Daemon, run
from harness_certificates import Certificates

from vambrace.cli import top
from vambrace.cli.main import main
from vambrace.client.context import Context, HostEntry
from vambrace.host.usage import INTERVAL, STEP, Usage
from vambrace.partition.cgroups import Cgroups


class Machine:
    """Seconds, and microseconds that each domain has run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spent: dict[str, int | None] = {}
        self.usage = Usage(lambda: tuple(self.spent), lambda uuid: self.spent[uuid], lambda: self.now)

    def passes(self, **ran: int) -> None:
        """An interval, in which each of these ran so many milliseconds."""
        self.now += INTERVAL
        for uuid, milliseconds in ran.items():
            self.spent[uuid] = (self.spent.get(uuid) or 0) + milliseconds * 1000
        self.usage.sample()


def test_shares_come_in_steps_and_of_whole_intervals() -> None:
    machine = Machine()
    machine.spent = {"a": 5_000_000, "b": 0}
    machine.usage.sample()
    assert machine.usage.share("a") is None, "how long it ran before is nobody's to know from one look"
    machine.passes(a=1000, b=4000)
    assert (machine.usage.share("a"), machine.usage.share("b")) == (50, 200)
    # What a single request costs does not show.
    machine.passes(a=1001, b=0)
    assert (machine.usage.share("a"), machine.usage.share("b")) == (50, 0)
    machine.passes(a=1010, b=49)
    assert (machine.usage.share("a"), machine.usage.share("b")) == (50, 0)
    machine.passes(a=2000 * (50 + STEP) // 100, b=2000 * STEP // 100)
    assert (machine.usage.share("a"), machine.usage.share("b")) == (50 + STEP, STEP)


def test_domains_that_come_and_go_or_that_nobody_counts() -> None:
    machine = Machine()
    machine.spent = {"a": 0}
    machine.passes(a=0)
    machine.passes(a=2000)
    del machine.spent["a"]
    machine.passes()
    assert machine.usage.share("a") is None
    machine.spent = {"a": None, "b": 7}
    machine.passes()
    machine.passes(b=200)
    assert (machine.usage.share("a"), machine.usage.share("b")) == (None, 10)


def test_the_kernel_s_count(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path)
    groups.path("a").mkdir()
    assert groups.processor_time("a") is None
    (groups.path("a") / "cpu.stat").write_text("usage_usec 123456\nuser_usec 100000\nsystem_usec 23456\n")
    assert groups.processor_time("a") == 123456
    (groups.path("a") / "cpu.stat").write_text("usage_usec\n")
    assert groups.processor_time("a") is None


def test_the_host_s_view(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, _ = await daemon.running()
        view = (await daemon.get("/v1/usage")).json
        (domain,) = view["domains"]
        assert view["interval"] == INTERVAL
        assert (domain["uuid"], domain["name"], domain["state"]) == (handle, "patients", "running")
        assert domain["class"] == "realm" and domain["cpu"] is None, "there is no cgroup here"
        assert domain["processors"] == [] and set(domain["shared_processors"]) <= set(CPUS)
        assert domain["memory"] == (await daemon.get(f"/v1/domains/{handle}")).json["memory"]
        await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert (await daemon.get("/v1/usage")).json["domains"] == []

    run(tmp_path, certificates, test)


def test_the_command(
    tmp_path: Path, certificates: Certificates, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "BETWEEN", 0.0)

    async def test(daemon: Daemon) -> None:
        keys = certificates.directory
        paths = {"certificate": keys / "client.pem", "key": keys / "client.key", "ca": keys / "ca.pem"}
        Context().add_host("test", HostEntry(url=daemon.url, **{name: str(path) for name, path in paths.items()}))

        async def command(*words: str) -> tuple[int, str]:
            capsys.readouterr()
            code = await asyncio.to_thread(main, ["top", *words])
            said = capsys.readouterr()
            return code, said.out + said.err

        code, out = await command("--once")
        assert code == 0 and out.split() == [word for name in top.HEAD for word in name.split()]
        handle, _ = await daemon.running()
        code, out = await command("--once", "--no-progress")
        row = out.splitlines()[1].split()
        assert code == 0 and row[:3] == ["patients", "realm", "running"] and row[-5:] == ["-"] * 5
        code, out = await command("--json")
        (domain,) = json.loads(out)
        assert (domain["uuid"], domain["kind"], domain["inside"]) == (handle, "realm", None)
        code, out = await command()
        assert code == 2 and "--once prints one table" in out

    run(tmp_path, certificates, test)
