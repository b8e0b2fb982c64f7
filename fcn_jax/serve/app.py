"""The routes of the server: the page, the HTTP API, and errors as one sentence."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fcn_jax.errors import listed, suggestion
from fcn_jax.serve.segmenter import Segmenter
from fcn_jax.serve.uploads import RequestError, Upload, check_header, decode, read_body
from fcn_jax.serve.worker import Worker

STATIC = Path(__file__).parent / "static"

HEADERS = {
    # Nothing on the page comes from elsewhere, and no other page may frame it.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(segmenter: Segmenter) -> Starlette:
    """Makes the application of a network; `app.state.worker` computes its answers."""
    limits = segmenter.limits
    worker = Worker(limits.waiting, limits.time_limit_s)
    model = segmenter.model()

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={**HEADERS, "Cache-Control": "no-cache"})

    async def describe(request: Request) -> Response:
        return JSONResponse(model)

    async def respond(
        request: Request, answer: Callable[[Upload], Response], *, fit: bool
    ) -> Response:
        """Receives an image, and answers when its turn has come."""

        def job() -> Response:
            try:
                return answer(decode(data, limits))
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                    raise RequestError(
                        507, "the image does not fit in the memory: send a smaller one"
                    ) from error
                raise

        with worker.place():
            data = await read_body(request, limits)
            await asyncio.to_thread(check_header, data, limits, fit=fit)
            return await worker.run(job, request.is_disconnected)

    async def segment(request: Request) -> Response:
        query = request.query_params
        _check_names(query, ("fit", "label_map", "layers"))
        label_map = _label_map(query, tuple(model["label_maps"]))
        fit, layers = _switch(query, "fit"), _switch(query, "layers")
        wanted = _wanted(request.headers.get("accept", "*/*"))
        if layers and wanted != "json":
            raise RequestError(406, "layers=1 needs the header Accept: application/json")

        def answer(upload: Upload) -> Response:
            if layers:
                return JSONResponse(segmenter.layers(upload, label_map))
            if wanted == "json":
                return JSONResponse(segmenter.shares(upload, label_map))
            return Response(segmenter.png(upload, label_map), media_type="image/png")

        return await respond(request, answer, fit=fit)

    async def inside(request: Request) -> Response:
        query = request.query_params
        _check_names(query, ("x", "y"))
        pixel = _whole_number(query, "y"), _whole_number(query, "x")
        return await respond(
            request, lambda upload: JSONResponse(segmenter.inside(upload, pixel)), fit=True
        )

    app = Starlette(
        routes=[
            Route("/", page),
            health_route(worker),
            Route("/v1/model", describe),
            Route("/v1/segment", segment, methods=["POST"]),
            Route("/v1/inside", inside, methods=["POST"]),
            static_route(),
        ],
        exception_handlers=API_HANDLERS,
    )
    app.state.worker = worker
    return app


def health_route(worker: Worker) -> Route:
    """Returns the route that says that the server runs, and how many images are in progress."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "in_progress": worker.in_progress})

    return Route("/healthz", health)


def static_route() -> Mount:
    """Returns the route of the pages' files."""
    return Mount("/static", StaticFiles(directory=STATIC))


def _check_names(query: Mapping[str, str], known: Sequence[str]) -> None:
    for name in query:
        if name not in known:
            raise RequestError(
                400,
                f"there is no parameter {name[:50]!r}{suggestion(name[:50], known)} "
                f"(there are {', '.join(known)})",
            )


def _label_map(query: Mapping[str, str], label_maps: tuple[str, ...]) -> str:
    name = query.get("label_map", label_maps[0])
    if name not in label_maps:
        known = listed([repr(name) for name in label_maps], 8)
        raise RequestError(400, f"there is no label map {name[:50]!r} (there are {known})")
    return name


def _switch(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "0")
    if text not in ("0", "1"):
        raise RequestError(400, f"the parameter {name} (={text[:50]!r}) must be 0 or 1")
    return text == "1"


def _whole_number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not re.fullmatch("[0-9]{1,6}", text):
        raise RequestError(400, f"the parameter {name} (={text[:50]!r}) must be a whole number")
    return int(text)


def _wanted(accept: str) -> str:
    """Returns "png" or "json", the first that the header Accept names."""
    for part in accept.split(","):
        match part.partition(";")[0].strip().lower():
            case "application/json" | "application/*":
                return "json"
            case "image/png" | "image/*" | "*/*":
                return "png"
    raise RequestError(406, "the header Accept must name image/png or application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        404: "there is no such page: POST /v1/segment, GET /v1/model and GET /healthz are the API",
        405: "this address needs another method: POST for /v1/segment, GET for all others",
    }
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    # Starlette raises the error again, so that it is logged with its traceback.
    return JSONResponse({"error": "the server failed on this request; its log says why"}, 500)


API_HANDLERS: Any = {
    RequestError: _refuse,
    HTTPException: _refuse_route,
    Exception: _fail,
}
"""What answers errors, by type."""
