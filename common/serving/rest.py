"""TensorFlow Serving's REST API: https://www.tensorflow.org/tfx/serving/api_rest."""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import grpc
from fastapi import FastAPI, Request, Response
from google.protobuf.json_format import MessageToDict

from common.serving import examples, json_tensors, statuses
from common.serving.models import Models
from common.serving.refusals import Refusal, invalid
from common.serving.servables import Servable

# What kPredictionApiGegex and kModelStatusApiRegex of tensorflow_serving/model_servers/http_rest_api_util.cc match.
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_ASK = re.compile(_MODEL + r":(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_LOOK = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)
_LARGEST_VERSION = 2**63 - 1
_DRAINED = 8  # times the largest body are read and discarded before a client gets the error that it sends too much


@dataclass(frozen=True)
class Limits:
    """Limits of requests."""

    body_bytes: int = 32 * 2**20
    """Maximum size of a request."""
    header_seconds: float = 10.0
    """Maximum time for the headers of a request to arrive."""
    request_seconds: float = 30.0
    """Maximum time for its body to arrive."""


@dataclass
class Call:
    """A request, for logs and metrics."""

    model: str = ""
    method: str = ""


def create_app(models: Models, limits: Limits, threads: ThreadPoolExecutor) -> FastAPI:
    """Return the web application that serves models.

    Args:
        models: loaded.
        limits: of requests.
        threads: the models run in these, so that slow requests do not block others.
    """
    app = FastAPI(title="local stand-in for TensorFlow Serving", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = models.metrics

    @app.get("/metrics")
    def read_metrics() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/")
    def about() -> dict:
        return {
            "server": "a local stand-in for TensorFlow Serving, for development",
            "models": {name: f"/v1/models/{name}" for name in models.configs},
        }

    # One route for all: the patterns of the real server do not fit a router.
    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    async def answer(request: Request) -> Response:
        path = request.scope.get("raw_path", request.url.path.encode()).decode("ascii", "replace")
        call, headers = Call(), {}
        began = time.perf_counter()
        try:
            body = await _read_body(request, limits)
            began = time.perf_counter()
            work = asyncio.get_running_loop().run_in_executor(
                threads, _answer, models, request.method, path, body, call
            )
            status, content = 200, await work
        except Refusal as refusal:
            status, content = refusal.http_status, json.dumps({"error": refusal.message}).encode()
            if status in (408, 413):
                headers["Connection"] = "close"  # the rest of the request would be read as the next one
        seconds = time.perf_counter() - began
        if call.method:
            known = call.model if call.model in models.configs else ""  # a metric per guessed name would be a leak
            metrics.requests.labels(known, call.method, "rest", str(status)).inc()
            metrics.seconds.labels(known, call.method, "rest").observe(seconds)
        return Response(content, status, headers, media_type="application/json")

    return app


async def _read_body(request: Request, limits: Limits) -> bytes:
    """Read a request to its end, within the limits of size and time.

    Raises:
        Refusal: it is too large or too slow.
    """
    body, seen = bytearray(), 0
    try:
        async with asyncio.timeout(limits.request_seconds):
            async for chunk in request.stream():
                seen += len(chunk)
                if seen <= limits.body_bytes:
                    body += chunk
                elif seen > _DRAINED * limits.body_bytes:
                    break  # a client that sends everything before reading gets a broken connection
    except TimeoutError:
        raise Refusal(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"The request did not arrive within {limits.request_seconds:g} seconds; {seen} bytes were received.",
            http_status=408,
        ) from None
    if seen > limits.body_bytes:
        raise _too_large(seen, limits)
    if request.headers.get("content-encoding", "").lower() == "gzip":
        return _unzip(bytes(body), limits)
    return bytes(body)


def _too_large(seen: int, limits: Limits) -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"The request has {seen / 2**20:.1f} MiB or more; {limits.body_bytes / 2**20:g} MiB are allowed. Send fewer or "
        f"smaller instances, or start the server with a larger --max-request-mb.",
        http_status=413,
    )


def _unzip(body: bytes, limits: Limits) -> bytes:
    """Decompress a gzip body, up to the limit."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = unpacker.decompress(body, limits.body_bytes)
    except zlib.error as error:
        raise invalid(f"The request declares gzip, but is not gzip: {error}") from None
    if unpacker.unconsumed_tail:
        raise _too_large(limits.body_bytes, limits)
    if not unpacker.eof:
        raise invalid("The gzip data of the request is incomplete.")
    return content


def _answer(models: Models, http_method: str, path: str, body: bytes, call: Call) -> bytes:
    """Answer one request, in a thread of its own.

    Raises:
        Refusal: it cannot be answered.
    """
    if not path.lower().startswith("/v1/"):
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            f"Nothing is served at {path}. Try /v1/models/{next(iter(models.configs))}, /metrics",
        )
    if http_method == "POST" and (match := _ASK.fullmatch(path)):
        call.method = match["method"].lower()
        return _ask(models, call, match, body)
    if http_method == "GET" and (match := _LOOK.fullmatch(path)):
        call.method = "metadata" if match["metadata"] else "status"
        return _look(models, call, match)
    if http_method == "GET" and path.lower().rstrip("/") == "/v1/models":
        raise invalid(f"Missing model name in request. Available models: {', '.join(models.configs)}.")
    raise invalid(f"Malformed request: {http_method} {path}")


def _which(match: re.Match) -> tuple[str, int | None, str]:
    """Return name, version and label of the model that a path names."""
    version = int(match["version"]) if match["version"] else None
    if version is not None and version > _LARGEST_VERSION:
        raise invalid(f"Failed to convert version: {match['version']} to numeric.")
    return unquote(match["name"]), version, unquote(match["label"] or "")


def _ask(models: Models, call: Call, match: re.Match, body: bytes) -> bytes:
    name, version, label = _which(match)
    call.model = name
    try:
        content = json_tensors.parse_json(body)
        signature = json_tensors.signature_name(content)
        with models.lend(name, version, label) as servable:
            return _METHODS[call.method](servable, signature, content)
    except RecursionError:
        raise invalid("JSON Parse error: Invalid value. (nested too deeply)") from None


def _predict(servable: Servable, signature_name: str, content: Mapping) -> bytes:
    signature = servable.signature(signature_name)
    inputs, as_instances = json_tensors.tensors_of_request(content, signature.dtypes)
    return json_tensors.answer_to_json(servable.predict(signature, inputs), as_instances)


def _classify(servable: Servable, signature_name: str, content: Mapping) -> bytes:
    result = examples.classify(servable, signature_name, examples.input_of_request(content, "classify"))
    return json_tensors.to_json({"results": examples.classes_as_lists(result)})


def _regress(servable: Servable, signature_name: str, content: Mapping) -> bytes:
    result = examples.regress(servable, signature_name, examples.input_of_request(content, "regress"))
    return json_tensors.to_json({"results": examples.values_as_list(result)})


_METHODS = {"predict": _predict, "classify": _classify, "regress": _regress}


def _look(models: Models, call: Call, match: re.Match) -> bytes:
    name, version, label = _which(match)
    call.model = name
    if not match["metadata"]:
        return _as_json(statuses.status_response(models.statuses(name, version, label)))
    with models.lend(name, version, label) as servable:
        spec = {"name": name, "signature_name": "", "version": str(servable.version)}
        definitions = _as_dict(statuses.signatures(servable))
    return json.dumps({"model_spec": spec, "metadata": {"signature_def": definitions}}, indent=1).encode()


def _as_dict(message) -> dict:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _as_json(message) -> bytes:
    return json.dumps(_as_dict(message), indent=1).encode()
