"""Query a served model over TensorFlow Serving's gRPC API.

Needs Python 3.9 or newer and two packages, about 20 MB; neither TensorFlow nor tensorflow-serving-api:

    pip install "grpcio>=1.60" "protobuf>=5"

    python grpc_client.py photo.jpg other.png               # files, if the model takes images or sound
    python grpc_client.py "what a day" "never again"        # sentences, if it takes text
    cat sentences.txt | python grpc_client.py -             # one sentence per line
    python grpc_client.py --address SERVER:8500 --json photo.jpg > answers.jsonl

Prints one line per input: its name, the label, the probability. An input that fails is reported on stderr without
affecting the others; the exit code is then 1. The connection is not encrypted."""

from __future__ import annotations

import argparse
import base64
import json
import os
import struct
import sys
import time

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its messages are returned as errors as well

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as error:
    sys.exit(f'grpc_client.py: {error}. Type: pip install "grpcio>=1.60" "protobuf>=5"; client.py needs no package')

MODEL = ""
KINDS = ("image", "audio", "text")  # inputs that this client can fill
FILLABLE = [[(kind, "DT_STRING")] for kind in KINDS]
BATCH_BYTES = 16 * 2**20  # many servers refuse requests larger than some tens of MB
PAUSES = (0.5, 1.0, 2.0)  # seconds before each retry
# Codes that one input may cause; after any other the next request would fail too.
ABOUT_THE_INPUTS = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL", "OUT_OF_RANGE")

# The parts of the messages in tensorflow_serving/apis/*.proto and tensorflow/core/*/*.proto that this client needs:
# the fields of each message, with their numbers and types.
MESSAGES = {
    "Int64Value": {"value": (1, "int64")},
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, "Int64Value"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "Dim": {"size": (1, "int64")},
    "TensorShapeProto": {"dim": (2, "repeated Dim")},
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShapeProto"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "repeated float"),
        "double_val": (6, "repeated double"),
        "int_val": (7, "repeated int32"),
        "string_val": (8, "repeated bytes"),
        "int64_val": (10, "repeated int64"),
        "bool_val": (11, "repeated bool"),
        "uint32_val": (16, "repeated uint32"),
        "uint64_val": (17, "repeated uint64"),
    },
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "map TensorProto")},
    "PredictResponse": {"outputs": (1, "map TensorProto")},
    "TensorInfo": {"dtype": (2, "int32")},
    "SignatureDef": {"inputs": (1, "map TensorInfo"), "outputs": (2, "map TensorInfo")},
    "SignatureDefMap": {"signature_def": (1, "map SignatureDef")},
    "Any": {"value": (2, "bytes")},
    "GetModelMetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "repeated string")},
    "GetModelMetadataResponse": {"metadata": (2, "map Any")},
    "GetModelStatusRequest": {"model_spec": (1, "ModelSpec")},
    "ModelVersionStatus": {"version": (1, "int64"), "state": (2, "int32")},
    "GetModelStatusResponse": {"model_version_status": (1, "repeated ModelVersionStatus")},
}
PREDICTION, STATUS = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
DT_STRING, AVAILABLE = 7, 30
# Per numeric type: its name, the field of the tensor for its values, and its format letter in struct.
NUMBERS = {
    1: ("DT_FLOAT", "float_val", "f"),
    2: ("DT_DOUBLE", "double_val", "d"),
    3: ("DT_INT32", "int_val", "i"),
    4: ("DT_UINT8", "int_val", "B"),
    5: ("DT_INT16", "int_val", "h"),
    6: ("DT_INT8", "int_val", "b"),
    9: ("DT_INT64", "int64_val", "q"),
    10: ("DT_BOOL", "bool_val", "?"),
    17: ("DT_UINT16", "int_val", "H"),
    22: ("DT_UINT32", "uint32_val", "I"),
    23: ("DT_UINT64", "uint64_val", "Q"),
}


class Trouble(Exception):
    """No further input can be answered; the message says why, and what to do."""


