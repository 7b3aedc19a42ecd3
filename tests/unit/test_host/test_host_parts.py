"""Parts of the cache on one host: what domains get, how a VMM gets its page frames, and what is found of a wrong one.

The frames are real, in windows of this process, as is their verification; the geometry is configured.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import fake_cgroups
import pytest
from fakes.resctrl import FakeResctrl
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.cache import DEMANDS, PREFERRED, REQUIRED, CacheShare
from vambrace.errors import CapacityError, Conflict, PartitionError
from vambrace.host import placing
from vambrace.host.caches import Division, undivided
from vambrace.host.settings import Settings
from vambrace.host.shares import Place, Shares
from vambrace.pager import PAGE_SIZE, Window
from vambrace.pager import Place as WindowPlace
from vambrace.partition import CachePartition, placement
from vambrace.partition.colours import Colours
from vambrace.partition.ledger import Request
from vambrace.partition.ways import Ways

MIB = 1 << 20
ME = os.getpid()
COLOURS = Colours(16)
BY_COLOURS = Division(CachePartition.UNCONFIRMED, "as the test says", colours=COLOURS)
HALF, ALL = CacheShare(REQUIRED, 50), CacheShare(REQUIRED, 100)

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees page frame numbers")
kernel = pytest.mark.usefixtures("kernel", "still")


def host(folder: Path, division: Division, *, memory: int = 1024, reserve: int = 0) -> Shares:
    """A host with ``memory`` MiB for domains, all on one shared processor."""
    cpu = min(os.sched_getaffinity(0))
    paths = ("certificate", "key", "client_ca", "state", "endorsement", "vendor_root")
    names: dict[str, Any] = dict.fromkeys(paths, folder)
    config = Settings(**names, vmm_cpus=(cpu,), shared_cpus=(cpu,))
    shares = Shares(config, memory * MIB, fake_cgroups.make(folder / "cgroups"))
    shares.parts.divide(division, reserve)
    return shares


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))  # type: ignore[arg-type]


async def make(shares: Shares, name: str, cache: CacheShare | None = None, *, guest: int = 64) -> Place:
    return await shares.reserve(name, name, (guest + 8) * MIB, 1, guest * MIB, cache)


@contextmanager
def threads(count: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with so many threads."""
    program = "import sys, threading\nfor _ in range(int(sys.argv[1]) - 1):\n"
    program += "    threading.Thread(target=threading.Event().wait, daemon=True).start()\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


# --- what a domain gets ----------------------------------------------------------------------------------------


def test_every_domain_has_colours(tmp_path: Path) -> None:
    """Who asks for none has as many as its memory needs, and nobody else has them."""

    async def test() -> None:
        shares = host(tmp_path, BY_COLOURS, reserve=10)
        assert shares.describe()["cache"] == {
            "partition": "colours-unconfirmed", "reason": "as the test says", "host": [0, 1],
        }  # fmt: skip
        half, plain = await make(shares, "half", HALF), await make(shares, "plain", guest=100)
        assert half.part.colours == tuple(range(2, 10)) and plain.part.colours == (10, 11)
        view = shares.describe()
        assert [domain["name"] for domain in view["domains"]] == ["half", "plain"], "the host is no domain"
        assert view["domains"][1]["items"] == {"colours": [10, 11]}
        assert view["kinds"][1] == {"name": "colours", "total": list(range(16)), "free": [12, 13, 14, 15]}
        with pytest.raises(CapacityError) as raised:
            await make(shares, "third", HALF)
        assert raised.value.message == (
            "third cannot be given 8 colours (free: 4 of 16 colours: 12-15; half holds 2-9; the host holds 0-1; "
            "plain holds 10-11)"
        )
        await half.leave()
        assert (await make(shares, "third", HALF)).part.colours == tuple(range(2, 10))

    run(test)


def test_what_fails_in_a_way_that_nobody_foresaw_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        shares = host(tmp_path, BY_COLOURS)
        before = shares.describe()

        def broken(*_: object, **__: object) -> None:
            raise OSError("the kernel says something new")

        monkeypatch.setattr(shares, "_create", broken)
        with pytest.raises(OSError, match="something new"):
            await make(shares, "first", HALF)
        assert shares.describe() == before

    run(test)


