"""``GET /metrics``: what an operator can watch, and that it is coarse."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from described import Answer
from harness import PATIENCE, Daemon, Vmm, run
from harness_certificates import Certificates
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vambrace.errors import DomainError
from vambrace.host import metrics
from vambrace.host.metrics import GRAIN, PAGE, Coarse, summed

LIVING = ("created", "loading", "awaiting-verdict", "encrypting", "running", "destroying")
FINAL = ("succeeded", "stopped", "refused", "failed", "destroyed")
SETTLED = ("vambrace_host_uptime_seconds", "vambrace_memory_limit_bytes")
WINDOW = {
    "vambrace_window_faults_total": GRAIN,
    "vambrace_window_evictions_total": GRAIN,
    "vambrace_window_encrypted_bytes_total": GRAIN * PAGE,
    "vambrace_window_decrypted_bytes_total": GRAIN * PAGE,
}


def zone(grains: float, **changes: Any) -> dict[str, Any]:
    """Statistics of a zone that has done ``grains`` steps of everything."""
    pages = int(grains * GRAIN)
    counts = {"faults": pages, "evictions": pages, "bytes_encrypted": pages * PAGE, "bytes_decrypted": pages * PAGE}
    return {"pages": 4096, "percent": 50, **counts, **changes}


def samples(answer: Answer) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            labels = "".join(f" {value}" for value in sample.labels.values())
            found[sample.name + labels] = sample.value
    return found


async def show(daemon: Daemon) -> dict[str, float]:
    return samples(await daemon.get("/metrics"))


async def tell(vmm: Vmm, zones: Any) -> None:
    """Answer the daemon's next request for statistics."""
    request = await vmm.request("stats")
    await vmm.emit(id=request["id"], ok=True, zones=zones)


