"""The HTTP of `posology serve`: FastAPI over a fleet. What guards it is in `limits`, the command in `command`."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import posology
from posology.corpus.document import Document
from posology.errors import UserError
from posology.ship.redact import Redactor
from posology.ship.serve.audit import Audit
from posology.ship.serve.batching import Closed, Full
from posology.ship.serve.fleet import Fleet, Served
from posology.ship.serve.limits import Refusal, busy
from posology.ship.serve.metrics import TYPE, Metrics
from posology.ship.serve.page import StaticFile, files
from posology.ship.serve.schemas import (
    Artifact,
    ClassAnswer,
    Models,
    Name,
    Note,
    Notes,
    Problem,
    RedactAnswer,
    SpanAnswer,
    State,
    TextIn,
    Texts,
)

_INLINE = 4000
"""Characters that are cut into pieces where they arrive; to hand more to another thread costs less than it blocks."""
_CLASSIFIER, _TAGGER = "sequence-classification", "token-classification"
_Result = TypeVar("_Result")
NameInPath = Annotated[Name, InPath(description="under which it is asked", examples=["m1"])]


@dataclass
class Service:
    """What the routes need.

    Attributes:
        fleet: the models; None until they are loaded.
        metrics: of the server.
        artifacts: where models that are added may lie; None: none may be added.
        audit: who asked what; None: nobody notes it.
        seconds: within which a request is answered, or is not.
        key: what surrogates follow from, for as long as the server runs.
        closing: whether it is about to end.
    """

    metrics: Metrics
    artifacts: Path | None = None
    audit: Audit | None = None
    seconds: float = 30.0
    fleet: Fleet | None = None
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    closing: bool = False
    cutting: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "texts"), repr=False)
    waiting: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16, "redact"), repr=False)

    def ready(self) -> Fleet:
        """The fleet. Raises Refusal where it cannot be asked."""
        if self.fleet is None or self.closing:
            why = "the server is ending" if self.closing else "the models are being loaded"
            raise Refusal(503, why, {"retry-after": "5"})
        return self.fleet

    def note(self, request: Request, what: str, models: Sequence[str], texts: Sequence[str] = (), **more: str) -> None:
        """Writes to the audit, if there is one; without its line there is no answer."""
        if self.audit is not None:
            try:
                self.audit.note(request.state.who, what, models, texts, **more)
            except OSError:
                raise Refusal(503, "the audit cannot be written, and nothing is answered without") from None


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are no answers, for the schema."""
    said = {
        400: "No JSON",
        401: "No token, or a wrong one",
        403: "Not here",
        404: "No such model",
        408: "The body did not come in time",
        409: "Not on this server",
        413: "More than the server takes at a time",
        415: "Another type than application/json",
        422: "A request of another form, or for models that do not fit it",
        429: "Too much waits, or too many requests; Retry-After says for how long",
        500: "The server failed",
        503: "It is starting or ending",
        504: "It took too long",
    }
    return {status: {"model": Problem, "description": said[status]} for status in statuses}


_ANY = (401, 403, 429, 500, 503)
_BODY = (*_ANY, 400, 408, 413, 415, 422)