def test_more_colours_than_asked_where_the_memory_needs_them(tmp_path: Path) -> None:
    async def test() -> None:
        shares = host(tmp_path, BY_COLOURS)
        place = await make(shares, "large", CacheShare(REQUIRED, 7), guest=400)
        assert len(place.part.colours) == 8, "400 MiB and a quarter more, of 64 MiB each"

    run(test)


def test_preferred_is_less_where_it_must_be(tmp_path: Path) -> None:
    async def test() -> None:
        shares = host(tmp_path, BY_COLOURS)
        await make(shares, "first", CacheShare(REQUIRED, 75))
        place = await make(shares, "second", CacheShare(PREFERRED, 50))
        assert place.part.colours == (12, 13)
        with pytest.raises(CapacityError, match="third cannot be given 8 colours"):
            await make(shares, "third", CacheShare(PREFERRED, 50), guest=200)

    run(test)


def test_a_demand_that_no_host_of_this_kind_can_meet(tmp_path: Path) -> None:
    async def test() -> None:
        shares = host(tmp_path, undivided("the kernel offers no ways; colours are unconfirmed"))
        with pytest.raises(CapacityError) as raised:
            await make(shares, "strict", HALF)
        assert raised.value.message == (
            "strict demands a part of the cache for itself: the kernel offers no ways; colours are unconfirmed"
        )
        assert raised.value.hint is not None and "'preferred'" in raised.value.hint
        assert shares.ledger.shares == () and shares.cgroups is not None and shares.cgroups.domains() == []
        place = await make(shares, "modest", CacheShare(PREFERRED, 50))
        assert (place.part.colours, shares.parts.state(place.part)) == ((), CachePartition.NONE)

    run(test)


def test_ways(tmp_path: Path) -> None:
    """Only who asks for ways has some; all threads of its VMM are put there, and they go back at its end."""

    async def test() -> None:
        tree = FakeResctrl(tmp_path / "resctrl", closids=3)
        Ways(tree).assign("of-an-earlier-daemon", range(4, 6))
        shares = host(tmp_path, Division(CachePartition.WAYS, ways=Ways(tree)))
        assert tree.groups() == []
        place, plain = await make(shares, "half", HALF), await make(shares, "plain")
        assert (place.part.ways, plain.part.ways) == (tuple(range(6, 12)), ())
        assert shares.parts.state(place.part) is CachePartition.WAYS
        assert shares.parts.state(plain.part) is CachePartition.NONE
        with threads(3) as vmm:
            await place.enter(vmm.pid)
            await plain.enter(vmm.pid)
            tasks = (tree.root / "vambrace-half/tasks").read_text().split()
            assert tasks == [task.name for task in Path(f"/proc/{vmm.pid}/task").iterdir()] and len(tasks) == 3
        with pytest.raises(CapacityError) as raised:
            await make(shares, "all", ALL)
        assert raised.value.message == (
            "all cannot be given 12 ways in a row (free: 4 of 12 ways: 2-5; half holds 6-11; the host holds 0-1)"
        )
        less = await make(shares, "less", CacheShare(PREFERRED, 50))
        assert less.part.ways == (), "it prefers some, and does without"
        assert await shares.verify([]) == await shares.verify([]) and (await shares.verify([])).passed
        told: list[str] = []
        place.when_lost(told.append)
        tree._show(tree.root, dict.fromkeys(tree.caches, 0x7F))
        assert (await shares.verify([])).findings == ("resctrl: the host and vambrace-half share the ways 40",)
        assert told == [f"the part of the cache that it demands is not its own any more: {place.part.misplaced}"]
        assert shares.parts.state(place.part) is CachePartition.NONE
        await place.leave()
        assert tree.groups() == [] and shares.ledger.free("ways") == tuple(range(2, 12))
        await make(shares, "one", CacheShare(REQUIRED, 10))
        await make(shares, "two", CacheShare(REQUIRED, 10))
        with pytest.raises(CapacityError, match="all 3 groups of resctrl are in use"):
            await make(shares, "three", CacheShare(REQUIRED, 10))
        assert shares.ledger.share("three") is None, "nothing is half allocated"

    run(test)


