"""An exported model behind FastAPI and ONNX Runtime: prediction and explanation from one `run` per request.

    onnxcam export model.onnx --with-class --with-raw -o model.cam.onnx
    pip install fastapi uvicorn
    python fastapi_app.py model.cam.onnx
    curl --data-binary @dog.jpg 'http://127.0.0.1:8000/explain?top=3'
    curl --data-binary @dog.jpg 'http://127.0.0.1:8000/overlay?target=beagle' -o dog.cam.jpg

A model that was not exported is served too, without maps; that is what the overhead is measured against.
"""

import argparse
import base64
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image, UnidentifiedImageError

from onnxcam import OnnxCamError, Picture, Preprocess, load_picture
from onnxcam.errors import PictureError, UsageError
from onnxcam.render import encoded, overlay
from onnxcam.saliency import saliency_maps
from onnxcam.targets import class_number

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 50_000_000
MAX_WAITING = 64
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


class RefusedError(Exception):
    """What a client did wrong, or has to wait for: status, what, and what to do."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.status, self.message, self.hint = status, message, hint


class Model:
    """One session, shared by all threads, and what its file says about pictures, classes and maps."""

    def __init__(self, path: str, settings: Preprocess | None = None, labels: list[str] | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # requests run beside each other; the cores are theirs
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        told = self.session.get_modelmeta().custom_metadata_map
        if settings is None and "onnxcam.preprocess" not in told:
            raise SystemExit(f"{path} does not say how it wants its pictures: give --preprocess FILE.json")
        self.preprocess = settings or Preprocess.from_json(told["onnxcam.preprocess"])
        named = labels or json.loads(told.get("onnxcam.labels", "null"))
        self.labels = tuple(named) if named else None
        self.export = json.loads(told.get("onnxcam.export", "null"))
        self.input = self.session.get_inputs()[0].name
        self.output = self.export["output"] if self.export else self.session.get_outputs()[0].name
        (scores,) = (o for o in self.session.get_outputs() if o.name == self.output)
        self.classes = math.prod(d for d in scores.shape[1:])
        if self.export and not (self.export["names"]["heatmap_class"] and self.export["names"]["heatmap_raw"]):
            raise SystemExit(f"{path}: export it with `--with-class --with-raw`")

    def __call__(self, picture: Picture, target: str | None) -> dict[str, Any]:
        """scores (C,), class_index, and of an exported model heatmap (H, W) and values on the picture (H0, W0)."""
        x, view = self.preprocess(picture)
        if not self.export:
            (scores,) = self.session.run([self.output], {self.input: x})
            return {"scores": scores.reshape(-1), "class_index": int(scores.argmax())}
        names = self.export["names"]
        wanted = [self.output, names["heatmap_class"], names["heatmap"], names["heatmap_raw"]]
        feeds = {self.input: x}
        if names["class_index"]:
            feeds[names["class_index"]] = np.array([class_number(target, self.labels, self.classes)])
        scores, index, heatmap, raw = self.session.run(wanted, feeds)
        (values,) = saliency_maps([raw], [view], self.export["normalize"], threads=1)
        return {
            "scores": scores.reshape(-1), "class_index": int(index[0]), "heatmap": heatmap[0], "values": values,
            "region": view.region,
        }  # fmt: skip


async def body(request: Request) -> bytes:
    """At most MAX_BYTES of it: refused unread where it says so itself, else where more arrive."""
    data, said = bytearray(), request.headers.get("content-length", "")
    too_large = RefusedError(413, f"the picture has more than {MAX_BYTES} bytes", "shrink it first")
    if said.isdigit() and int(said) > MAX_BYTES:
        raise too_large
    async for part in request.stream():
        data += part
        if len(data) > MAX_BYTES:
            raise too_large
    if not data:
        raise RefusedError(400, "no picture", "send its bytes as the request's body")
    return bytes(data)


def decoded(data: bytes) -> Picture:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RefusedError(415, "the body is not a picture", f"send one of {', '.join(FORMATS)}") from error
    if image.width * image.height > MAX_PIXELS:
        raise RefusedError(413, f"the picture has more than {MAX_PIXELS} pixels", "shrink it first")
    return load_picture(image)


def create_app(model: Model, workers: int | None = None) -> FastAPI:
    """The application: `workers` requests run at a time, MAX_WAITING wait, more are told to come back."""
    app = FastAPI(title="onnxcam")
    limiter = CapacityLimiter(workers or os.cpu_count() or 1)

    async def explained(request: Request, work: Callable[[Picture], Response]) -> Response:
        data = await body(request)
        if limiter.statistics().tasks_waiting >= MAX_WAITING:
            raise RefusedError(503, "too many requests wait already", "try again in a second")
        return await to_thread.run_sync(lambda: work(decoded(data)), limiter=limiter)

    def label(index: int) -> str | None:
        return model.labels[index] if model.labels else None

    @app.get("/health")
    def health() -> dict[str, Any]:
        export = model.export or {}
        return {"status": "ok", "method": export.get("method"), "source": export.get("source")}

    @app.post("/explain")
    async def explain(
        request: Request, target: str | None = None, top: int = Query(5, ge=1, le=100), heatmap: bool = True
    ) -> Response:
        def work(picture: Picture) -> Response:
            found = model(picture, target)
            scores, index = found["scores"], found["class_index"]
            best = np.argsort(-scores, kind="stable")[:top]
            answer: dict[str, Any] = {
                "class_index": index,
                "label": label(index),
                "score": float(scores[index]),
                "top": [{"class_index": int(i), "label": label(i), "score": float(scores[i])} for i in best],
            }
            if "heatmap" in found:
                answer["region"] = found["region"]  # x0, y0, x1, y1 of the picture, which the map covers
                answer["is_empty"] = not found["heatmap"].any()  # nothing speaks for the class
                if heatmap:
                    values = found["heatmap"]
                    answer["heatmap"] = {"size": values.shape, "float32": base64.b64encode(values).decode()}
            return JSONResponse(answer)

        return await explained(request, work)

    @app.post("/overlay")
    async def overlay_(
        request: Request,
        target: str | None = None,
        opacity: float = Query(0.5, ge=0, le=1),
        colormap: str = "jet",
        format: Literal["jpeg", "png"] = "jpeg",
    ) -> Response:
        def work(picture: Picture) -> Response:
            found = model(picture, target)
            if "values" not in found:
                raise RefusedError(404, "this model was not exported: it makes no maps", "`onnxcam export` it")
            drawn = overlay(picture.rgb, found["values"], found["region"], colormap, opacity)
            told = {"X-Class-Index": str(found["class_index"])}
            return Response(encoded(drawn, f".{format}"), media_type=f"image/{format}", headers=told)

        return await explained(request, work)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": error.message, "hint": error.hint}, error.status, headers)

    @app.exception_handler(PictureError)
    @app.exception_handler(UsageError)
    async def unfit(_: Request, error: OnnxCamError) -> JSONResponse:
        return JSONResponse({"error": error.message, "hint": error.hint}, 422)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--preprocess", metavar="FILE", help="JSON of onnxcam.Preprocess, where the model does not say")
    parser.add_argument("--labels", metavar="FILE", help="one per line, where the model does not say")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, help="requests run at a time (default: one per core)")
    arguments = parser.parse_args()
    settings = Preprocess.from_json(Path(arguments.preprocess).read_text("utf-8")) if arguments.preprocess else None
    labels = Path(arguments.labels).read_text("utf-8").splitlines() if arguments.labels else None
    app = create_app(Model(arguments.model, settings, labels), arguments.workers)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="info", access_log=False)


if __name__ == "__main__":
    main()
