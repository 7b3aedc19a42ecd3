"""Clients outside of a Realm: programs of this machine, at work while percentages change."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from vambrace.debian import tools
from vambrace.errors import VambraceError

#: What one call of a client's program may take: everything is emulated, and pages may have to be decrypted one by one.
CALL_SECONDS: Final = 240.0
_LOOK_SECONDS: Final = 0.1


def run_client(words: Sequence[str], text: str = "", seconds: float = CALL_SECONDS) -> str:
    """What a client's program prints on its standard output; ``text`` is its input.

    Raises ``VambraceError``: it failed, said something on its standard error, or did not end. ``ToolMissing``.
    """
    name = words[0].rpartition("/")[2]
    command = [tools.find(words[0]), *words[1:]]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise VambraceError(f"{name} did not end within {seconds:.0f} s") from None
    if done.returncode or done.stderr.strip():
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[0]
        raise VambraceError(f"{name} ended with {done.returncode} and said: {said[:300]}")
    return done.stdout


class Load:
    """A client at work, round after round, in a thread of its own, until the block is left.

    ``do_round`` gives how many requests it made that were answered as they should be, and raises ``VambraceError``
    where one was not: that is the last round, and its ``failure`` is raised where the load is awaited. ``rounds`` and
    ``requests`` are what was done so far.
    """

    def __init__(self, do_round: Callable[[], int]) -> None:
        self.rounds = 0
        self.requests = 0
        self.failure: Exception | None = None
        self._do_round = do_round
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gallery-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def finish(self) -> None:
        """Let it do the round that it is at, and no other. Raises what the client failed with."""
        self._end.set()
        self._thread.join()
        if self.failure:
            raise self.failure

    def await_whole_round(self, seconds: float = 2 * CALL_SECONDS) -> None:
        """Return when a round has ended that began after this call. Raises what the client failed with."""
        wanted = self.rounds + 2
        deadline = time.monotonic() + seconds
        while self.rounds < wanted:
            if self.failure:
                raise self.failure
            if not self._thread.is_alive():
                raise VambraceError("the client has ended too early")
            if time.monotonic() > deadline:
                raise VambraceError(f"the client did no whole round within {seconds:.0f} s")
            time.sleep(_LOOK_SECONDS)

    def _work(self) -> None:
        try:
            while not self._end.is_set():
                self.requests += self._do_round()
                self.rounds += 1
        except Exception as error:  # a mistake of ours, too, is for who awaits this
            self.failure = error