def test_ways_that_the_kernel_does_not_give(tmp_path: Path) -> None:
    async def test() -> None:
        tree = FakeResctrl(tmp_path / "resctrl")
        shares = host(tmp_path, Division(CachePartition.WAYS, ways=Ways(tree)))
        tree.fail = "vambrace-half/schemata"
        with pytest.raises(PartitionError, match="as the test wants it"):
            await make(shares, "half", HALF)
        assert [share.domain for share in shares.ledger.shares] == ["host"] and tree.groups() == []
        assert shares.cgroups is not None and shares.cgroups.domains() == []

    run(test)


SHARES = st.builds(CacheShare, st.sampled_from(DEMANDS), st.integers(1, 100))
WISHES = st.tuples(st.integers(1, 300), st.none() | SHARES)
STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | WISHES, st.booleans()), max_size=20)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.booleans(), st.integers(0, 30))
def test_any_sequence_of_creations_and_ends(
    steps: list[tuple[str, tuple[int, CacheShare | None] | None, bool]], by_ways: bool, reserve: int
) -> None:
    """Also where the kernel refuses some: nothing is two domains', and at the end all is free."""

    async def sequence(folder: Path) -> None:
        tree = FakeResctrl(folder / "resctrl", closids=5)
        division = Division(CachePartition.WAYS, ways=Ways(tree)) if by_ways else BY_COLOURS
        shares = host(folder, division, reserve=reserve)
        (kind,) = [kind for kind in shares.ledger.kinds.values() if kind.name != "processors"]
        at_first = shares.ledger.free(kind.name)
        places: dict[str, Place] = {}
        for name, wish, refuses in steps:
            tree.fail = f"vambrace-{name}/schemata" if refuses else None
            if wish is None:
                if place := places.pop(name, None):
                    await place.leave()
            else:
                with suppress(CapacityError, Conflict, PartitionError):
                    places[name] = await make(shares, name, wish[1], guest=wish[0])
            held = [item for place in places.values() for item in (*place.part.colours, *place.part.ways)]
            assert len(held) == len(set(held)) and set(held) | set(shares.ledger.free(kind.name)) == set(at_first)
            assert by_ways or all(place.part.colours for place in places.values())
            if by_ways:
                assert Ways(tree).held == {name: place.part.ways for name, place in places.items() if place.part.ways}
        for place in places.values():
            await place.leave()
        assert shares.ledger.free(kind.name) == at_first and tree.groups() == []
        assert shares.ledger.memory_used == 0 and [share.domain for share in shares.ledger.shares] in ([], ["host"])

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(sequence(Path(folder)))


# --- how it gets its page frames -------------------------------------------------------------------------------


@pytest.fixture
def windows() -> Iterator[ExitStack]:
    """Closes windows when their domains have ended."""
    with ExitStack() as stack:
        yield stack


