"""Percentages that the host holds within bounds: the loop, around a fake VMM, around a real window, in the daemon."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from harness import PATIENCE

from vambrace.attest.owner import Bounds
from vambrace.config import Zone
from vambrace.errors import DomainError
from vambrace.host import auto
from vambrace.host.auto import Auto
from vambrace.host.percent import Percentages
from vambrace.machine.control import Control
from vambrace.machine.descriptors import Descriptors
from vambrace.machine.vmm import State
from vambrace.pager import Window

MIB = 1 << 20
BOUNDS = Bounds(30, 90, 50)


# --- the loop -------------------------------------------------------------------------------------------------


class Zones:
    """A VMM of two zones, as the daemon sees it: an application that uses its pages in a circle.

    ``knee``: up to which percentage these fit into the window; ``idle``: it does not use them now.
    """

    def __init__(self, knee: int) -> None:
        self.knee, self.idle = knee, False
        self.percents = [80, 40]
        self.faults = 1000
        self.decrypted = 0
        self.asked: list[tuple[str, Any]] = []
        self.fails: dict[str, str] = {}
        self.lies: dict[str, Any] = {}
        self.sampling = False
        self.on_reuse: Callable[[], Awaitable[None]] | None = None

    async def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        self.asked.append((op, arguments))
        if op in self.fails:
            raise DomainError(self.fails[op], hint="a hint")
        if op == "encrypt":
            self.percents[arguments["zone"]] = arguments["percent"]
            return {"done": True}
        if op == "sample":
            self.sampling = arguments["on"]
            self.faults += 0 if self.idle else 7
            return {}
        if op == "stats":
            self.faults += 0 if self.idle else 5
            zones = [{"faults": faults, "bytes_decrypted": self.decrypted} for faults in (3, self.faults)]
            return {"zones": zones} | self.lies
        assert op == "reuse"
        if self.on_reuse:
            await self.on_reuse()
        touches, counts = 0 if self.idle else 100_000, [0] * 101
        if self.knee < 100:
            counts[99 - self.knee] = touches
        one = {"on": False, "shift": 4, "ns": 2 * 10**9, "touches": touches, "reuse": counts}
        return {"zones": [one, one], "fault_ns": 10_000} | self.lies

    def count(self, op: str) -> int:
        return sum(asked == op for asked, _ in self.asked)


class World:
    """The loop of one Realm, at a pace for tests."""

    def __init__(self, knee: int, *, follow: bool = True) -> None:
        self.vmm = Zones(knee)
        zones = (Zone("system", 96 * MIB, 80, follow), Zone("analysis", 16 * MIB, 40))
        self.percentages = Percentages(zones, self.vmm.request)
        self.percentages.current = list(self.vmm.percents)
        self.advised = False
        self.auto = Auto(zones, self.percentages, self.vmm.request, lambda: self.advised)

    @property
    def state(self) -> dict[str, Any]:
        state = self.auto.states()[1]
        assert state is not None
        return state

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.002)

    async def rounds(self, count: int) -> None:
        """So many pauses of the loop's."""
        await asyncio.sleep(count * (auto.PAUSE_SECONDS + auto.SAMPLE_SECONDS))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "SAMPLE_SECONDS", 0.005)
    monkeypatch.setattr(auto, "PAUSE_SECONDS", 0.01)


def play(test: Callable[[World], Awaitable[None]], knee: int = 73, **options: Any) -> None:
    async def body() -> None:
        world = World(knee, **options)
        try:
            await test(world)
        finally:
            await world.auto.close()
            await world.percentages.close()
        assert not world.auto._tasks and not world.percentages._tasks

    asyncio.run(body())


def test_it_converges_and_follows_what_changes() -> None:
    """Up to where the pages fit; down when more are used; the system's zone with it, never below."""

    async def test(world: World) -> None:
        world.auto.hold(1, BOUNDS)
        await world.until(lambda: world.vmm.percents[1] == 73)
        assert world.vmm.percents == [73, 73]
        await world.rounds(5)
        assert world.vmm.percents == [73, 73] and world.state["expected"] == 0
        world.vmm.knee = 45
        await world.until(lambda: world.vmm.percents[1] == 45)
        assert world.state == {**world.state, "idle": False, "error": "", "lowest": 30, "highest": 90, "slowdown": 50}
        values = [asked["percent"] for op, asked in world.vmm.asked if op == "encrypt" and asked["zone"] == 1]
        assert values == [50, 60, 70, 73, 53, 45]
        current = [80, 40]
        for op, asked in world.vmm.asked:
            if op == "encrypt":
                current[asked["zone"]] = asked["percent"]
                assert current[0] >= current[1]
        samples = [asked for op, asked in world.vmm.asked if op == "sample"]
        assert all(asked["zones"] == [1] for asked in samples), "nobody else's zone is slowed"
        assert [asked["on"] for asked in samples[:4]] == [True, False, True, False]

    play(test)


