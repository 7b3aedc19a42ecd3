"""What the services have in common: how errors leave them, and their TLS."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from vambrace.errors import ConfigError, Conflict, UsageError, VerificationError
from vambrace.serving.doors import Bounds, serving
from vambrace.serving.problems import CONTENT_TYPE, Problems
from vambrace.serving.tls import server_context

PROBLEMS = Problems(
    "shop",
    rows=((Conflict, 409, "conflict"), (UsageError, 400, "request")),
    hint="read the manual",
    hints={405: "ask in another way"},
)


async def refuse(request: web.Request) -> web.StreamResponse:
    raise {
        "conflict": Conflict("it is taken", hint="take another"),
        "status": Conflict("it is gone", status=410),
        "usage": UsageError("that is nothing"),
        "unlisted": VerificationError("no"),
        "surprise": RuntimeError("the key is 4711"),
    }[request.match_info["name"]]


def asked(test: Callable[[TestClient[Any, Any]], Awaitable[None]]) -> None:
    async def run() -> None:
        app = web.Application(middlewares=[PROBLEMS.middleware()])
        app.add_routes([web.get("/shelf/{name}", refuse)])
        async with TestClient(TestServer(app)) as client:
            await test(client)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "status", "kind", "detail", "hint"),
    [
        ("/shelf/conflict", 409, "conflict", "it is taken", "take another"),
        ("/shelf/status", 410, "conflict", "it is gone", "read the manual"),
        ("/shelf/usage", 400, "request", "that is nothing", "read the manual"),
        ("/shelf/unlisted", 500, "internal", "no", "read the manual"),
        ("/cellar", 404, "request", "Not Found", "read the manual"),
    ],
)
def test_every_error_is_a_problem(path: str, status: int, kind: str, detail: str, hint: str) -> None:
    async def test(client: TestClient[Any, Any]) -> None:
        answer = await client.get(path)
        assert (answer.status, answer.content_type) == (status, CONTENT_TYPE)
        body = json.loads(await answer.read())
        assert body["type"].endswith(f":problem/{kind}")
        assert (body["status"], body["detail"], body["hint"]) == (status, detail, hint)

    asked(test)


def test_a_wrong_method_is_told_the_right_ones() -> None:
    async def test(client: TestClient[Any, Any]) -> None:
        answer = await client.delete("/shelf/usage")
        assert (answer.status, json.loads(await answer.read())["hint"]) == (405, "ask in another way")
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}

    asked(test)


def test_no_body_becomes_larger_than_it_came() -> None:
    small = gzip.compress(bytes(1 << 20))

    async def size(request: web.Request) -> web.Response:
        return web.json_response(len(await request.read()))

    async def test() -> None:
        app = web.Application()
        app.add_routes([web.post("/", size)])
        async with serving(app, ("127.0.0.1", 0), Bounds(8, 8)) as port, aiohttp.ClientSession() as client:
            headers = {"Content-Encoding": "gzip"}
            async with client.post(f"http://127.0.0.1:{port}/", data=small, headers=headers) as answer:
                assert await answer.json() == len(small)

    asyncio.run(test())


def test_an_unexpected_error_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    """And the log has nothing that the client could have made look like a line of it."""

    async def test(client: TestClient[Any, Any]) -> None:
        for name in ("surprise", "%0aINFO all is well"):
            answer = await client.get(f"/shelf/{name}")
            text = await answer.text()
            assert answer.status == 500 and "4711" not in text and "RuntimeError" not in text
            assert "internal error of the shop" in text and "see the shop's log" in text

    with caplog.at_level(logging.ERROR):
        asked(test)
    assert [record.getMessage() for record in caplog.records] == ["GET /shelf/{name}: internal error"] * 2


def test_tls_that_cannot_be_set_up(tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_text("rubbish")
    for missing in ("none", "rubbish"):
        with pytest.raises(ConfigError, match="TLS cannot be set up") as caught:
            server_context(tmp_path / missing, tmp_path / missing)
        assert "certificate" in str(caught.value.hint)
