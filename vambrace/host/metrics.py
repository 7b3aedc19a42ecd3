"""What an operator may watch (``GET /metrics``, Prometheus' text format): coarse totals of the whole host.

What a window does tells what its Realm does: from the page faults of one zone, seen often and exactly, an operator
could learn which way a secret went. Hence nothing here is of one Realm or zone. What the windows of all Realms have
done is read at a pace of the daemon's own, at most once a minute, and published in steps of ``GRAIN`` pages, at places
that nobody knows. A host with a single Realm shows that one's totals, as coarsely.

What is of two Realms is the traffic between them, once a minute and in steps, too: whom the host carries bytes for is
what an operator sees of any network.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vambrace.counts import is_count
from vambrace.errors import DomainError, VambraceError
from vambrace.host.coarse import REFRESH_SECONDS, Coarse
from vambrace.host.lifecycle import FINAL, State
from vambrace.host.messages import GRAIN as MESSAGE_GRAIN
from vambrace.host.messages import Messages

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PAGE = 4096
GRAIN = 1 << 16  # pages: 256 MiB of them
#: Of ZoneStats: the fields that are summed, what they are called here, and how much of each makes a step.
TOTALS = {
    "faults": ("vambrace_window_faults", "Page faults answered", GRAIN),
    "evictions": ("vambrace_window_evictions", "Pages evicted", GRAIN),
    "bytes_encrypted": ("vambrace_window_encrypted_bytes", "Bytes encrypted", GRAIN * PAGE),
    "bytes_decrypted": ("vambrace_window_decrypted_bytes", "Bytes decrypted", GRAIN * PAGE),
}


class Watched(Protocol):
    """A Realm as it is seen from here."""

    async def stats(self) -> list[Any]: ...


class WindowTotals:
    """Sums over all zones of all Realms since the daemon started.

    What a Realm did after the last reading before its end is not in them: no end waits for statistics.
    """

    def __init__(self, running: Callable[[], dict[str, Watched]]) -> None:
        self._running = running
        self._seen: dict[str, Counter[str]] = {}
        self._sums = {field: Coarse(grain) for field, (_, _, grain) in TOTALS.items()}
        self._wanted = False

    def published(self) -> dict[str, int]:
        """As of the last reading; there will be another one."""
        self._wanted = True
        return {field: count.published for field, count in self._sums.items()}

    async def refresh(self) -> None:
        """Read for ever, at a fixed pace: who asks does not choose the moment. Where nobody asks, no VMM is asked."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if self._wanted:
                self._wanted = False
                await self._read()

    async def _read(self) -> None:
        running = self._running()
        self._seen = {uuid: counts for uuid, counts in self._seen.items() if uuid in running}
        # All are added before anybody can look: no sum of some.
        found = await asyncio.gather(*(_counts(realm) for realm in running.values()))
        for uuid, counts in zip(running, found, strict=True):
            if counts is not None:
                # A Counter's difference has no negative part: what a broken VMM takes back is not taken off.
                for field, more in (counts - self._seen.get(uuid, Counter())).items():
                    self._sums[field].add(more)
                self._seen[uuid] = counts


async def _counts(realm: Watched) -> Counter[str] | None:
    """None for a Realm that ends just now, or whose VMM says what cannot be."""
    with contextlib.suppress(VambraceError):
        return summed(await realm.stats())
    return None


def summed(zones: Sequence[Any]) -> Counter[str]:
    """The fields of ``TOTALS``, over all zones. Raises ``DomainError``: not what a VMM says of its zones."""
    sums: Counter[str] = Counter()
    for zone in zones:
        for field in TOTALS:
            count = zone.get(field) if isinstance(zone, dict) else None
            if not is_count(count):
                raise DomainError("the VMM's statistics are not understood")
            sums[field] += count
    return sums


class Watch(Protocol):
    """The host as it is seen from here."""

    memory_limit: int
    messages: Messages

    @property
    def memory_used(self) -> int: ...
    def states(self) -> Counter[State]: ...


class Metrics(Collector):
    """Counts what the host does, and gives it as text.

    In a registry of its own: the library's common one would also show how much time and memory the daemon takes, and
    how often it collects garbage, at every moment that the operator likes.
    """

    def __init__(self, watch: Watch, windows: WindowTotals) -> None:
        self._watch = watch
        self._windows = windows
        self._started = time.monotonic()
        self._created = 0
        self._ended: Counter[State] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def created(self) -> None:
        """A domain was accepted."""
        self._created += 1

    def ended(self, state: State) -> None:
        """A domain has entered its final state."""
        self._ended[state] += 1

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        uptime = int(time.monotonic() - self._started)
        yield GaugeMetricFamily("vambrace_host_uptime_seconds", "Since the daemon's start.", value=uptime)
        limit, used = self._watch.memory_limit, self._watch.memory_used
        yield GaugeMetricFamily("vambrace_memory_limit_bytes", "Memory that domains may have together.", value=limit)
        yield GaugeMetricFamily("vambrace_memory_committed_bytes", "Memory that living domains have.", value=used)
        living = GaugeMetricFamily("vambrace_domains", "Living domains by their state.", labels=["state"])
        ended = CounterMetricFamily("vambrace_domains_ended", "Domains by how they ended.", labels=["state"])
        states = self._watch.states()
        for state in State:
            if state in FINAL:
                ended.add_metric([state.value], self._ended[state])
            else:
                living.add_metric([state.value], states[state])
        yield living
        yield CounterMetricFamily("vambrace_domains_created", "Domains that were accepted.", value=self._created)
        yield ended
        for field, count in self._windows.published().items():
            name, text, grain = TOTALS[field]
            yield CounterMetricFamily(name, f"{text}, all Realms together, in steps of {grain}.", value=count)
        yield from self._messages()

    def _messages(self) -> Iterable[Metric]:
        """Of each pair of Realms that have an endpoint in common and have used it, as long as both live."""
        labels = ["caller", "offerer", "endpoint"]
        connections = CounterMetricFamily(
            "vambrace_message_connections", "Streams carried between two Realms.", labels=labels
        )
        refused = CounterMetricFamily(
            "vambrace_message_refused", "Streams that were beyond bounds, or not answered.", labels=labels
        )
        carried = CounterMetricFamily(
            "vambrace_message_bytes",
            f"Bytes carried from one Realm to another, in steps of {MESSAGE_GRAIN}.",
            labels=[*labels, "to"],
        )
        denied = CounterMetricFamily(
            "vambrace_message_denied", "Streams to endpoints that no running Realm agreed to.", labels=["realm"]
        )
        published = self._watch.messages.published
        for pair in published.pairs:
            names = [pair.caller, pair.offerer, pair.endpoint]
            connections.add_metric(names, pair.connections)
            refused.add_metric(names, pair.refused)
            carried.add_metric([*names, "offerer"], pair.upwards)
            carried.add_metric([*names, "caller"], pair.downwards)
        for name, count in published.refused:
            denied.add_metric([name], count)
        yield from (connections, refused, carried, denied)
