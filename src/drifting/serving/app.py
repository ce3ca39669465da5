"""The service: /sample, and what operating it needs."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drifting import __version__
from drifting.errors import InputError, reason
from drifting.sampling import Sampler
from drifting.serving.batching import Batcher
from drifting.serving.formats import MEDIA_TYPES, check_format, encode, formats_of
from drifting.serving.limits import Limits, RefusalError
from drifting.serving.metrics import Metrics
from drifting.serving.questions import OBJECT, Points, Problem, Questions

_log = logging.getLogger(__name__)

_REFUSALS = {
    400: "The body cannot be read.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "A parameter does not fit.",
    429: "Too many requests are waiting; send this one again later.",
    500: "The samples could not be made.",
    503: "The service is ending, or the samples took too long.",
}


class Health(BaseModel):
    """The state of the service."""

    status: Literal["ok"]
    requests_in_hand: int


class About(BaseModel):
    """What the service makes."""

    name: str
    version: str
    sample_shape: list[int]
    formats: list[str]
    max_samples: int
    num_classes: int | None
    class_names: list[str] | None
    guided: bool


@dataclass(frozen=True)
class _Service:
    """The parts of a service that its routes share."""

    name: str
    sampler: Sampler
    limits: Limits
    shape: tuple[int, ...]
    questions: Questions
    batcher: Batcher
    metrics: Metrics

    async def answer(self, question: Any) -> Response:
        """Return the samples that a client asks for.

        Raises:
            InputError: if a parameter does not fit.
            RefusalError: if the samples are not made.
        """
        check_format(question.format, self.shape, question.num_samples)
        asked = {name: getattr(question, name) for name in ("seed", "labels", "guidance_scale", "noise_scale")}
        request = self.sampler.request(question.num_samples, **asked)
        with self.batcher.place():
            future = self.batcher.submit(request)
            try:
                samples = await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
                to_json = JSONResponse(None).render
                content, headers = await run_in_threadpool(encode, question.format, self.sampler, samples, request, to_json)
            except (asyncio.TimeoutError, TimeoutError):
                taken = f"the samples were not made within {self.limits.timeout:g} s"
                raise RefusalError(503, f"{taken}: ask for fewer, or send the request again later", 5) from None
            except (RefusalError, InputError):
                raise
            except Exception as error:  # whatever the generator raises, or the form of its samples
                raise RefusalError(500, f"the generator failed ({reason(error)}): see the log of the service") from error
        return Response(content, media_type=MEDIA_TYPES[question.format], headers=headers)


def build_app(sampler: Sampler, limits: Limits | None = None, *, name: str = "drifting") -> FastAPI:
    """Return the service of a generator as an ASGI application. A first sample is made here.

    Args:
        sampler: a run, or a generator of the release.
        limits: limits of the service.
        name: what is served, for its description.

    Raises:
        InputError: if the first sample is not finite.
    """
    limits = limits or Limits()
    make = sampler.one_pass()
    try:
        first = make([(sampler.request(1), [0])])
    except FloatingPointError:
        raise InputError(f"run is '{name}', whose samples are not finite: name another one, or train it again") from None
    shape = tuple(first.shape[1:])
    most = limits.samples_of(shape, first.element_size())
    classes = sampler.generator.num_classes
    questions = Questions(formats_of(shape), most, sampler.class_names, classes, bool(sampler.generator.guided))
    metrics = Metrics(lambda: batcher.in_hand)
    batcher = Batcher(make, batch_size=sampler.batch_size, max_waiting=limits.max_waiting, watch=metrics.pass_made)
    service = _Service(name, sampler, limits, shape, questions, batcher, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.open()
        yield
        await run_in_threadpool(batcher.close)

    app = FastAPI(
        title=f"drifting: {name}",
        version=__version__,
        description="Samples of a generator that was trained by a drift field: one forward pass each.",
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    _add_handlers(app, questions)
    _add_samples(app, service)
    _add_state(app, service)
    app.add_middleware(_Gate, limits=limits, metrics=metrics, paths=tuple(app.openapi()["paths"]))
    app.state.batcher = batcher
    return app


def _add_samples(app: FastAPI, service: _Service) -> None:
    query, body = service.questions.models()
    content: dict[str, Any] = {}
    for each in service.questions.formats:
        schema = Points.model_json_schema() if each == "json" else {"type": "string", "format": "binary"}
        content[MEDIA_TYPES[each]] = {"schema": schema}
    answers: dict[int | str, Any] = {status: {"model": Problem, "description": text} for status, text in _REFUSALS.items()}
    answers[200] = {"description": "The samples.", "content": content}
    options: dict[str, Any] = {"responses": answers, "response_class": Response, "tags": ["samples"]}

    @app.get("/sample", summary="Make samples", operation_id="get_samples", **options)
    async def get_samples(question: Annotated[query, Query()]) -> Response:
        """Return samples; the parameters are in the query. Repeat `labels` for several classes."""
        return await service.answer(question)

    @app.post("/sample", summary="Make samples", operation_id="post_samples", **options)
    async def post_samples(request: Request, question: Annotated[body | None, Body()] = None) -> Response:
        """Return samples; the parameters are in a JSON object."""
        if request.query_params:
            raise RefusalError(422, "parameters are in the query: put those of a POST request into its body, or use GET")
        return await service.answer(question or body())


def _add_state(app: FastAPI, service: _Service) -> None:
    questions = service.questions

    @app.head("/", include_in_schema=False)
    @app.get("/", summary="Say what is served", tags=["service"])
    async def about() -> About:
        """Return the shape of the samples, the classes and the limits."""
        return About(name=service.name, version=__version__, sample_shape=list(service.shape), **_lists(asdict(questions)))

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Say whether the service works", tags=["service"], responses={503: {"model": Problem}})
    async def health() -> Health:
        """Return the number of requests in hand, or 503 if the service is ending."""
        if not service.batcher.works:
            raise RefusalError(503, "the service is ending: send no more requests", 5)
        return Health(status="ok", requests_in_hand=service.batcher.in_hand)

    text = {200: {"description": "The figures.", "content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", summary="Figures for Prometheus", tags=["service"], response_class=Response, responses={**text})
    async def metrics() -> Response:
        """Return counts of requests, passes and samples, times, and the memory of the process."""
        content, media_type = service.metrics.page()
        return Response(content, media_type=media_type)


def _lists(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _add_handlers(app: FastAPI, questions: Questions) -> None:
    def refuse(status: int, sentence: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"detail": sentence}, status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def unfit(_: Request, error: RequestValidationError) -> Response:
        return refuse(422, questions.sentence(error.errors()[0]))

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> Response:
        return refuse(422, str(error))

    @app.exception_handler(RefusalError)
    async def refused(_: Request, error: RefusalError) -> Response:
        if error.__cause__ is not None:
            _log.error(error.sentence, exc_info=error.__cause__)
        return refuse(error.status, error.sentence, error.headers)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        sentences = {
            400: f"the body cannot be read: {OBJECT}",
            404: "there is nothing at this address: see /openapi.json",
            405: f"{request.method} is not possible here: see /openapi.json",
        }
        return refuse(error.status_code, sentences.get(error.status_code, error.detail), error.headers)


class _Gate:
    """Bounds the body of every request in size and time, and counts the answers.

    Args:
        app: the application.
        limits: limits of the service.
        metrics: where answers are counted.
        paths: paths that are counted by name.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, paths: Sequence[str]) -> None:
        self._app, self._limits, self._metrics, self._paths = app, limits, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, path = time.perf_counter(), scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(path, message["status"], time.perf_counter() - start)
            await send(message)

        await self._app(scope, self._bounded(receive), counted)

    def _bounded(self, receive: Receive) -> Receive:
        arrived, complete, deadline = 0, False, math.inf

        async def bounded() -> Message:
            nonlocal arrived, complete, deadline
            if complete:  # what follows is the end of the connection
                return await receive()
            deadline = min(deadline, time.perf_counter() + self._limits.timeout)  # that of the first part is that of all
            try:
                message = await asyncio.wait_for(receive(), deadline - time.perf_counter())
            except (asyncio.TimeoutError, TimeoutError):
                sentence = f"the body did not arrive within {self._limits.timeout:g} s: send it at once"
                raise HTTPException(408, sentence) from None
            arrived += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if arrived > self._limits.max_body:
                raise HTTPException(413, f"the body has more than {self._limits.max_body} bytes, the limit: send a smaller one")
            return message

        return bounded
