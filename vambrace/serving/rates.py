"""How often a client of a service may ask."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from aiohttp import web

from vambrace.serving.doors import client_of
from vambrace.serving.problems import problem

#: Clients whose rate is remembered.
CLIENTS: Final = 8192


class Rates:
    """A token bucket for each client: ``rate`` per second, at most ``burst`` saved.

    ``clients`` of them are remembered; who is forgotten for others has been quiet for the longest.
    """

    def __init__(
        self, rate: float, burst: int, clients: int = CLIENTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clients = clients
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """0 if the client may go on; else the seconds after which it may."""
        now = self._clock()
        tokens, then = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens - 1 if not wait else tokens, now)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return wait


def too_often(rates: Rates, request: web.Request) -> web.Response | None:
    """The refusal (429, with Retry-After) of a client that asks too often; None for one that may go on."""
    wait = rates.take(client_of(request.remote or ""))
    if not wait:
        return None
    response = problem(429, "rate", "too many requests from this address", "wait for as long as Retry-After says")
    response.headers["Retry-After"] = str(math.ceil(wait))
    return response
