"""The account of exclusive things: all or nothing, nothing twice, and nothing left over."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.errors import CapacityError, Conflict, UsageError
from vambrace.partition.ledger import Kind, Ledger, Request, spell

MIB = 1 << 20


def make_ledger() -> Ledger:
    kinds = [
        Kind("processors", ((1, 5), (2, 6), (3, 7))),
        Kind.single("colours", range(16)),
        Kind("devices", (("nvme0",), ("nic0", "nic1"))),
    ]
    return Ledger(1024 * MIB, kinds)


def test_a_share_and_its_end() -> None:
    ledger = make_ledger()
    request = Request(300 * MIB, {"processors": 2, "colours": 3}, {"devices": ("nvme0",)})
    share = ledger.reserve("a", "patients", request)
    assert share.of("processors") == (1, 5)
    assert share.of("colours") == (0, 1, 2)
    assert share.of("devices") == ("nvme0",)
    assert (ledger.memory_used, ledger.memory_free) == (300 * MIB, 724 * MIB)
    assert ledger.free("processors") == (2, 6, 3, 7)
    assert ledger.holder("colours", 2) is share and ledger.holder("colours", 3) is None
    assert ledger.share("a") is share and ledger.shares == (share,)
    ledger.release("a")
    ledger.release("a")
    assert ledger.shares == () and ledger.memory_used == 0
    assert ledger.free("devices") == ("nvme0", "nic0", "nic1")


def test_siblings_go_together() -> None:
    """One processor asked for is a whole core with SMT; a device brings its IOMMU group."""
    ledger = make_ledger()
    assert ledger.reserve("a", "a", Request(counts={"processors": 1})).of("processors") == (1, 5)
    assert ledger.reserve("b", "b", Request(counts={"processors": 3})).of("processors") == (2, 6, 3, 7)
    assert ledger.reserve("c", "c", Request(named={"devices": ("nic1",)})).of("devices") == ("nic0", "nic1")
    with pytest.raises(CapacityError, match="nic0"):
        ledger.reserve("d", "d", Request(named={"devices": ("nic0",)}))


def test_refusals_say_what_is_asked_free_and_held() -> None:
    ledger = make_ledger()
    ledger.reserve("a", "patients", Request(900 * MIB, {"processors": 4, "colours": 16}))
    ledger.reserve("b", "lab", Request(100 * MIB, named={"devices": ("nvme0",)}))
    before = ledger.shares
    with pytest.raises(CapacityError) as caught:
        ledger.reserve("c", "third", Request(24 * MIB + 1, {"processors": 4, "colours": 1}, {"devices": ("nvme0",)}))
    assert caught.value.message == (
        "third cannot be given 25 MiB of memory (free: 24 of 1024 MiB; patients holds 900 MiB; lab holds 100 MiB)"
        " and 1 colours (free: 0 of 16 colours; patients holds 0-15)"
        " and nvme0 (free: 2 of 3 devices: nic0,nic1; lab holds nvme0)"
        " and 4 processors (free: 2 of 6 processors: 3,7; patients holds 1-2,5-6)"
    )
    assert ledger.shares == before, "nothing is half allocated"
    with pytest.raises(CapacityError, match="absent"):
        ledger.reserve("c", "third", Request(named={"devices": ("absent",)}))
    with pytest.raises(UsageError, match="no keyboards"):
        ledger.reserve("c", "third", Request(counts={"keyboards": 1}))
    with pytest.raises(UsageError):
        ledger.reserve("c", "third", Request(-1))
    with pytest.raises(UsageError):
        ledger.reserve("c", "third", Request(counts={"colours": -1}))
    with pytest.raises(Conflict):
        ledger.reserve("a", "patients", Request())
    assert ledger.shares == before


def test_colours_of_domains_and_of_the_host() -> None:
    """What the host keeps for itself is named in refusals like anybody's."""
    ledger = Ledger(0, [Kind.single("colours", range(16))])
    ledger.reserve("host", "the host", Request(named={"colours": (0, 1)}))
    assert ledger.reserve("a", "a", Request(counts={"colours": 6})).of("colours") == tuple(range(2, 8))
    assert ledger.reserve("b", "b", Request(counts={"colours": 6})).of("colours") == tuple(range(8, 14))
    with pytest.raises(CapacityError) as caught:
        ledger.reserve("c", "c", Request(counts={"colours": 3}))
    assert caught.value.message == (
        "c cannot be given 3 colours (free: 2 of 16 colours: 14-15; a holds 2-7; b holds 8-13; the host holds 0-1)"
    )
    ledger.release("a")
    assert ledger.reserve("c", "c", Request(counts={"colours": 7})).of("colours") == (*range(2, 8), 14)


