"""What an owner does at a broker: store secrets, change who may have them, read the log."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import urllib3

from vambrace.errors import BrokerError, NotFound, NotReleased, UsageError

TIMEOUT: Final = urllib3.Timeout(connect=10, read=60)


class BrokerClient:
    """A broker at ``url``, known by ``certificate`` (PEM); the owner by theirs. A context manager.

    ``resource`` is ``repository/type/tag`` everywhere. Raises ``BrokerError``, ``NotFound``, ``NotReleased`` (not the
    owner of that repository).
    """

    def __init__(self, url: str, certificate: Path, owner_certificate: Path, owner_key: Path) -> None:
        if not url.startswith("https://"):
            raise UsageError(f"{url[:80]!a} is no broker's URL", hint="https://NAME:PORT")
        for path in (certificate, owner_certificate, owner_key):
            if not path.is_file():
                raise UsageError(f"{path} is not there", hint="see 'vambrace secret --help'")
        self._url = url.rstrip("/")
        self._pool = urllib3.PoolManager(
            ca_certs=str(certificate),
            cert_file=str(owner_certificate),
            key_file=str(owner_key),
            ssl_minimum_version=ssl.TLSVersion.TLSv1_3,
            timeout=TIMEOUT,
            retries=False,
        )

    def __enter__(self) -> BrokerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._pool.clear()

    def put(
        self, resource: str, value: bytes | None, policy: dict[str, Any] | None, platform: str = "default"
    ) -> int:
        """Store a value, a policy (``vambrace.attest.policy.Policy.table``) for a platform of the broker's settings, or
        both; a new volume's key is made by the broker. The generation from now on."""
        body: dict[str, Any] = {}
        if value is not None:
            body["value"] = base64.b64encode(value).decode()
        if policy is not None:
            body |= {"policy": policy, "platform": platform}
        return int(self._ask("PUT", f"/v1/secrets/{resource}", body)["generation"])

    def describe(self, resource: str) -> dict[str, Any]:
        """Generation, platform and policy."""
        return self._ask("GET", f"/v1/secrets/{resource}")

    def secrets(self, repository: str) -> list[dict[str, Any]]:
        """What is in a repository, each as ``describe`` has it."""
        return list(self._ask("GET", f"/v1/secrets/{repository}")["secrets"])

    def delete(self, resource: str) -> None:
        self._ask("DELETE", f"/v1/secrets/{resource}")

    def audit(self, repository: str, after: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Entries of the log about a repository that follow number ``after``, and where the whole log ends."""
        answer = self._ask("GET", f"/v1/audit/{repository}?after={after}")
        return list(answer["entries"]), dict(answer["head"])

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            response = self._pool.request(
                method, self._url + path, body=data, headers={"Content-Type": "application/json"}
            )
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            cause, advice = _cause(error)
            raise BrokerError(f"the broker at {self._url} cannot be reached: {cause}", hint=advice) from error
        try:
            answer = json.loads(response.data) if response.data else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise BrokerError("the broker's answer is not understood", hint="is this a vambrace broker?")
        if response.status >= 400:
            detail, hint = str(answer.get("detail", f"HTTP {response.status}")), answer.get("hint")
            hint = hint if isinstance(hint, str) else None
            if response.status == 404:
                raise NotFound(detail, hint=hint, status=404)
            kind = NotReleased if response.status in (401, 403) else BrokerError
            raise kind(detail, hint=hint, status=response.status)
        return answer


def _cause(error: BaseException) -> tuple[str, str]:
    """Why there is no connection, without what the libraries between say of themselves; and what to do."""
    found = getattr(error, "reason", None) or error
    seen: BaseException | None = found if isinstance(found, BaseException) else error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    if isinstance(seen, ConnectionResetError):  # in TLS 1.3 it looks at the client's certificate last
        return "it ends the connection", "it takes certificates of the owners that its settings name, and no others"
    words = getattr(seen, "verify_message", None) or (seen.strerror if seen else None) or str(found)
    hint = "'vambrace broker serve FOLDER' runs it; --broker and --certificate name another one"
    return " ".join(words.split())[:200], hint