def create_app(service: Service, *, tokens: bool = False) -> FastAPI:
    """The application.

    Args:
        service: what it is over.
        tokens: whether it stands behind bearer tokens, which its schema then says.
    """
    app = FastAPI(
        title="Posology",
        version=posology.__version__,
        summary="Clinical text models on one backbone: classes, entities, de-identification.",
        docs_url=None,  # they load their scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    _answer_refusals(app)
    _add_reading(app, service)
    _add_models(app, service)
    _add_state(app, service)
    for path, file in files().items():
        app.add_api_route(path, _static(file), methods=["GET", "HEAD"], include_in_schema=False)
    if tokens:
        _describe_tokens(app)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    """The routes that read texts."""
    responses = _refused(*_BODY, 404, 504)

    @app.post("/v1/classify", response_model=ClassAnswer, responses=responses, tags=["texts"])
    async def classify(request: Request, body: Texts) -> Response:
        """Labels with calibrated probabilities, from all classifiers or those that are named."""
        return _Json({"documents": await _read(service, request, body, _CLASSIFIER)})

    @app.post("/v1/entities", response_model=SpanAnswer, responses=responses, tags=["texts"])
    async def entities(request: Request, body: Texts) -> Response:
        """Entities, from all taggers or those that are named. Offsets are Unicode code points of the text as sent."""
        return _Json({"documents": await _read(service, request, body, _TAGGER)})

    @app.post("/v1/redact", response_model=RedactAnswer, responses=responses, tags=["texts"])
    async def redact(request: Request, body: Notes) -> Response:
        """Texts with identifiers replaced. Surrogates agree within a group for as long as the server runs."""
        fleet, deadline = service.ready(), time.monotonic() + service.seconds
        model = _named(fleet, [body.model], _TAGGER, "model")[0]
        documents = [Document(note.id, note.text, note.group or "") for note in body.documents]
        _check_fit([model], documents)
        _check_room(fleet, documents, 1)

        def run() -> list[dict[str, Any]]:
            redactor = Redactor(model.within(max(0.0, deadline - time.monotonic())), style=body.style, key=service.key)
            return [
                {
                    "id": own.id,
                    "text": own.text,
                    "spans": [span._asdict() for span in own.spans],
                    "counts": own.counts,
                }
                for own in redactor.redact(documents)
            ]

        found = await _in_time(service, deadline, lambda: _in(service.waiting, run))
        texts = [document.text for document in documents]
        service.note(request, "redact", [model.name], texts)
        service.metrics.answered(model.name, len(documents))
        return _Json({"documents": found})


async def _read(service: Service, request: Request, body: Texts, kind: str) -> list[dict[str, Any]]:
    """What the models of a kind say of the texts."""
    fleet, deadline = service.ready(), time.monotonic() + service.seconds
    documents = [Document(own.id, own.text, text_pair=own.text_pair) for own in body.documents]
    if body.models is None:
        paired = documents[0].text_pair is not None
        models = [model for model in fleet.models() if model.kind == kind and model.text_pair == paired]
        if not models:
            raise Refusal(404, "no model that is served reads such texts")
    else:
        models = _named(fleet, list(dict.fromkeys(body.models)), kind, "models")
    _check_fit(models, documents)
    _check_room(fleet, documents, len(models))
    pool = service.cutting if sum(len(own.text) for own in documents) > _INLINE else None
    asked = await _in(pool, lambda: fleet.ask(documents, models))
    with _refusing():
        work = fleet.batcher.submit(asked.units)
    try:
        await _in_time(service, deadline, lambda: asyncio.wrap_future(work.future))
    finally:
        fleet.batcher.cancel(work)  # nothing, where it is done
    rows = await _in(pool, asked.rows)
    names = [model.name for model in models]
    texts = [f"{own.text}\0{own.text_pair}" if own.text_pair is not None else own.text for own in documents]
    service.note(request, "classify" if kind == _CLASSIFIER else "entities", names, texts)
    for name in names:
        service.metrics.answered(name, len(documents))
    return [{"id": document.id, "results": own} for document, own in zip(documents, rows, strict=True)]


def _named(fleet: Fleet, names: Sequence[str], kind: str, place: str) -> list[Served]:
    """The models of these names. Raises Refusal where one is missing, or of another kind."""
    models = []
    for number, name in enumerate(names):
        model = fleet.get(name)
        if model is None:
            raise Refusal(404, "there is no such model; GET /v1/models lists them", problems=[_at(place, number)])
        if model.kind != kind:
            wanted = "classifier" if kind == _CLASSIFIER else "tagger"
            raise Refusal(422, f"a model that is named is no {wanted}", problems=[_at(place, number)])
        models.append(model)
    return models


def _at(place: str, number: int) -> dict[str, str]:
    return {"place": f"{place}.{number}" if place == "models" else place}


def _check_fit(models: Sequence[Served], documents: Sequence[Document]) -> None:
    """Raises Refusal where texts come in pairs and a model reads single ones, or the other way round."""
    for number, document in enumerate(documents):
        if any(model.text_pair != (document.text_pair is not None) for model in models):
            paired = "no text_pair is given" if document.text_pair is None else "a text_pair is given"
            raise Refusal(
                422,
                f"{paired}, and a model reads something else",
                problems=[{"place": f"documents.{number}.text_pair"}],
            )


def _check_room(fleet: Fleet, documents: Sequence[Document], models: int) -> None:
    """Raises Refusal, before any work, where texts cannot be taken: a piece has eight characters at most, mostly."""
    with _refusing():
        fleet.batcher.check(models * sum(len(document.text) // 8 for document in documents))


class _refusing:
    """Turns what the queue says into refusals."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, Full):
            if error.seconds is None:
                raise Refusal(413, "these texts, times the models, are more than the server takes at a time")
            raise busy(error.seconds)
        if isinstance(error, Closed):
            raise Refusal(503, "the server is ending", {"retry-after": "5"})


async def _in_time(service: Service, deadline: float, start: Callable[[], Awaitable[_Result]]) -> _Result:
    try:
        with _refusing():
            return await asyncio.wait_for(start(), max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise Refusal(504, f"it took more than {service.seconds:g} s") from None


async def _in(pool: ThreadPoolExecutor | None, run: Callable[[], _Result]) -> _Result:
    """Runs something in a pool of threads, or here."""
    return run() if pool is None else await asyncio.get_running_loop().run_in_executor(pool, run)


def _add_models(app: FastAPI, service: Service) -> None:
    """The routes that list and change the models."""

    @app.get("/v1/models", response_model=Models, responses=_refused(*_ANY), tags=["models"])
    async def models() -> Response:
        """The models, and how well each did on its test split."""
        fleet = service.ready()
        served = fleet.models()
        used = {id(own): sum(model.engine is own for model in served) for own in fleet.backbones.values()}
        most = max(fleet.backbones.values(), key=lambda own: used[id(own)], default=None)
        backbone = most and {
            "name": most.source.title,
            "parameters": most.parameters,
            "sha256": most.source.fingerprint,
        }
        return _Json({"backbone": backbone, "models": [model.facts for model in served]})

    @app.put(
        "/v1/models/{name}",
        response_model=Models,
        status_code=201,
        responses={200: {"model": Models, "description": "Another had the name"}, **_refused(*_BODY, 404, 409)},
        tags=["models"],
    )
    async def add(request: Request, name: NameInPath, body: Artifact) -> Response:
        """Loads a model; one that has its name answers until it is there, and requests that it has are finished."""
        fleet = service.ready()
        if service.artifacts is None:
            raise Refusal(409, "the server was started without --artifacts, and takes no models")
        folder = service.artifacts / body.artifact
        if not folder.is_dir() or not folder.resolve().is_relative_to(service.artifacts.resolve()):
            raise Refusal(404, "there is no such folder below the one that --artifacts names")
        service.note(request, "add", [name], artifact=body.artifact)
        try:
            replaced = await _in(service.waiting, lambda: fleet.add(name, folder))
        except UserError as error:
            raise Refusal(422, f"the artifact cannot be served: {error.problem}. {error.mend}.") from None
        answer = await models()
        answer.status_code = 200 if replaced else 201
        return answer

    @app.delete(
        "/v1/models/{name}",
        status_code=204,
        response_class=Response,
        responses=_refused(*_ANY, 404, 422),
        tags=["models"],
    )
    async def remove(request: Request, name: NameInPath) -> Response:
        """Serves a model no more; requests that it has are finished."""
        fleet = service.ready()
        if fleet.get(name) is None:
            raise Refusal(404, "there is no such model; GET /v1/models lists them")
        service.note(request, "remove", [name])
        await _in(service.waiting, lambda: fleet.remove(name))
        return Response(status_code=204)


def _add_state(app: FastAPI, service: Service) -> None:
    """The routes for those who look after the server."""

    @app.get("/healthz", response_model=State, tags=["state"])
    async def healthz() -> Response:
        """Whether the server runs."""
        return _Json({"status": "ok"})

    @app.get("/readyz", response_model=State, responses=_refused(503), tags=["state"])
    async def readyz() -> Response:
        """Whether it answers: its models are loaded, and it is not about to end."""
        service.ready()
        return _Json({"status": "ready"})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **_refused(*_ANY)},
        tags=["state"],
    )
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": TYPE})


def _static(file: StaticFile) -> Callable[[Request], Awaitable[Response]]:
    """Gives a file of the page."""

    async def give(request: Request) -> Response:
        headers = {"etag": file.etag, "cache-control": "no-cache", "content-type": file.content_type}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers)

    return give


def _answer_refusals(app: FastAPI) -> None:
    """Makes every error a sentence that holds nothing of what was sent."""

    @app.exception_handler(Refusal)
    async def refused(_request: Request, refusal: Refusal) -> Response:
        return Response(refusal.body(), refusal.status, refusal.headers, "application/json")

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> Response:
        refusal = Refusal(500, "the server failed; its log says where")  # `Guard` writes it, since this is raised again
        return Response(refusal.body(), refusal.status, refusal.headers, "application/json")

    @app.exception_handler(HTTPException)
    async def failed(_request: Request, error: HTTPException) -> Response:
        said = {400: "the body is no JSON that can be read", 404: "there is nothing here", 405: "not with this method"}
        refusal = Refusal(error.status_code, said.get(error.status_code, "not answered"), dict(error.headers or {}))
        return Response(refusal.body(), refusal.status, refusal.headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if any(own["type"] == "json_invalid" for own in found):
            refusal = Refusal(400, "the body is no JSON")
        else:
            problems = [{"place": _place(own["loc"]), "problem": own["msg"]} for own in found[:20]]
            first = "; ".join(f"{own['place']}: {own['problem']}" for own in problems[:3])
            refusal = Refusal(422, first, problems=problems)
        return Response(refusal.body(), refusal.status, media_type="application/json")


_FIELDS = {name for model in (Texts, TextIn, Notes, Note, Artifact) for name in model.model_fields} | {"name"}


def _place(location: Sequence[str | int]) -> str:
    """Where in the request something is wrong. Names that a client made up may be text of a note."""
    parts = [str(part) if isinstance(part, int) or part in _FIELDS else "..." for part in location[1:]]
    return ".".join(parts) or "the body"


def _describe_tokens(app: FastAPI) -> None:
    """Says in the schema that routes want a token."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        schema = plain()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        for path in ("/healthz", "/readyz"):
            schema["paths"][path]["get"]["security"] = []
        return schema

    app.openapi = described  # type: ignore[method-assign]
