"""The relay's quick way and its slow one: the same bytes, whatever has to be waited for."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from vambrace.host.agent import Bucket
from vambrace.host.relay import CHUNK, LEAST_COST, pump

CONTENT = random.Random(3).randbytes(3 << 20)


async def relayed(bucket: Bucket, send_buffer: int, pause: float) -> tuple[bytes, int]:
    """What a reader gets of CONTENT that reads so seldom, and what was counted."""
    loop, counted, received = asyncio.get_running_loop(), [0], bytearray()
    feeder, source = socket.socketpair()
    target, reader = socket.socketpair()
    target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    with feeder, source, target, reader:
        for stream in (feeder, source, target, reader):
            stream.setblocking(False)

        def count(length: int) -> None:
            counted[0] += length

        async def feed() -> None:
            await loop.sock_sendall(feeder, CONTENT)
            feeder.shutdown(socket.SHUT_WR)

        feeding = asyncio.create_task(feed())
        pumping = asyncio.create_task(pump(source, target, bucket, count))
        while data := await loop.sock_recv(reader, 50_000):
            received += data
            await asyncio.sleep(pause)
        await asyncio.gather(feeding, pumping)
    return bytes(received), counted[0]


@pytest.mark.parametrize("send_buffer", [4096, 1 << 20])
@pytest.mark.parametrize("pause", [0.0, 0.001])
@pytest.mark.parametrize("rate", [1 << 40, 16 << 20])
def test_every_byte_arrives_in_order(send_buffer: int, pause: float, rate: int) -> None:
    received, counted = asyncio.run(relayed(Bucket(rate, 4 * CHUNK), send_buffer, pause))
    assert received == CONTENT and counted == len(CONTENT)


def test_a_reader_that_is_gone_ends_it() -> None:
    async def body() -> None:
        feeder, source = socket.socketpair()
        target, reader = socket.socketpair()
        with feeder, source, target:
            for stream in (feeder, source, target):
                stream.setblocking(False)
            reader.close()
            feeder.send(b"lost")
            await asyncio.wait_for(pump(source, target, Bucket(1 << 40, 1 << 30), lambda length: None), 10)
            with pytest.raises(BrokenPipeError):
                feeder.send(b"more")

    asyncio.run(body())


def test_a_cancelled_one_leaves_nothing_registered() -> None:
    async def body() -> bool:
        feeder, source = socket.socketpair()
        target, reader = socket.socketpair()
        with feeder, source, target, reader:
            source.setblocking(False)
            pumping = asyncio.create_task(pump(source, target, Bucket(1 << 40, 1 << 30), lambda length: None))
            await asyncio.sleep(0.01)
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)
            return asyncio.get_running_loop().remove_reader(source)

    assert asyncio.run(body()) is False


def test_the_quick_way_does_not_pass_those_who_wait_for_tokens() -> None:
    async def body() -> list[bool]:
        bucket = Bucket(rate=1 << 20, burst=2 * LEAST_COST)
        found = [bucket.take_at_once(2 * LEAST_COST), bucket.take_at_once(LEAST_COST)]
        waiting = asyncio.create_task(bucket.take(LEAST_COST))
        await asyncio.sleep(0)
        found.append(bucket.take_at_once(0))
        await waiting
        return [*found, bucket.take_at_once(0)]

    assert asyncio.run(body()) == [True, False, False, True]