async def placed(place: Place, windows: ExitStack) -> Window:
    """As a VMM does it: a window whose pages the daemon chooses, and then it says where they are."""
    loop = asyncio.get_running_loop()
    async with place.placing(ME) as chosen:
        assert chosen is not None

        def ask(address: int, pages: int) -> bytes:
            return asyncio.run_coroutine_threadsafe(chosen.choose(address, pages), loop).result(60)

        def window() -> Window:
            zones = [(place.part.guest // PAGE_SIZE, 50)]
            return Window(zones, os.urandom(32), os.urandom(16), place=WindowPlace(ask, chosen.most, step=1 << 13))

        made = windows.enter_context(await asyncio.to_thread(window))
        await place.placed(chosen.memory(made.address, made.side))
    return made


@root
@kernel
def test_two_domains_with_frames_of_their_own(tmp_path: Path, windows: ExitStack, monkeypatch: Any) -> None:
    monkeypatch.setattr(placement, "check_migration", lambda: None)  # this machine's own settings are its own affair

    async def test() -> None:
        shares = host(tmp_path, BY_COLOURS, memory=4096)  # so many may be looked at: colours are not evenly spread
        # What the kernel did not take back of one that has ended, and bore the same name.
        shares.ledger.reserve("stale", "first", Request(named={"colours": (15,)}))
        first, second = await make(shares, "first", CacheShare(REQUIRED, 25), guest=16), await make(shares, "second")
        assert shares.cgroups is not None
        limit = shares.cgroups.path("first") / "memory.max"
        admitted = int(limit.read_text())
        seen = []

        async def look() -> None:
            async with first.placing(ME):
                seen.append(int(limit.read_text()))

        await look()
        assert seen[0] > admitted == int(limit.read_text()), "for the time in which it looks for frames"
        await asyncio.gather(placed(first, windows), placed(second, windows))
        # One that starts anew in its place, with another process, gets other frames of its colours.
        before = first.part.window
        first.part.misplaced = "of the run before"
        windows.pop_all().close()
        await asyncio.gather(placed(first, windows), placed(second, windows))
        # Another one, though the kernel may give it the same addresses.
        assert first.part.window is not None and first.part.window is not before
        for place in (first, second):
            window = place.part.window
            assert window is not None
            assert {COLOURS.of(frame) for frame in window.frames()} == set(place.part.colours)
            assert shares.parts.state(place.part) is CachePartition.UNCONFIRMED
        assert (await shares.verify([])).findings == ()

    run(test)


@root
@kernel
def test_a_planted_overlap_is_found(
    tmp_path: Path, windows: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A domain with frames of another's colours: it is named, and its token says nothing of colours any more."""
    monkeypatch.setattr(placement, "check_migration", lambda: None)

    async def test() -> None:
        shares = host(tmp_path, BY_COLOURS)
        first = await make(shares, "first", CacheShare(REQUIRED, 25), guest=16)
        second = await make(shares, "second", CacheShare(REQUIRED, 25), guest=16)
        made = await placed(first, windows)
        memory = first.part.window
        assert memory is not None
        frame = memory.frames()[0]
        with pytest.raises(PartitionError, match="second: page 0 has frame"):
            await second.placed(memory)
        whose = f"of colour {COLOURS.of(frame)}, which is first's, and {16 * 256 - 1} more are wrong"
        assert (await shares.verify([])).findings == (f"second: page 0 has frame {frame:#x} {whose}",)
        assert shares.parts.state(second.part) is CachePartition.NONE
        assert shares.parts.state(first.part) is CachePartition.UNCONFIRMED
        await second.leave()
        assert (await shares.verify([])).findings == ()
        told: list[str] = []
        first.when_lost(told.append)
        # As in the daemon's own rounds, which do not wait here.
        monkeypatch.setattr(placing, "WATCH_SECONDS", 0.01)
        first.part.colours = (15,)
        shares.ledger.release("first")
        shares.ledger.reserve("first", "first", Request(named={"colours": (15,)}))
        watching = asyncio.create_task(shares.parts.watch())
        while not first.part.misplaced:
            await asyncio.sleep(0.01)
        watching.cancel()
        assert "which is nobody's" in first.part.misplaced
        assert "part of the cache of a domain is not its own" in caplog.text
        assert told == [f"the part of the cache that it demands is not its own any more: {first.part.misplaced}"]
        assert shares.parts.state(first.part) is CachePartition.NONE
        assert len((await shares.verify([])).findings) == 1
        made.close()
        assert (await shares.verify([])).findings == (), "it ends"

    run(test)


def test_a_kernel_that_moves_pages_is_a_finding(tmp_path: Path, monkeypatch: Any) -> None:
    def moves() -> None:
        raise PartitionError("the kernel may move pages to other frames: vm.compact_unevictable_allowed is '1'")

    monkeypatch.setattr(placement, "check_migration", moves)

    async def test() -> None:
        findings = (await host(tmp_path, BY_COLOURS).verify([])).findings
        assert findings == (
            "the kernel may move pages to other frames: vm.compact_unevictable_allowed is '1'",
        )

    run(test)


def test_one_placement_at_a_time(tmp_path: Path) -> None:
    async def test() -> None:
        shares = host(tmp_path, BY_COLOURS)
        places = [await make(shares, name) for name in ("a", "b", "c")]
        running = 0

        async def one(place: Place) -> None:
            nonlocal running
            async with place.placing(ME) as chosen:
                running += 1
                assert running == 1 and chosen is not None
                await asyncio.sleep(0.01)
                running -= 1

        await asyncio.gather(*map(one, places))
        free = shares.ledger.memory_free + 3 * 64 * MIB
        assert shares.parts._most(places[0].part) <= free // PAGE_SIZE, "what others do not use yet is counted"

    run(test)
