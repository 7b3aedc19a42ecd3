"""What an agent sends: taken apart into lines of bounded length, and at a bounded pace."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vambrace.errors import AgentFlood
from vambrace.host.agent import LINE_LIMIT, Bucket, LineBuffer


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_lines_do_not_depend_on_how_they_arrive(lines: list[bytes], size: int) -> None:
    stream = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    buffer = LineBuffer()
    got = []
    for start in range(0, len(stream), size):
        got += buffer.feed(stream[start : start + size])
    assert got == [line.replace(b"\n", b"") for line in lines]


def test_overlong_line_takes_bounded_memory() -> None:
    buffer = LineBuffer()
    got = []
    for _ in range(3):
        got += buffer.feed(b"x" * LINE_LIMIT)
    assert got == [None]
    assert buffer.feed(b"end\nnext\n") == [b"next"]


def test_a_line_without_an_end_is_a_flood() -> None:
    buffer = LineBuffer()
    with pytest.raises(AgentFlood):
        for _ in range(100):
            buffer.feed(b"x" * LINE_LIMIT)
    # Long lines that end are answered, one by one, and do not add up.
    buffer = LineBuffer()
    for _ in range(100):
        assert buffer.feed(b"x" * LINE_LIMIT + b"x\n") == [None]


def test_bucket_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds + 1e-9  # a clock never wakes anybody too early

    async def body() -> None:
        bucket = Bucket(rate=100, burst=10)
        for _ in range(20):
            await bucket.take(1)

    monkeypatch.setattr("vambrace.host.agent.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("vambrace.host.agent.asyncio", SimpleNamespace(Lock=asyncio.Lock, sleep=sleep))
    asyncio.run(body())
    assert now == pytest.approx(0.1)


def test_each_overlong_line_is_counted_by_itself() -> None:
    buffer = LineBuffer()
    for _ in range(8):  # together more than a flood
        assert buffer.feed(b"x" * (LINE_LIMIT + 1)) == [None]
        assert buffer.feed(b"y" * LINE_LIMIT + b"\n") == []
    assert buffer.feed(b"{}\n") == [b"{}"]


def test_whoever_comes_first_is_served_first() -> None:
    """Many who want little, again and again, do not keep one waiting who wants much."""

    async def body() -> list[str]:
        bucket, served = Bucket(rate=1000, burst=10), list[str]()

        async def take(name: str, cost: float) -> None:
            await bucket.take(cost)
            served.append(name)

        await bucket.take(10)
        first = asyncio.create_task(take("much", 10))
        await asyncio.sleep(0)
        await asyncio.gather(first, *(take("little", 1) for _ in range(20)))
        return served

    assert asyncio.run(body()) == ["much", *["little"] * 20]
