"""Secrets for applications: what each is granted, fetched from the broker when it asks, and not kept."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vambrace_agent import AgentError
from vambrace_agent.release import Broker, Refused, Session
from vambrace_agent.settings import Secret

FORBIDDEN = 403  # this secret; the session is as good as before


class Secrets:
    """``broker`` is None where there is none; ``said`` counts what has extended the registers. From any thread; one
    after the other."""

    def __init__(self, broker: Broker | None, secrets: list[Secret], said: Callable[[], int] = lambda: 0) -> None:
        self._broker = broker
        self._said = said
        self._when = 0  # the count when the session's evidence was made, or a moment before
        self._resources = {(secret.application, secret.name): secret.resource for secret in secrets}
        self._lock = threading.Lock()
        self._session: Session | None = None

    def get(self, application: str, name: object) -> bytes:
        """Raises ``AgentError``: not granted to it, or not released."""
        resource = self._resources.get((application, name)) if isinstance(name, str) else None
        if resource is None or self._broker is None:
            raise AgentError("this application is granted no such secret")
        with self._lock:
            session, self._session = self._session, None
            said = self._said()
            if session is not None and not session.ended and said == self._when:
                try:
                    return self._fetch(session, resource)
                except Refused as refusal:
                    if refusal.status == FORBIDDEN:
                        raise
                except AgentError:
                    pass  # it has ended at the broker's side
            if session is not None:
                session.close()
            self._when = said
            return self._fetch(self._broker.session(), resource)

    def _fetch(self, session: Session, resource: str) -> bytes:
        """From ``session``, which is kept for the next one if it is good for more."""
        try:
            _, value = session.resource(resource)
        except Refused as refusal:
            if refusal.status == FORBIDDEN:
                self._session = session
            else:
                session.close()
            raise
        except BaseException:
            session.close()
            raise
        self._session = session
        return value
