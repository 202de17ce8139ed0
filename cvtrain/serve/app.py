"""The HTTP application: POST /predict, GET /health, /classes and a page to drop an image on."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from cvtrain import __version__
from cvtrain.classifier import Classifier, Prediction
from cvtrain.config.text import display_text
from cvtrain.serve.batching import Batcher
from cvtrain.serve.body import ClientGone, Limits, RequestError, read_image
from cvtrain.serve.page import PAGE

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

# The page loads nothing from elsewhere, and nobody may put it into a frame.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def build_app(classifier: Classifier, limits: Limits, *, top_k: int, batch_size: int, wait_seconds: float) -> "FastAPI":
    """Return the application that answers with `classifier`.

    Args:
        limits: of bodies.
        top_k: classes of an answer, unless a request has `?top_k=`.
        batch_size: most images that are computed at once.
        wait_seconds: for which the first image of a batch waits for others.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.exceptions import HTTPException

    num_classes = len(classifier.classes)

    def compute(items: list[bytes]) -> list[Prediction]:
        return classifier.predict(items, top_k=num_classes)

    batcher = Batcher(compute, max_items=batch_size, wait_seconds=wait_seconds)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(title="cvtrain", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    def answer(content: Any, status: int = 200, **headers: str) -> Response:
        return JSONResponse(content, status, {**SECURITY_HEADERS, **headers})

    def failure(status: int, message: str) -> Response:
        # The rest of a body that was not taken would be read as the next request.
        more = {"Retry-After": "1"} if status == 503 else {}
        return answer({"error": display_text(message)}, status, Connection="close", **more)

    @app.post("/predict", response_model=None)
    async def predict(request: Request) -> Response:
        count = wanted_classes(request.query_params.get("top_k"), top_k, num_classes)
        with limits.holding() as hold:
            data = await read_image(request, limits, hold)
            prediction = await batcher.submit(data)
        if prediction.error is not None:
            raise RequestError(400, f"the image cannot be read: {prediction.error}")
        best = zip(prediction.classes[:count], prediction.probs[:count], strict=True)
        return answer({"predictions": [{"class": name, "probability": prob} for name, prob in best]})

    @app.get("/health", response_model=None)
    async def health() -> Response:
        size, device = classifier.image_size, str(classifier.device)
        return answer(
            {"status": "ok", "version": __version__, "num_classes": num_classes, "image_size": size, "device": device}
        )

    @app.get("/classes", response_model=None)
    async def classes() -> Response:
        return answer({"classes": list(classifier.classes)})

    @app.get("/", response_model=None)
    async def page() -> Response:
        return HTMLResponse(PAGE, headers=SECURITY_HEADERS)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return failure(error.status, error.message)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return failure(400, "the client has gone")  # nobody reads it

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return failure(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return failure(500, "the image could not be classified; the server's log says why")

    return app


def wanted_classes(text: str | None, default: int, num_classes: int) -> int:
    """Return how many classes an answer has, from the text of `?top_k=`; at most all.

    Raises:
        RequestError: it is no number from 1.
    """
    if text is None:
        return min(default, num_classes)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise RequestError(400, "top_k must be a whole number from 1")
    return min(int(text), num_classes)