def main(arguments=None) -> int:
    """Print one line per input; return 1 where any failed."""
    options = parse(arguments)
    for stream in (sys.stdout, sys.stderr):  # file names may hold characters that the terminal's encoding lacks
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    failed = 0
    try:
        with connect(options.address) as channel:
            kind = look_up_signature(channel, options)
            for batch in batches(read(options.inputs, kind), options.batch):
                for name, answer, problem in answer_batch(channel, options, kind, batch):
                    if problem:
                        failed += 1
                        print(f"{name}: {problem}", file=sys.stderr, flush=True)
                    elif options.json:
                        print(json.dumps({"input": name, **answer}, ensure_ascii=False), flush=True)
                    else:
                        print(f"{short(name, kind)}  {in_words(answer)}", flush=True)
    except Trouble as trouble:
        print(f"grpc_client.py: {trouble}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough; Python would raise again at its final flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if failed else 0


def parse(arguments=None) -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="grpc_client.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_TEXT", help="- reads sentences from stdin, one per line")
    parser.add_argument("--address", default="127.0.0.1:8500", help="HOST:PORT of gRPC (default: %(default)s)")
    parser.add_argument("--model", default=MODEL, help=f"name on the server (default: {MODEL or 'none'})")
    parser.add_argument("--version", type=int, help="number of the version (default: the newest)")
    parser.add_argument("--label", help="label of the version, such as stable; instead of --version")
    parser.add_argument("--signature", default="serving_default", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print all outputs, one JSON object per line")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for an answer (default: 60)")
    parser.add_argument("--batch", type=int, default=8, help="inputs per request (default: 8)")
    options = parser.parse_args(arguments)
    if "/" in options.address or not options.address.rpartition(":")[2].isdecimal():
        parser.error(f"--address is {options.address!r}; it must be HOST:PORT, such as 127.0.0.1:8500")
    if options.version is not None and options.label:
        parser.error("--version and --label both name the version; use one of them")
    if options.version is not None and options.version < 0:
        parser.error(f"--version is {options.version}; it must be 0 or more")
    if not options.timeout > 0:
        parser.error(f"--timeout is {options.timeout:g}; it must be more than 0 seconds")
    if options.batch < 1:
        parser.error(f"--batch is {options.batch}; it must be 1 or more")
    if not options.model:
        parser.error("the name of the model is required: --model NAME")
    return options


def read(arguments, kind):
    """Yield (name, bytes to send, reason why it cannot be read) for each input.

    Args:
        arguments: files, or sentences; "-" is every line of stdin, for text.
        kind: "image" and "audio" are files, "text" are sentences.
    """
    for argument in arguments:
        if kind != "text":
            try:
                with open(argument, "rb") as file:
                    yield argument, file.read(), ""
            except OSError as error:
                yield argument, None, error.strerror or str(error)
        elif argument != "-":
            yield argument, argument.encode("utf-8", "surrogateescape"), ""  # invalid UTF-8 is sent as typed
        else:
            for number, line in enumerate(sys.stdin.buffer, 1):
                try:
                    text = line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield f"line {number}", None, f"is not UTF-8: {error.reason} at byte {error.start}"
                    continue
                if text.strip():
                    yield text, text.encode("utf-8"), ""


def batches(items, most):
    """Yield lists of at most so many items, or fewer where they are large."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item[1] or b"")
        if len(batch) == most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def connect(address):
    """Return a channel to a server; nothing is sent before the first request."""
    options = [("grpc.max_receive_message_length", -1)]
    if address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]"):
        # A proxy of the environment cannot reach a server on this machine.
        options.append(("grpc.enable_http_proxy", 0))
    return grpc.insecure_channel(address, options=options)


def look_up_signature(channel, options) -> str:
    """Return the name of the signature's input.

    Raises:
        Trouble: no server, no such model or signature, or one that takes other inputs than files or sentences.
    """
    request = PROTO["GetModelMetadataRequest"](metadata_field=["signature_def"])
    fill_spec(request.model_spec, options)
    code, said = call(channel, options, PREDICTION, "GetModelMetadata", request)
    if code != "OK":
        raise Trouble(why_no_model(channel, options, code, said))
    signatures = PROTO["SignatureDefMap"].FromString(said.metadata["signature_def"].value).signature_def
    inputs = {
        name: {key: type_name(info.dtype) for key, info in one.inputs.items()} for name, one in signatures.items()
    }
    theirs = sorted(name for name in inputs if not name.startswith("__"))  # those are the loader's own
    usable = [name for name in theirs if list(inputs[name].items()) in FILLABLE]
    best = "serving_default" if "serving_default" in usable else next(iter(usable), "")
    advice = f" Type --signature {best}" if usable else ""
    if options.signature not in theirs:
        raise Trouble(
            f"the model {options.model!r} has no signature {options.signature!r}; it has: {', '.join(theirs)}.{advice}"
        )
    if options.signature not in usable:
        takes = ", ".join(f"{name} ({dtype})" for name, dtype in sorted(inputs[options.signature].items()))
        raise Trouble(
            f"the signature {options.signature!r} takes {takes}; this client can fill one input of DT_STRING named "
            f"{', '.join(KINDS)}.{advice}"
        )
    return next(iter(inputs[options.signature]))


def type_name(dtype) -> str:
    """Return TensorFlow's name of a type."""
    return "DT_STRING" if dtype == DT_STRING else NUMBERS.get(dtype, (f"type {dtype}",))[0]


