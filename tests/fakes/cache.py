"""A simulated processor's caches, to be measured by the conflict probe: private ones and a last level."""

from __future__ import annotations

import random
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence

HIT, MISS = 300, 900  # ns


class Level:
    """Sets of ``ways`` lines: the least recently used goes, or any."""

    def __init__(self, ways: int, index: Callable[[int], int], chance: random.Random | None = None) -> None:
        self.ways, self.index, self.chance = ways, index, chance
        self.sets: dict[int, OrderedDict[int, None]] = {}

    def read(self, frame: int) -> bool:
        """Whether it was there; it is now."""
        lines = self.sets.setdefault(self.index(frame), OrderedDict())
        if hit := frame in lines:
            lines.move_to_end(frame)
        elif len(lines) >= self.ways:
            if self.chance:
                del lines[self.chance.choice(list(lines))]
            else:
                lines.popitem(last=False)
        lines[frame] = None
        return hit

    def drop(self, frame: int) -> None:
        self.sets.get(self.index(frame), OrderedDict()).pop(frame, None)


class SimulatedMemory:
    """Pages of random frames, of each of which one line is read. ``noise`` is how likely others evict the target in
    any one reading; ``waiting`` how likely while the probe waits; ``jitter`` spreads the times; ``flat``: no cache."""

    def __init__(
        self,
        pages: int,
        *,
        index: Callable[[int], int],
        ways: int,
        private: tuple[int, int] = (4, 2),
        replacement: str = "lru",
        noise: float = 0.0,
        waiting: float = 0.0,
        jitter: float = 0.1,
        flat: bool = False,
        seed: int = 1,
    ) -> None:
        self.chance = random.Random(seed)
        # As the kernel gives them: runs of neighbours, from anywhere.
        starts = self.chance.sample(range(1 << 20), -(-pages // 16))
        self.frames: Sequence[int] = [start * 16 + offset for start in starts for offset in range(16)][:pages]
        chance = self.chance if replacement == "random" else None
        colours, depth = private
        self.private = Level(depth, lambda frame: frame % colours)
        self.last = Level(ways, index, chance)
        self.noise, self.waiting, self.jitter, self.flat = noise, waiting, jitter, flat

    def access_ns(self, target: int, pages: array[int], rounds: int, wait_ns: int) -> int:
        frame = self.frames[target]
        self._read(frame)
        self._read(frame)
        for _ in range(rounds):
            for page in pages:
                self._read(self.frames[page])
        if self.chance.random() < self.noise or (wait_ns and self.chance.random() < self.waiting):
            self.private.drop(frame)
            self.last.drop(frame)
        ns = HIT if self._read(frame) or self.flat else MISS
        return int(ns * self.chance.uniform(1 - self.jitter, 1 + self.jitter))

    def _read(self, frame: int) -> bool:
        if self.private.read(frame):
            return True
        return self.last.read(frame)
