"""States of a domain, the patent's step each belongs to, and the transitions that are allowed."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from enum import Enum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from vambrace.errors import Conflict


class State(Enum):
    CREATED = "created"
    LOADING = "loading"
    AWAITING_VERDICT = "awaiting-verdict"
    ENCRYPTING = "encrypting"
    RUNNING = "running"
    DESTROYING = "destroying"
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    REFUSED = "refused"
    FAILED = "failed"
    DESTROYED = "destroyed"

    @property
    def final(self) -> bool:
        return self in FINAL

    @property
    def step(self) -> int:
        """The step of the patent, 401 to 406."""
        return STEPS[self]


FINAL = frozenset((State.SUCCEEDED, State.STOPPED, State.REFUSED, State.FAILED, State.DESTROYED))

STEPS = {
    State.CREATED: 401,
    State.LOADING: 402,
    State.AWAITING_VERDICT: 403,
    State.ENCRYPTING: 404,
    State.RUNNING: 405,
    State.DESTROYING: 406,
    State.SUCCEEDED: 406,
    State.STOPPED: 406,
    State.REFUSED: 406,
    State.FAILED: 406,
    State.DESTROYED: 406,
}

TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATED: frozenset((State.LOADING, State.DESTROYING)),
    State.LOADING: frozenset((State.AWAITING_VERDICT, State.DESTROYING)),
    State.AWAITING_VERDICT: frozenset((State.ENCRYPTING, State.DESTROYING)),
    State.ENCRYPTING: frozenset((State.RUNNING, State.DESTROYING)),
    State.RUNNING: frozenset((State.DESTROYING,)),
    State.DESTROYING: FINAL,
    **{state: frozenset() for state in FINAL},
}


#: Of a class that starts without its owner's verdict.
AT_ONCE = {**TRANSITIONS, State.LOADING: frozenset((State.RUNNING, State.DESTROYING))}


class Lifecycle:
    """The present state of one domain, and a way to wait for the next change. ``verdict``: it starts by one only."""

    def __init__(self, state: State = State.CREATED, *, verdict: bool = True) -> None:
        self.state = state
        self._transitions = TRANSITIONS if verdict else AT_ONCE
        self._changed = asyncio.Event()

    def move(self, state: State) -> None:
        """Enter ``state``; raises ``Conflict`` where that is not allowed from the present one."""
        if state not in self._transitions[self.state]:
            raise Conflict(f"a domain cannot go from {self.state.value} to {state.value}", status=409)
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, seconds: float, unless: State) -> None:
        """Return when the state is not ``unless``, is final, or ``seconds`` have passed."""
        try:
            async with asyncio.timeout(seconds):
                while self.state is unless and not self.state.final:
                    await self._changed.wait()
        except TimeoutError:
            return


class HasLifecycle(Protocol):
    @property
    def lifecycle(self) -> Lifecycle: ...


Owner = TypeVar("Owner", bound=HasLifecycle)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def require(
    *states: State,
) -> Callable[[Callable[Concatenate[Owner, Arguments], Result]], Callable[Concatenate[Owner, Arguments], Result]]:
    """Guard a method: ``Conflict`` (409) unless its object is in one of ``states`` when it is called."""

    def decorate(
        method: Callable[Concatenate[Owner, Arguments], Result],
    ) -> Callable[Concatenate[Owner, Arguments], Result]:
        @functools.wraps(method)
        def guarded(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
            if self.lifecycle.state not in states:
                raise Conflict(
                    f"the domain is {self.lifecycle.state.value}",
                    hint=f"this is possible only while it is {' or '.join(state.value for state in states)}",
                    status=409,
                )
            return method(self, *args, **kwargs)

        return guarded

    return decorate
