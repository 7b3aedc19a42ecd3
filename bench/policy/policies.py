"""Known replacement policies, written from their papers' descriptions, as yardsticks for core/zone.c.

Each expects to be told of every reference, which no pager is: a page that is mapped is touched without anybody hearing
of it. observed.py tells them only what a pager hears. Sizes are in pages; all pages are alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from heapq import heappop, heappush


class Policy(ABC):
    """Which pages are resident: never more than ``capacity``, which is at least 1."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"no room for a page: {capacity}")
        self.capacity = capacity

    @abstractmethod
    def touch(self, page: int) -> bool:
        """The next reference; afterwards the page is resident. Whether it was so before."""

    @abstractmethod
    def __len__(self) -> int:
        """Resident pages."""

    @abstractmethod
    def __contains__(self, page: object) -> bool:
        """Whether this page is resident."""

    def asks(self) -> Sequence[Collection[int]]:
        """Queues of resident pages, the next to go first, of which it matters whether they are still used."""
        return ()


class Fifo(Policy):
    """The page that came first goes first."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._pages: OrderedDict[int, None] = OrderedDict()

    def touch(self, page: int) -> bool:
        if page in self._pages:
            return True
        if len(self._pages) == self.capacity:
            self._pages.popitem(last=False)
        self._pages[page] = None
        return False

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, page: object) -> bool:
        return page in self._pages


class Lru(Fifo):
    """The page goes whose last use is longest ago."""

    def touch(self, page: int) -> bool:
        if hit := super().touch(page):
            self._pages.move_to_end(page)
        return hit

    def asks(self) -> Sequence[Collection[int]]:
        return (self._pages,)


class TwoQueue(Policy):
    """2Q, the full version: Johnson & Shasha, VLDB 1994, section 2.2, with Kin = 25 % and Kout = 50 % (section 3)."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._in_most = max(1, capacity // 4)
        self._out_most = max(1, capacity // 2)
        self._in: OrderedDict[int, None] = OrderedDict()
        self._out: OrderedDict[int, None] = OrderedDict()  # names of pages that are gone
        self._main: OrderedDict[int, None] = OrderedDict()

    def touch(self, page: int) -> bool:
        if page in self._main:
            self._main.move_to_end(page)
            return True
        if page in self._in:  # touched again at once: that proves nothing
            return True
        again = page in self._out
        if again:
            del self._out[page]
        self._reclaim()
        (self._main if again else self._in)[page] = None
        return False

    def _reclaim(self) -> None:
        if len(self) < self.capacity:
            return
        if len(self._in) > self._in_most or not self._main:
            oldest, _ = self._in.popitem(last=False)
            self._out[oldest] = None
            if len(self._out) > self._out_most:
                self._out.popitem(last=False)
        else:
            self._main.popitem(last=False)

    def __len__(self) -> int:
        return len(self._in) + len(self._main)

    def __contains__(self, page: object) -> bool:
        return page in self._main or page in self._in

    def asks(self) -> Sequence[Collection[int]]:
        return (self._main,)


class Arc(Policy):
    """ARC: Megiddo & Modha, FAST 2003, figure 4. The names T1, T2, B1, B2 and p are the paper's."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._t1: OrderedDict[int, None] = OrderedDict()  # seen once lately
        self._t2: OrderedDict[int, None] = OrderedDict()  # seen more than once
        self._b1: OrderedDict[int, None] = OrderedDict()  # names of what left t1
        self._b2: OrderedDict[int, None] = OrderedDict()  # names of what left t2
        self._p = 0.0  # wanted size of t1

    def touch(self, page: int) -> bool:
        t1, t2, b1, b2 = self._t1, self._t2, self._b1, self._b2
        if page in t1:
            del t1[page]
            t2[page] = None
            return True
        if page in t2:
            t2.move_to_end(page)
            return True
        if page in b1:
            self._p = min(self.capacity, self._p + max(1.0, len(b2) / len(b1)))
            self._replace(False)
            del b1[page]
            t2[page] = None
        elif page in b2:
            self._p = max(0.0, self._p - max(1.0, len(b1) / len(b2)))
            self._replace(True)
            del b2[page]
            t2[page] = None
        else:
            self._make_way()
            t1[page] = None
        return False

    def _make_way(self) -> None:
        """For a page of which nothing is known (case IV)."""
        t1, t2, b1, b2 = self._t1, self._t2, self._b1, self._b2
        if len(t1) + len(b1) == self.capacity:
            if len(t1) < self.capacity:
                b1.popitem(last=False)
                self._replace(False)
            else:
                t1.popitem(last=False)
        elif len(t1) + len(t2) + len(b1) + len(b2) >= self.capacity:
            if len(t1) + len(t2) + len(b1) + len(b2) == 2 * self.capacity:
                b2.popitem(last=False)
            self._replace(False)

    def _replace(self, in_b2: bool) -> None:
        if len(self) < self.capacity:  # the paper's figure leaves this to the caller
            return
        if self._t1 and (len(self._t1) > self._p or (in_b2 and len(self._t1) == self._p) or not self._t2):
            page, _ = self._t1.popitem(last=False)
            self._b1[page] = None
        else:
            page, _ = self._t2.popitem(last=False)
            self._b2[page] = None

    def __len__(self) -> int:
        return len(self._t1) + len(self._t2)

    def __contains__(self, page: object) -> bool:
        return page in self._t1 or page in self._t2

    def asks(self) -> Sequence[Collection[int]]:
        return self._t1, self._t2


class S3Fifo(Policy):
    """S3-FIFO: Yang, Zhang, Qiu, Yue & Rashmi, SOSP 2023, algorithm 1: a small queue of 10 %, a main one, a ghost."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small_most = max(1, capacity // 10)
        self._main_most = max(1, capacity - self._small_most)
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghost: OrderedDict[int, None] = OrderedDict()  # as many names as main has pages
        self._uses: dict[int, int] = {}  # of the resident pages, counted up to 3

    def touch(self, page: int) -> bool:
        uses = self._uses.get(page)
        if uses is not None:
            if uses < 3:
                self._uses[page] = uses + 1
            return True
        while len(self) >= self.capacity:
            if self._small and (len(self._small) >= self._small_most or not self._main):
                self._evict_small()
            else:
                self._evict_main()
        if page in self._ghost:
            del self._ghost[page]
            self._main.append(page)
        else:
            self._small.append(page)
        self._uses[page] = 0
        return False

    def _evict_small(self) -> None:
        while self._small:
            page = self._small.popleft()
            if self._uses[page] <= 1:
                del self._uses[page]
                self._ghost[page] = None
                if len(self._ghost) > self._main_most:
                    self._ghost.popitem(last=False)
                return
            self._uses[page] = 0
            if len(self._main) >= self._main_most:
                self._evict_main()
            self._main.append(page)

    def _evict_main(self) -> None:
        while self._main:
            page = self._main.popleft()
            if not self._uses[page]:
                del self._uses[page]
                return
            self._uses[page] -= 1
            self._main.append(page)

    def __len__(self) -> int:
        return len(self._uses)

    def __contains__(self, page: object) -> bool:
        return page in self._uses

    def asks(self) -> Sequence[Collection[int]]:
        return self._small, self._main


class Belady(Policy):
    """The optimum: Belady, IBM Systems Journal 1966. The page goes whose next use is farthest; it knows the future."""

    def __init__(self, capacity: int, references: Sequence[int]) -> None:
        """``touch`` is then to be called with these references, in this order."""
        super().__init__(capacity)
        self._next = [len(references)] * len(references)  # of each reference: where the same page comes again
        seen: dict[int, int] = {}
        for position in range(len(references) - 1, -1, -1):
            self._next[position] = seen.get(references[position], len(references))
            seen[references[position]] = position
        self._position = 0
        self._due: dict[int, int] = {}  # resident page: its next use
        self._heap: list[tuple[int, int]] = []  # the same with the farthest first, and entries out of date

    def touch(self, page: int) -> bool:
        hit = page in self._due
        if not hit and len(self._due) == self.capacity:
            while True:
                due, victim = heappop(self._heap)
                if self._due.get(victim) == -due:
                    break
            del self._due[victim]
        due = self._next[self._position]
        self._position += 1
        self._due[page] = due
        heappush(self._heap, (-due, page))
        return hit

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, page: object) -> bool:
        return page in self._due


# Those that know the past only.
ONLINE: dict[str, Callable[[int], Policy]] = {
    "fifo": Fifo,
    "lru": Lru,
    "arc": Arc,
    "s3-fifo": S3Fifo,
    "2q": TwoQueue,
}
# Ours is measured against the best of these, per trace and window.
RIVALS = ("lru", "arc", "s3-fifo", "2q")


def misses(policy: Policy, references: Sequence[int]) -> int:
    """How often a page was not resident, first touches included."""
    touch = policy.touch
    return sum(not touch(page) for page in references)
