"""TensorFlow Serving's gRPC API, over the official stubs of tensorflow-serving-api."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.apis.classification_pb2 import ClassificationResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictResponse
from tensorflow_serving.apis.regression_pb2 import RegressionResponse

from common.serving import examples, statuses
from common.serving.models import Models
from common.serving.refusals import Refusal, invalid
from common.serving.servables import DEFAULT_SIGNATURE, Servable


def create_grpc_server(models: Models, threads: ThreadPoolExecutor, largest_message: int) -> grpc.Server:
    """Return a server for the gRPC API, not yet bound to a port.

    Args:
        models: loaded.
        threads: the models run in these.
        largest_message: in bytes; a larger request is refused.
    """
    options = [
        ("grpc.max_receive_message_length", largest_message),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, instead of sharing the requests
    ]
    server = grpc.server(threads, options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Predictions(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelStatus(models), server)
    health_pb2_grpc.add_HealthServicer_to_server(_Health(models), server)
    return server


@contextlib.contextmanager
def _answering(models: Models, context: grpc.ServicerContext, name: str, method: str) -> Iterator[None]:
    """Turn a Refusal inside this block into the status of the call, and count the call."""
    began, code, refusal = time.perf_counter(), grpc.StatusCode.OK, None
    try:
        yield
    except Refusal as problem:
        code, refusal = problem.code, problem
    known = name if name in models.configs else ""
    models.metrics.requests.labels(known, method, "grpc", code.name).inc()
    models.metrics.seconds.labels(known, method, "grpc").observe(time.perf_counter() - began)
    if refusal:
        context.abort(code, refusal.message)


def _which(spec: ModelSpec) -> tuple[str, int | None, str]:
    choice = spec.WhichOneof("version_choice")
    return spec.name, spec.version.value if choice == "version" else None, spec.version_label


def _fill_spec(response, servable: Servable, signature: str) -> None:
    response.model_spec.name, response.model_spec.signature_name = servable.name, signature or DEFAULT_SIGNATURE
    response.model_spec.version.value = servable.version


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: Models):
        self.models = models

    def Predict(self, request, context):
        response = PredictResponse()
        with _answering(self.models, context, request.model_spec.name, "predict"):
            with self.models.lend(*_which(request.model_spec)) as servable:
                name = request.model_spec.signature_name
                signature = servable.signature(name, code=grpc.StatusCode.FAILED_PRECONDITION)
                wanted = _wanted_outputs(request.output_filter, signature.definition.outputs)
                inputs = {key: _array(key, tensor) for key, tensor in request.inputs.items()}
                outputs = servable.predict(signature, inputs)
                _fill_spec(response, servable, name)
                for key in wanted:
                    response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return response

    def Classify(self, request, context):
        return self._ask_about_examples(request, context, "classify", examples.classify, ClassificationResponse())

    def Regress(self, request, context):
        return self._ask_about_examples(request, context, "regress", examples.regress, RegressionResponse())

    def _ask_about_examples(self, request, context, method, ask, response):
        with _answering(self.models, context, request.model_spec.name, method):
            with self.models.lend(*_which(request.model_spec)) as servable:
                name = request.model_spec.signature_name
                response.result.CopyFrom(ask(servable, name, request.input))
                _fill_spec(response, servable, name)
        return response

    def GetModelMetadata(self, request, context):
        with _answering(self.models, context, request.model_spec.name, "metadata"):
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
            unknown = [field for field in request.metadata_field if field != "signature_def"]
            if unknown:
                raise invalid(f"Metadata field {unknown[0]} is not supported; signature_def is.")
            with self.models.lend(*_which(request.model_spec)) as servable:
                return statuses.metadata_response(servable)

    def MultiInference(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "This stand-in has no MultiInference; the real server has.")


class _ModelStatus(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models):
        self.models = models

    def GetModelStatus(self, request, context):
        with _answering(self.models, context, request.model_spec.name, "status"):
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            return statuses.status_response(self.models.statuses(*_which(request.model_spec)))

    def HandleReloadConfigRequest(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "This stand-in reads its configuration at start; restart it.")


class _Health(health_pb2_grpc.HealthServicer):
    """The standard health service: SERVING while each model has an available version."""

    def __init__(self, models: Models):
        self.models = models

    def Check(self, request, context):
        if request.service not in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service}.")
        return self._now()

    def Watch(self, request, context):
        last = None
        while context.is_active():
            now = self._now()
            if now != last:
                yield now
                last = now
            time.sleep(1)

    def _now(self) -> health_pb2.HealthCheckResponse:
        serving = health_pb2.HealthCheckResponse.ServingStatus
        return health_pb2.HealthCheckResponse(
            status=serving.SERVING if self.models.all_available else serving.NOT_SERVING
        )


def _array(name: str, tensor):
    try:
        return tf.make_ndarray(tensor)
    except Exception as error:
        raise invalid(f"Input {name!r} is not a valid tensor: {error}. Its values must fill its shape.") from None


def _wanted_outputs(wanted, outputs) -> list[str]:
    for name in wanted:
        if name not in outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{{{','.join(sorted(outputs))}}}."
            )
    if len(set(wanted)) < len(wanted):
        raise invalid(f"duplicate output tensor alias: {next(name for name in wanted if list(wanted).count(name) > 1)}")
    return list(wanted) or sorted(outputs)
