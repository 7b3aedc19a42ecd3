"""A service's description of itself: ``openapi.yaml`` in its package, in YAML's JSON subset, so no parser is needed."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from vambrace.serving.problems import Handler


def specification(module: str) -> str:
    """The OpenAPI description, as JSON, of the service that the file ``module`` belongs to."""
    return Path(module).with_name("openapi.yaml").read_text()


def get_specification(module: str) -> Handler:
    """What answers with it."""
    text = specification(module)

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    return handler