def why_no_model(channel, options, code, said) -> str:
    """Return what the server has instead of the requested model or version."""
    if code != "NOT_FOUND":
        return f"{options.address} answers {code}: {said}"
    request = PROTO["GetModelStatusRequest"]()
    request.model_spec.name = options.model
    code, found = call(channel, options, STATUS, "GetModelStatus", request)
    if code == "OK":
        there = ", ".join(str(one.version) for one in found.model_version_status if one.state == AVAILABLE)
        versions = f"The model {options.model!r} has the versions: {there or 'none available'}."
        return f"{options.address} answers NOT_FOUND: {said}. {versions}"
    return f"{options.address} has no model {options.model!r}: {found} Name another one with --model."


def answer_batch(channel, options, kind, batch):
    """Return (name, outputs, problem) for each item of a batch, in order; the problem is "" where there is none."""
    answered = iter(predict(channel, options, kind, [sent for _, sent, problem in batch if not problem]))
    return [(name, None, problem) if problem else (name, *next(answered)) for name, _, problem in batch]


def predict(channel, options, kind, contents):
    """Return (outputs, problem) for each content. Contents of a refused batch are sent again one by one.

    Raises:
        Trouble: the server cannot answer anything now.
    """
    if not contents:
        return []
    request = PROTO["PredictRequest"]()
    fill_spec(request.model_spec, options)
    request.model_spec.signature_name = options.signature
    tensor = request.inputs[kind]
    tensor.dtype = DT_STRING
    tensor.tensor_shape.dim.add().size = len(contents)
    tensor.string_val.extend(contents)
    code, said = call(channel, options, PREDICTION, "Predict", request)
    if code == "OK":
        rows = {name: rows_of(name, output, len(contents)) for name, output in sorted(said.outputs.items())}
        return [({name: values[place] for name, values in rows.items()}, "") for place in range(len(contents))]
    if code not in ABOUT_THE_INPUTS:
        raise Trouble(f"{options.address} answers {code}: {said}")
    if len(contents) == 1:
        return [(None, said)]
    return [predict(channel, options, kind, [one])[0] for one in contents]


def fill_spec(spec, options):
    """Set the model and the version of a request."""
    spec.name = options.model
    if options.version is not None:
        spec.version.value = options.version
    elif options.label:
        spec.version_label = options.label


def call(channel, options, service, method, request):
    """Return ("OK", the answer) or (code, message); transient failures are retried.

    Raises:
        Trouble: there is no server.
    """
    ask = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=PROTO[f"{method}Response"].FromString,
    )
    for pause in (*PAUSES, None):
        try:
            return "OK", ask(request, timeout=options.timeout)
        except grpc.RpcError as error:
            code, details = error.code().name, " ".join((error.details() or "").split())
        refused = "refused" in details.lower()
        if code != "UNAVAILABLE" or refused or pause is None:
            break
        time.sleep(pause)
    if refused:
        raise Trouble(
            f"no server listens at {options.address}. Start one: `python -m recipes serve RUN`, or TensorFlow Serving "
            f"with docker (see model_card.md); or name another one with --address"
        )
    if code == "DEADLINE_EXCEEDED":
        raise Trouble(
            f"{options.address} did not answer within {options.timeout:g} seconds. Wait longer with --timeout"
        )
    if code == "UNAVAILABLE":
        raise Trouble(
            f"{options.address} cannot be reached: {details}. Is this the port of gRPC (usually 8500) and not of REST "
            f"(8501)? See --address"
        )
    return code, details


