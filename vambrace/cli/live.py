"""A table that fills the terminal and changes until a key ends it. The terminal is then as it was before."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vambrace.cli.output import printable
from vambrace.errors import VambraceError

#: Seconds between two looks, and until a new size of the terminal is seen.
EVERY, TICK = 2.0, 0.25
ENDING = 1.0
QUIT = b"qQ\x03\x04"  # Ctrl-C and Ctrl-D too, where they come as keys


@dataclass(frozen=True)
class Screen:
    """``rows``: the first is the head; columns from ``right`` on are numbers."""

    title: str
    rows: Sequence[Sequence[str]]
    right: int


@dataclass
class Feed:
    """Calls ``look`` in a thread of its own, every now and then: the terminal never waits for a host."""

    look: Callable[[], Screen]
    screen: Screen | None = None
    problem: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                self.screen, self.problem = self.look(), ""
            except VambraceError as error:
                self.problem = error.message
            except Exception as error:  # of a thread that nobody waits for: shown, not lost
                self.problem = f"internal error: {type(error).__name__}: {error}"
            self._stop.wait(EVERY)

    def stop(self) -> None:
        self._stop.set()


def show(look: Callable[[], Screen], first: Screen) -> None:
    """Show ``first``, then what ``look`` gives, until somebody presses q or Ctrl-C."""
    feed = Feed(look, first)
    thread = threading.Thread(target=feed.run, daemon=True)
    with ending_in_order(), keys(sys.stdin.fileno()) as pressed, Live(screen=True, auto_refresh=False) as live:
        thread.start()
        try:
            while True:
                live.update(draw(feed.screen or first, feed.problem, live.console), refresh=True)
                if pressed(TICK):
                    return
        except KeyboardInterrupt:
            return
        finally:
            feed.stop()
            # It may be waiting for a host. It ends with the process then, which nobody need wait for.
            thread.join(ENDING)


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Whoever ends the process gets its terminal back, too."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keys(terminal: int) -> Iterator[Callable[[float], bool]]:
    """Keys one by one and unseen; the function waits so many seconds for one that ends the view."""
    before = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> bool:
        if not select.select([terminal], [], [], seconds)[0]:
            return False
        typed = os.read(terminal, 64)
        # Nothing: the terminal is gone.
        return not typed or any(key in QUIT for key in typed)

    tty.setcbreak(terminal)
    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def draw(screen: Screen, problem: str, console: Console) -> Group:
    """As much of the table as fits, for people who see no colours too."""
    head, *rows = screen.rows
    table = Table(box=None, expand=True, pad_edge=False, header_style="bold reverse")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number >= screen.right else "left", no_wrap=True)
    room = max(1, console.height - 4)
    for row in rows[:room]:
        # Text, not markup: names come from a host.
        table.add_row(*(Text(printable(cell)) for cell in row))
    more = f", {len(rows) - room} more do not fit" if len(rows) > room else ""
    last = Text(printable(problem), style="bold red") if problem else Text(f"q: quit{more}", style="dim")
    return Group(Text(printable(screen.title), style="bold"), table, last)