@pytest.mark.parametrize(("knee", "end"), [(0, 30), (100, 90)])
def test_bounds_are_kept(knee: int, end: int) -> None:
    async def test(world: World) -> None:
        world.auto.hold(1, BOUNDS)
        await world.until(lambda: world.vmm.percents[1] == end)
        await world.rounds(5)
        assert world.vmm.percents[1] == end

    play(test, knee)


def test_what_is_outside_is_brought_in_first() -> None:
    async def test(world: World) -> None:
        world.auto.hold(1, Bounds(60, 70, 50))
        await world.until(lambda: world.vmm.count("sample") > 0)
        assert world.vmm.percents[1] == 60, "before anything is sampled"
        world.auto.hold(1, Bounds(41, 50, 50))
        await world.until(lambda: world.vmm.percents[1] == 50)
        assert world.state["highest"] == 50

    play(test)


def test_an_idle_zone_is_left_alone() -> None:
    """One look at it, then nothing at all is sampled, until it has faults again."""

    async def test(world: World) -> None:
        world.vmm.idle = True
        world.auto.hold(1, BOUNDS)
        await world.until(lambda: world.state["idle"])
        sampled = world.vmm.count("sample")
        await world.rounds(10)
        assert world.vmm.count("sample") == sampled == 2 and world.vmm.percents[1] == 40
        assert world.state["expected"] is None
        world.vmm.idle = False
        await world.until(lambda: world.vmm.percents[1] == 73)
        assert not world.state["idle"]

    play(test)


def test_errors_leave_the_percentage_and_are_seen() -> None:
    async def test(world: World) -> None:
        world.auto.hold(1, BOUNDS)
        await world.until(lambda: world.vmm.percents[1] == 73)
        world.vmm.knee = 50
        for op in ("sample", "reuse", "encrypt"):
            world.vmm.fails = {op: f"{op} fails"}
            await world.until(lambda op=op: world.state["error"] == f"{op} fails")  # type: ignore[misc]
            assert world.vmm.percents[1] == 73
            world.vmm.fails = {}
            if op != "encrypt":
                world.vmm.knee = 73
                await world.until(lambda: not world.state["error"])
                world.vmm.knee = 50
        await world.until(lambda: world.vmm.percents[1] <= 53)

    play(test)


@pytest.mark.parametrize(
    "lies",
    [
        {"zones": None},
        {"zones": [{}]},
        {"zones": [{}, []]},
        {"zones": [{}, {"faults": -1}]},
        {"zones": [{}, {"reuse": [0] * 5, "faults": True}]},
        {"zones": [{}, {"shift": 4, "ns": 0, "touches": 500, "reuse": [9] * 101, "faults": "7"}]},
        {"fault_ns": -1},
        {"fault_ns": 1 << 70},
    ],
)
def test_samples_that_are_none_are_an_error(lies: dict[str, Any]) -> None:
    """The VMM faces a hostile guest: what it says is checked."""

    async def test(world: World) -> None:
        world.vmm.lies = lies
        world.auto.hold(1, BOUNDS)
        await world.until(lambda: world.state["error"] != "")
        assert world.vmm.percents[1] == 40

    play(test)


def test_released_it_stays_as_it_is() -> None:
    """Also in the middle of a round: sampling ends, and nothing is changed any more."""

    async def test(world: World) -> None:
        world.auto.hold(1, BOUNDS)
        await world.until(lambda: world.vmm.sampling)
        await world.auto.release(1)
        assert not world.vmm.sampling and world.auto.states() == [None, None]
        asked = len(world.vmm.asked)
        await world.rounds(5)
        assert len(world.vmm.asked) == asked and world.vmm.percents[1] == 40
        await world.auto.release(1)  # once more does no harm

    play(test)


def test_its_change_that_waits_is_given_up() -> None:
    """What was decided before the owner ordered otherwise does not come after it."""

    async def test(world: World) -> None:
        goes_on = asyncio.Event()
        others: list[asyncio.Task[None]] = []

        async def wait() -> None:
            await goes_on.wait()

        async def take_the_turn() -> None:
            if world.vmm.percents[1] == 50 and not others:
                others.append(asyncio.create_task(world.percentages.undisturbed(wait)))
                await world.until(lambda: world.percentages.busy)

        # With these samples the loop decides, and then it waits for nothing but its turn.
        world.vmm.on_reuse = take_the_turn
        world.auto.hold(1, BOUNDS)
        await world.until(lambda: len(others) == 1 and len(world.percentages._tasks) == 2)
        await world.auto.release(1)
        goes_on.set()
        await others[0]
        await world.rounds(3)
        assert world.vmm.percents[1] == 50 and not world.vmm.sampling and not world.percentages._tasks

    play(test)


