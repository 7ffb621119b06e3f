"""Status and metadata of models, in the messages of TensorFlow Serving's gRPC API, which REST writes as JSON."""

from __future__ import annotations

from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataResponse, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse

from common.serving.models import Version
from common.serving.servables import Servable


def status_response(versions: dict[int, Version]) -> GetModelStatusResponse:
    """Return the state of versions of one model."""
    response = GetModelStatusResponse()
    for number, version in versions.items():
        status = response.model_version_status.add()
        status.version, status.state = number, version.state.value
        status.status.error_code, status.status.error_message = version.code.value[0], version.message
    return response


def metadata_response(servable: Servable) -> GetModelMetadataResponse:
    """Return the signatures of a model."""
    response = GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures(servable))
    return response


def signatures(servable: Servable) -> SignatureDefMap:
    """Return the signatures of a model by their names."""
    found = SignatureDefMap()
    for name, signature in servable.signatures.items():
        found.signature_def[name].CopyFrom(signature.definition)
    return found