def rows_of(name, tensor, count):
    """Return one value, or nested lists of values, for each input.

    Raises:
        Trouble: the output has another number of rows, or a type that this client cannot read.
    """
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    if shape[:1] != [count]:
        raise Trouble(f"the output {name!r} has the shape {shape}; {count} inputs were sent")
    return nested(values_of(name, tensor, shape), shape)


def values_of(name, tensor, shape):
    """Return all values of a tensor in one list, as the REST API would write them in JSON."""
    total = 1
    for size in shape:
        total *= size
    if tensor.dtype == DT_STRING:
        if name.endswith("_bytes"):
            return [{"b64": base64.b64encode(value).decode("ascii")} for value in tensor.string_val]
        return [value.decode("utf-8", "replace") for value in tensor.string_val]
    if tensor.dtype not in NUMBERS:
        raise Trouble(f"the output {name!r} is of {type_name(tensor.dtype)}, which this client cannot read")
    _, field, letter = NUMBERS[tensor.dtype]
    if tensor.tensor_content:
        values = list(struct.unpack(f"<{total}{letter}", tensor.tensor_content))
    else:
        values = list(getattr(tensor, field))
        values += (values[-1:] or [0]) * (total - len(values))  # the last value stands for all that follow
    return [shortest(value) for value in values] if letter == "f" else values


def shortest(value):
    """Return the number with the fewest digits that is the same float32: 0.1, not 0.10000000149011612."""
    for digits in (6, 7, 8):
        rounded = float(f"{value:.{digits}g}")
        if struct.pack("<f", rounded) == struct.pack("<f", value):
            return rounded
    return float(f"{value:.9g}")


def nested(values, shape):
    """Return the values as lists of lists, with the given shape."""
    if len(shape) == 1:
        return values
    size = len(values) // shape[0] if shape[0] else 0
    return [nested(values[row * size : (row + 1) * size], shape[1:]) for row in range(shape[0])]


def short(name, kind) -> str:
    """Return the name of an input on one line; a long sentence is shortened."""
    name = " ".join(name.splitlines())
    return name if kind != "text" or len(name) <= 60 else name[:59] + "…"


def in_words(outputs) -> str:
    """Return the outputs for one input as readable text."""
    try:
        if "label" in outputs:
            return f"{outputs['label']}" + (
                f"  {max(outputs['probabilities']):.4f}" if "probabilities" in outputs else ""
            )
        if "text" in outputs:
            return f"{outputs['text']}" + (f"  {outputs['confidence']:.4f}" if "confidence" in outputs else "")
        if outputs.keys() >= {"boxes", "labels", "scores"}:
            return boxes_in_words(outputs)
    except (TypeError, ValueError, IndexError):
        pass  # known names with unexpected values
    return json.dumps(outputs, ensure_ascii=False, separators=(",", ":"))


def boxes_in_words(outputs) -> str:
    """Return the detections of one image: label, score and edges of each box."""
    count = int(outputs.get("count", len(outputs["scores"])))
    found = [
        f"; {outputs['labels'][place]} {outputs['scores'][place]:.2f} "
        f"[{' '.join(f'{edge:.4g}' for edge in outputs['boxes'][place])}]"
        for place in range(count)
    ]
    return f"{count} found" + "".join(found)


def build_messages():
    """Return a class for each message in MESSAGES, as protoc would generate it from the .proto files."""
    file = descriptor_pb2.FileDescriptorProto(name="client.proto", package="client", syntax="proto3")
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            how, _, kind = kind.rpartition(" ")
            field = described.field.add(name=name, number=number, label="LABEL_REPEATED" if how else "LABEL_OPTIONAL")
            if how == "map":  # on the wire a list of entries, each with a key and a value
                kind, value = f"{message}.{name.title().replace('_', '')}Entry", kind
                entry = described.nested_type.add(name=kind.rpartition(".")[2])
                entry.options.map_entry = True
                set_type(entry.field.add(name="key", number=1, label="LABEL_OPTIONAL"), "string")
                set_type(entry.field.add(name="value", number=2, label="LABEL_OPTIONAL"), value)
            set_type(field, kind)
    pool = descriptor_pool.DescriptorPool()  # not the default one, where TensorFlow's messages may be
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"client.{name}")) for name in MESSAGES}


def set_type(field, kind):
    """Set the type of a field description."""
    if kind[0].isupper():
        field.type, field.type_name = field.TYPE_MESSAGE, f".client.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")


PROTO = build_messages()

if __name__ == "__main__":
    sys.exit(main())
