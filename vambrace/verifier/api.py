"""The HTTP API of the verifier (``openapi.yaml``)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from vambrace.attest import ear
from vambrace.errors import HostError, UsageError, VerificationError
from vambrace.serving.doors import Bounds, serving
from vambrace.serving.openapi import get_specification
from vambrace.serving.problems import Handler, Problems, problem
from vambrace.serving.rates import Rates, too_often
from vambrace.serving.signals import stop_signal
from vambrace.serving.tls import server_context
from vambrace.verifier.questions import MAX_REQUEST, parse_question
from vambrace.verifier.service import NotReady, Service, UnknownPolicy
from vambrace.verifier.settings import Settings

REQUEST_SECONDS: Final = 20.0
#: A connection is closed after this long, whatever it does: who sends slowly keeps nobody else out.
CONNECTION_SECONDS: Final = 60.0

log = logging.getLogger(__name__)

SERVICE = web.AppKey("service", Service)
RATES = web.AppKey("rates", Rates)

PROBLEMS: Final = Problems(
    "verifier",
    rows=(
        (UnknownPolicy, 404, "not-found"),
        (NotReady, 503, "not-ready"),
        (VerificationError, 422, "evidence"),
        (UsageError, 400, "request"),
    ),
    hint="see /v1/openapi.json",
)


def application(service: Service, rates: Rates) -> web.Application:
    app = web.Application(middlewares=[PROBLEMS.middleware(), _in_time], client_max_size=MAX_REQUEST)
    app[SERVICE] = service
    app[RATES] = rates
    app.add_routes(
        [
            web.get("/v1/verifier", get_verifier),
            web.get("/v1/openapi.json", get_specification(__file__)),
            web.get("/.well-known/jwks.json", get_keys),
            web.post("/v1/appraisals", post_appraisal),
        ]
    )
    return app


@web.middleware
async def _in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await handler(request)
    except TimeoutError:
        return problem(408, "request", "the request came too slowly", "send it again")


async def get_verifier(request: web.Request) -> web.Response:
    return web.json_response(request.app[SERVICE].describe())


async def get_keys(request: web.Request) -> web.Response:
    return web.json_response(request.app[SERVICE].keys())


async def post_appraisal(request: web.Request) -> web.Response:
    if (refusal := too_often(request.app[RATES], request)) is not None:
        return refusal
    if request.content_type != "application/json":
        raise UsageError("the body is not application/json", hint="see /v1/openapi.json")
    cbor = "application/eat-cwt" in request.headers.get("Accept", "")
    result = request.app[SERVICE].answer(parse_question(await request.read()), cbor=cbor)
    kind = ear.CWT_TYPE if cbor else ear.JWT_TYPE
    body = result if isinstance(result, bytes) else result.encode()
    return web.Response(body=body, headers={"Content-Type": kind, "Cache-Control": "no-store"})


# --- the server -----------------------------------------------------------------------------------------


async def serve(settings: Settings, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads all files anew. ``ready`` is told the port.

    Raises ``VambraceError``.
    """
    service = Service(settings)
    service.load()
    stop = stop_signal()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reload)
    async with _listening(settings, service) as port, _reloading(settings, service):
        log.info("listening on %s:%d", settings.listen, port)
        ready(port)
        await stop.wait()


@contextlib.asynccontextmanager
async def _listening(settings: Settings, service: Service) -> AsyncIterator[int]:
    app = application(service, Rates(settings.rate, settings.burst))
    bounds = Bounds(settings.connections, settings.connections_each, CONNECTION_SECONDS)
    place = settings.listen, settings.port
    async with contextlib.AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(serving(app, place, bounds, tls_context(settings)))
        except OSError as error:
            where = f"{settings.listen}:{settings.port}"
            raise HostError(f"cannot listen on {where}: {error.strerror}", hint="choose another port") from None
        yield port


@contextlib.asynccontextmanager
async def _reloading(settings: Settings, service: Service) -> AsyncIterator[None]:
    async def again() -> None:
        while True:
            await asyncio.sleep(settings.reload_seconds)
            service.reload()

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """None where the service has no certificate. Raises ``ConfigError``."""
    if settings.certificate is None or settings.key is None:
        return None
    return server_context(settings.certificate, settings.key, client_ca=settings.client_ca)