async def until(daemon: Daemon, good: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    async with asyncio.timeout(PATIENCE):
        while not good(found := await show(daemon)):
            await asyncio.sleep(0.02)
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REFRESH_SECONDS", 0.05)


def test_the_format_and_the_life_of_realms(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        answer = await daemon.get("/metrics")
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = answer.body.decode()
        for family in text_string_to_metric_families(text):
            assert family.name.startswith("vambrace_") and family.documentation
            assert family.type in ("gauge", "counter"), family.name
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        assert names == {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
        empty = samples(answer)
        assert set(empty) == {
            *("vambrace_host_uptime_seconds", "vambrace_memory_limit_bytes", "vambrace_memory_committed_bytes"),
            *(f"vambrace_domains {state}" for state in LIVING),
            *(f"vambrace_domains_ended_total {state}" for state in FINAL),
            *("vambrace_domains_created_total", *WINDOW),
        }
        assert empty["vambrace_memory_limit_bytes"] == 1 << 30
        assert not any(value for name, value in empty.items() if name not in SETTLED), empty

        handle, _ = await daemon.running()
        waiting = await daemon.create(await daemon.upload(), "waiting")
        await (await daemon.vmm()).request("load")
        await daemon.state(waiting, "awaiting-verdict")
        found = await show(daemon)
        assert (found["vambrace_domains running"], found["vambrace_domains awaiting-verdict"]) == (1, 1)
        assert found["vambrace_domains_created_total"] == 2
        views = (await daemon.get("/v1/domains")).json["domains"]
        assert found["vambrace_memory_committed_bytes"] == sum(view["memory"] for view in views)
        text = (await daemon.get("/metrics")).body.decode()
        for view in views:
            for secret in (view["uuid"], view["name"], view["image"], view["instance"], "analysis"):
                assert f'"{secret}' not in text, "nothing is of one Realm"

        assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).status == 200
        assert (await daemon.verdict(waiting, "no")).status == 200
        await daemon.state(waiting, "refused")
        found = await until(daemon, lambda found: found["vambrace_domains_ended_total refused"] == 1)
        assert found["vambrace_domains_ended_total destroyed"] == 1 and found["vambrace_domains_created_total"] == 2
        assert found["vambrace_memory_committed_bytes"] == 0
        assert not any(found[f"vambrace_domains {state}"] for state in LIVING)

    run(tmp_path, certificates, test)


def test_no_metrics_without_a_certificate(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        connector = aiohttp.TCPConnector(ssl=certificates.client_context(None))
        async with aiohttp.ClientSession(daemon.url, connector=connector) as session:
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await session.get("/metrics")

    run(tmp_path, certificates, test)


def test_windows_are_summed_and_stay_so(tmp_path: Path, certificates: Certificates, quick: None) -> None:
    """Two Realms of two zones: their sum, within a step; what one has done is still there when it has ended."""

    def about(found: dict[str, float], grains: float) -> bool:
        return all(found[name] % grain == 0 and abs(found[name] / grain - grains) < 1 for name, grain in WINDOW.items())

    async def test(daemon: Daemon) -> None:
        first, one = await daemon.running({"stats": "silent"})
        image = await daemon.upload({"stats": "silent"}, name="other")
        second = await daemon.create(image, "second")
        other = await daemon.vmm()
        await other.request("load")
        await daemon.state(second, "awaiting-verdict")
        await daemon.verdict(second, "yes")
        await other.request("start")
        await daemon.state(second, "running")

        await show(daemon)
        await tell(one, [zone(10), zone(20.5)])
        await tell(other, [zone(3), zone(0)])
        await until(daemon, lambda found: about(found, 33.5))
        # The next reading counts what is new, and nothing twice.
        await tell(one, [zone(10), zone(30.5)])
        await tell(other, [zone(3), zone(0)])
        await until(daemon, lambda found: about(found, 43.5))
        await tell(one, [zone(10), zone(1)])  # it takes something back
        await tell(other, [zone(3), zone(0)])
        assert about(await show(daemon), 43.5)

        await daemon.call("DELETE", f"/v1/domains/{first}")
        assert about(await show(daemon), 43.5)
        await tell(other, [zone(5), zone(0)])
        await until(daemon, lambda found: about(found, 45.5))

    run(tmp_path, certificates, test)


@pytest.mark.parametrize("script", ["ok", "error"])
def test_a_vmm_that_has_no_statistics(tmp_path: Path, certificates: Certificates, quick: None, script: str) -> None:
    """It is refused, or (by the fake) incomplete: the Realm lives, and the others are counted."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running({"stats": script})
        for _ in range(3):
            await show(daemon)
            await vmm.request("stats")
        assert not any(value for name, value in (await show(daemon)).items() if name in WINDOW)
        assert (await daemon.get(f"/v1/domains/{handle}")).json["state"] == "running"

    run(tmp_path, certificates, test)


def test_nobody_is_read_for_nobody(tmp_path: Path, certificates: Certificates, quick: None) -> None:
    """The pace is the daemon's: many questions are one reading, and none are none."""

    async def test(daemon: Daemon) -> None:
        _, vmm = await daemon.running()
        loop = asyncio.get_running_loop()

        async def asked() -> int:
            found = 0
            while True:
                try:
                    packet = await asyncio.wait_for(loop.sock_recv(vmm.stream, 1 << 17), 0.3)
                except TimeoutError:
                    return found
                assert json.loads(packet)["op"] == "stats"
                found += 1

        assert await asked() == 0
        metrics.REFRESH_SECONDS = 1.0  # from the next on
        await show(daemon)
        await asked()
        await asyncio.gather(*(show(daemon) for _ in range(20)))
        async with asyncio.timeout(PATIENCE):
            while not (found := await asked()):
                pass
        assert found == 1

    run(tmp_path, certificates, test)


@pytest.mark.parametrize(
    "zones",
    [
        [None],
        [[]],
        [{}],
        *([zone(1, faults=wrong)] for wrong in (-1, 1.5, "1", None, True, 1 << 64, [])),
        [zone(1), zone(1, bytes_decrypted=-1)],
    ],
)
def test_statistics_that_cannot_be(zones: list[Any]) -> None:
    with pytest.raises(DomainError):
        summed(zones)


@given(st.integers(1, 1000), st.lists(st.integers(0, 1 << 20) | st.integers(0, 1 << 68), max_size=30))
def test_a_coarse_count_is_within_a_step_of_the_exact_one(grain: int, counts: list[int]) -> None:
    coarse, exact, before = Coarse(grain), 0, 0
    for count in counts:
        coarse.add(count)
        exact += count
        assert coarse.published % grain == 0
        assert -grain < coarse.published - exact < grain
        assert coarse.published >= before
        before = coarse.published


def test_the_place_of_a_step_is_drawn_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who counts faults of their own up to a step knows nothing of the next one's place."""

    def places(steps: int) -> list[int]:
        coarse, found = Coarse(GRAIN), []
        for _ in range(steps):
            begun = coarse.published
            for place in range(0, GRAIN + 1, 1024):
                coarse._exact = begun + place
                coarse.add(0)
                if coarse.published > begun:
                    found.append(place)
                    break
        return found

    found = places(40)
    assert len(found) == 40 and len(set(found)) > 15 and min(found) < GRAIN // 4 < 3 * GRAIN // 4 < max(found)
    drawn: list[int] = []
    monkeypatch.setattr(secrets, "randbelow", lambda below: drawn.append(below) or 0)
    coarse = Coarse(GRAIN)
    coarse.add(1)
    assert coarse.published == GRAIN and drawn == [GRAIN, GRAIN]