def test_an_older_order_that_leaves_the_bounds_does_not_stay() -> None:
    """What runs between the bounds' coming and their turn may be anything."""

    async def test(world: World) -> None:
        release = asyncio.Event()
        blocking = asyncio.create_task(world.percentages.undisturbed(release.wait))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.wait((asyncio.create_task(world.percentages.begin(1, 20, 2)),), timeout=0.01)
        world.percentages.withdraw(1)
        world.auto.hold(1, BOUNDS)
        older = asyncio.create_task(world.percentages.set(1, lambda: 5))
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(blocking, older)
        await world.until(lambda: world.percentages.current[1] >= BOUNDS.lowest)
        order = world.percentages.change(1)
        assert order is not None and order.stage == "failed" and "newer order" in order.error
        assert ("encrypt", {"zone": 1, "percent": 20}) not in world.vmm.asked

    play(test)


def test_the_owner_s_adviser_goes_first() -> None:
    """While the owner samples, nobody else begins or ends it."""

    async def test(world: World) -> None:
        world.advised = True
        world.auto.hold(1, BOUNDS)
        await world.rounds(5)
        assert world.vmm.count("sample") == world.vmm.count("reuse") == 0
        # An agent need not be the owner's: who is held up sees why.
        assert "adviser" in world.state["error"]
        world.advised = False
        await world.until(lambda: world.vmm.sampling)
        world.advised = True
        before = world.vmm.count("sample")
        await world.rounds(5)
        assert world.vmm.count("sample") == before and world.vmm.sampling

    play(test)


# --- with a real window ---------------------------------------------------------------------------------------


class Program(threading.Thread):
    """Touches ``used`` pages in a circle, again and again."""

    def __init__(self, memory: memoryview, used: int) -> None:
        super().__init__(daemon=True)
        self.memory, self.used, self.ends = memory, used, False

    def run(self) -> None:
        while not self.ends:
            for page in range(self.used):
                self.memory[page * 4096] = 1


@pytest.mark.usefixtures("kernel")
def test_a_program_whose_working_set_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the VMM's own machine and window, real samples and the measured cost of a fault."""
    monkeypatch.setattr(auto, "SAMPLE_SECONDS", 0.2)
    pages = 4096
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Control(theirs)
    machine = control._machine
    window = machine._window = Window([(64, 40), (pages, 40)], bytes(32), bytes(range(16)))
    machine._zones, machine.state = 2, State.LOADED
    zones = (Zone("system", 96 * MIB, 40, True), Zone("analysis", pages << 12, 40))
    program, again = (Program(window.memory()[64 << 12 :], used) for used in (pages // 4, pages // 8))

    async def request(op: str, **arguments: Any) -> dict[str, Any]:
        message = {"op": op, **arguments}
        return json.loads(json.dumps(await asyncio.to_thread(control._serve, message, Descriptors())))  # type: ignore[no-any-return]

    async def body() -> None:
        percentages = Percentages(zones, request)
        holding = Auto(zones, percentages, request, lambda: False)
        holding.hold(1, Bounds(30, 90, 50))
        try:
            async with asyncio.timeout(60):
                while not 68 <= percentages.current[1] <= 76:  # a quarter is used
                    await asyncio.sleep(0.05)
                program.used = pages * 6 // 10
                while percentages.current[1] > 41 or percentages.current[0] != percentages.current[1]:
                    await asyncio.sleep(0.05)
                program.ends = True
                while not (state := holding.states()[1]) or not state["idle"]:
                    await asyncio.sleep(0.05)
                # Used again, it has faults, although all that is used is in the window: this is how it is noticed.
                again.start()
                while (state := holding.states()[1]) is None or state["idle"]:
                    await asyncio.sleep(0.05)
        finally:
            program.ends = again.ends = True
            await holding.close()
            await percentages.close()

    with ours, theirs:
        program.start()
        try:
            asyncio.run(body())
            assert window.stats(1).percent == window.stats(0).percent >= 30
        finally:
            for thread in (program, again):
                thread.ends = True
                if thread.ident is not None:
                    thread.join(PATIENCE)
                thread.memory.release()
            machine.close()
