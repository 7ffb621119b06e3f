"""Errors of a server: a gRPC code, its HTTP status, and a message."""

from __future__ import annotations

import re

import grpc
import tensorflow as tf

# As TensorFlow Serving has it: ToHTTPStatusCode in tensorflow_serving/model_servers/http_server.cc.
HTTP_STATUS = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
_CODE_OF_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_NOT_FOR_USERS = re.compile(r"^\s*(Graph execution error|Detected at node|<stack traces|\]\]|$)|^\s*\[\[|\[Op:")


class Refusal(Exception):
    """A request that gets an error instead of an answer.

    Args:
        code: of gRPC.
        message: what is wrong with the request, and what is allowed.
        http_status: where HTTP has a status that gRPC lacks (too slow, too large); else that of the code.
    """

    def __init__(self, code: grpc.StatusCode, message: str, http_status: int | None = None):
        super().__init__(message)
        self.code, self.message = code, message
        self.http_status = http_status or HTTP_STATUS[code]


def invalid(message: str) -> Refusal:
    """Return the refusal of an invalid request."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def from_tensorflow(error: tf.errors.OpError) -> Refusal:
    """Return the refusal for an error of TensorFlow in the graph, with its code and without its stack traces."""
    lines = [line for line in error.message.splitlines() if not _NOT_FOR_USERS.search(line)]
    reason = lines[0].rpartition("}}")[2].strip() or lines[0].strip() if lines else error.message.strip()
    return Refusal(_CODE_OF_NUMBER.get(error.error_code, grpc.StatusCode.UNKNOWN), reason or type(error).__name__)