def test_ways_are_given_in_a_row() -> None:
    ledger = Ledger(0, [Kind.single("ways", range(12), in_a_row=True)])
    ledger.reserve("host", "the host", Request(named={"ways": (0, 1)}))
    assert ledger.reserve("a", "a", Request(counts={"ways": 4})).of("ways") == (8, 9, 10, 11)
    assert ledger.reserve("b", "b", Request(counts={"ways": 3})).of("ways") == (5, 6, 7)
    ledger.release("a")
    before = ledger.shares
    with pytest.raises(CapacityError) as caught:
        ledger.reserve("c", "c", Request(counts={"ways": 5}))
    assert caught.value.message == (
        "c cannot be given 5 ways in a row (free: 7 of 12 ways: 2-4,8-11; b holds 5-7; the host holds 0-1)"
    )
    assert ledger.shares == before
    assert ledger.reserve("c", "c", Request(counts={"ways": 2})).of("ways") == (10, 11)
    assert ledger.reserve("d", "d", Request(counts={"ways": 3})).of("ways") == (2, 3, 4)
    with pytest.raises(CapacityError, match="13 ways in a row"):
        ledger.reserve("e", "e", Request(counts={"ways": 13}))
    assert ledger.reserve("e", "e", Request(counts={"ways": 0})).of("ways") == ()


def test_a_kind_that_comes_later() -> None:
    ledger = make_ledger()
    ledger.add(Kind.single("ways", range(4)))
    assert ledger.free("ways") == (0, 1, 2, 3)
    with pytest.raises(UsageError, match="its ways already"):
        ledger.add(Kind.single("ways", range(2)))


def test_a_refusal_stays_one_line_on_a_host_with_many() -> None:
    ledger = Ledger(100 * MIB)
    for number in range(50):
        ledger.reserve(str(number), f"realm-{number}", Request((number % 3 + 1) * MIB))
    with pytest.raises(CapacityError) as caught:
        ledger.reserve("x", "last", Request(100 * MIB))
    assert caught.value.message.endswith("; 42 others hold the rest)")
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


def test_kinds() -> None:
    for groups in (((1,), (1,)), ((1, 1),), ((),)):
        with pytest.raises(UsageError):
            Kind("processors", groups)
    assert spell((7, 1, 2, 3, "b", "a")) == "1-3,7,a,b"
    assert spell(()) == ""


REQUESTS = st.builds(
    Request,
    memory=st.integers(0, 600 * MIB),
    counts=st.fixed_dictionaries({}, optional={"processors": st.integers(0, 7), "colours": st.integers(0, 12)}),
    named=st.fixed_dictionaries(
        {}, optional={"devices": st.lists(st.sampled_from(["nvme0", "nic0", "nic1", "gone"]), max_size=3, unique=True)}
    ),
)
STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), REQUESTS)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_any_sequence_of_creations_and_ends(steps: list[tuple[str, Request | None]]) -> None:
    """At every step nothing is held twice and the sums are right; after all have ended everything is free."""
    ledger = make_ledger()
    for domain, request in steps:
        before = ledger.shares
        if request is None:
            ledger.release(domain)
            assert ledger.share(domain) is None
        else:
            with contextlib.suppress(CapacityError, Conflict):
                share = ledger.reserve(domain, domain, request)
                assert share.memory == request.memory
                assert all(len(share.of(kind)) >= count for kind, count in request.counts.items())
                assert all(set(items) <= set(share.of(kind)) for kind, items in request.named.items())
                before = (*before, share)
            assert ledger.shares == before
        for kind in ledger.kinds.values():
            held = [item for share in ledger.shares for item in share.of(kind.name)]
            assert len(held) == len(set(held))
            assert sorted(map(str, [*held, *ledger.free(kind.name)])) == sorted(map(str, kind.items))
            for group in kind.groups:
                assert len({getattr(ledger.holder(kind.name, item), "domain", None) for item in group}) == 1
        assert sum(share.memory for share in ledger.shares) == ledger.memory_used <= ledger.memory
    for domain in "abcdef":
        ledger.release(domain)
    assert ledger.memory_free == ledger.memory and ledger.memory_used == 0
    assert all(ledger.free(kind.name) == kind.items for kind in ledger.kinds.values())
