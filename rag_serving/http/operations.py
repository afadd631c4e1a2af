"""Routes for operators and browsers: probes, metrics, the description of the routes, and the page."""

import asyncio
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from rag_serving.api_schemas import NotReady
from rag_serving.errors import RagError
from rag_serving.http.service import service_of

_PAGE = Path(__file__).with_name("page")
_SWAGGER = Path(str(files("fastapi_offline"))) / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_SAFE = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

_PROBE_SECONDS = 4.0
"""Seconds after which a probe fails; less than the time limit of the probes in the Helm chart."""

operations = APIRouter(include_in_schema=False)


@operations.api_route("/healthz", methods=["GET", "HEAD"])
async def healthz() -> dict[str, str]:
    """Report that the process is alive."""
    return {"status": "ok"}


@operations.api_route("/readyz", methods=["GET", "HEAD"])
async def readyz(request: Request) -> JSONResponse:
    """Report whether questions would be answered, and the state of the cache."""
    service = service_of(request)
    problem, state = "", {}
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            health = await service.client.health()
        state = {"ready": True, "shards": health.shards, "cache": health.cache, "model": health.model}
        problem = "" if health.shards else "NothingPublished"
    except RagError as error:
        problem = type(error).__name__
    except TimeoutError:
        problem = "TooSlow" if service.was_ready else "Starting"
    if service.stopping:
        problem = "Stopping"
    elif service.client.is_starting:
        problem = problem or "Starting"
    if problem:
        return JSONResponse(NotReady(problem=problem).model_dump(), 503)
    service.was_ready = True
    return JSONResponse(state)


@operations.get("/metrics")
async def show_metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    service = service_of(request)
    service.report()
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@operations.get("/docs")
async def docs() -> FileResponse:
    """Return the page that describes the routes."""
    return _file(_PAGE, "docs.html")


@operations.get("/docs/{name}")
async def docs_file(name: str) -> FileResponse:
    """Return a file of Swagger UI."""
    return _file(_SWAGGER, name)


@operations.get("/")
async def page() -> FileResponse:
    """Return the web page."""
    return _file(_PAGE, "index.html")


@operations.get("/documents/{region}/{department}/{doc_id}")
async def viewer() -> FileResponse:
    """Return the page that shows a document; it asks for the document itself, with the caller's key."""
    return _file(_PAGE, "document.html")


@operations.get("/page/config.json")
async def page_config(request: Request) -> JSONResponse:
    """Return what the settings change on the web page."""
    service = service_of(request)
    settings = service.settings
    config = {
        "name": settings.page_name,
        "accent": settings.page_accent,
        "examples": settings.examples,
        "needs_key": service.authenticator.needs_key,
    }
    return JSONResponse(config, headers=_SAFE)


@operations.get("/page/{name}")
async def page_file(name: str) -> FileResponse:
    """Return a file of the web page."""
    return _file(_PAGE, name)


@operations.get("/page/vendor/{name}")
async def page_library(name: str) -> FileResponse:
    """Return a library of the web page."""
    return _file(_PAGE / "vendor", name)


def _file(folder: Path, name: str) -> FileResponse:
    found = {path.name: path for path in folder.iterdir() if path.is_file()}
    if name not in found:
        raise HTTPException(404)
    return FileResponse(found[name], headers=_SAFE)
