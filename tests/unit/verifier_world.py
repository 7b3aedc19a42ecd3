"""A verifier that serves, with a platform and its vendor; each of its answers must be one that is described."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from attest_factory import COMPONENTS, IMPLEMENTATION, MEASUREMENT, NONCE, Platform
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding
from described import Answer, check

from vambrace.attest import ear, references
from vambrace.attest.endorsement import VendorAuthority
from vambrace.serving.openapi import specification
from vambrace.verifier import api
from vambrace.verifier.settings import Settings, load_settings

SPECIFICATION = json.loads(specification(api.__file__))
POLICY = f"""schema = "vambrace.policy/1"
id = "tag:example.org,2026:patients"
[realm]
measurements = ["{MEASUREMENT.hex()}"]
"""


@dataclass
class World:
    """A platform that exists now, and the files of a service that trusts its vendor."""

    platform: Platform
    folder: Path
    settings: Settings


def make_world(folder: Path) -> World:
    now = datetime.now(UTC)
    platform = Platform(authority=VendorAuthority.create(now=now))
    platform.chain = [platform.authority.certify(platform.pak_cose, now=now).public_bytes(Encoding.DER)]
    (folder / "policies").mkdir()
    (folder / "policies" / "patients.toml").write_text(POLICY)
    (folder / "vendor-root.pem").write_bytes(platform.authority.certificate_pem)
    values = references.publish(COMPONENTS, platform.authority, implementation_id=IMPLEMENTATION)
    (folder / "reference-values.corim").write_bytes(values)
    (folder / "vendor.crl").write_bytes(platform.authority.revocation_list())
    (folder / "verifier.toml").write_text(
        'signing_key = "keys/ear.pem"\npolicies = "policies"\nroots = ["vendor-root.pem"]\nport = 0\n'
        'corims = ["reference-values.corim"]\nrevocation_lists = ["vendor.crl"]\n'
    )
    return World(platform, folder, load_settings(folder / "verifier.toml"))


class Client:
    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """A request whose answer must be one that openapi.yaml describes."""
        async with self._session.request(method, self._base + path, **options) as response:
            answer = Answer(response.status, dict(response.headers), await response.read())
        check(SPECIFICATION, method, path, answer)
        return answer

    async def appraise(self, question: Any, **options: Any) -> Answer:
        return await self.call("POST", "/v1/appraisals", json=question, **options)


@contextlib.asynccontextmanager
async def running(settings: Settings, **client: Any) -> AsyncIterator[Client]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(api.serve(settings, port.set_result))
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if not port.done():
        task.result()
    scheme = "https" if settings.certificate else "http"
    try:
        connector = aiohttp.TCPConnector(force_close=True, **client)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Client(session, f"{scheme}://127.0.0.1:{port.result()}")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await task


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(timed())


def question(world: World, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "evidence": base64.b64encode(world.platform.token()).decode(),
        "policy": "patients",
        "binding": {"kind": "launch", "nonce": NONCE.hex()},
    }
    return {key: value for key, value in {**known, **changes}.items() if value is not None}


async def claims_of(client: Client, answer: Answer, nonce: bytes | None = None) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"].replace(" ", "") == ear.JWT_TYPE.replace(" ", "")
    jwk = (await client.call("GET", "/.well-known/jwks.json")).json["keys"][0]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "==")) for name in "xy")
    key = EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
    return ear.verify_jwt(answer.body, key, nonce=nonce)


def verdict(claims: dict[str, Any]) -> str:
    (one,) = {module["ear_verifier_claims"]["verdict"] for module in claims["submods"].values()}
    return str(one)


def errors(claims: dict[str, Any]) -> set[str]:
    modules = claims["submods"].values()
    return {f["error"] for m in modules for f in m["ear_verifier_claims"]["findings"] if "error" in f}
