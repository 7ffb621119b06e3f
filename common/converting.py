"""Convert a SavedModel for phones and small servers: LiteRT (float or 8-bit) and ONNX, and the proof of each.

The graph of the `tensors` signature is converted, from pixels to the probabilities of a classifier or to the candidates
of a detector. These runtimes have no image decoder and no strings: the application decodes and resizes images and maps
class numbers to names, as described in the README.md beside the file. The `Converter` of a recipe defines its outputs,
their proof and the usage of a converted model.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import tensorflow as tf

from common.errors import UserError, first_line
from common.files import write_atomically

ONNX_OPSET = 18

PixelFunction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Converter:
    """How `python -m recipes convert` converts the exports of a recipe.

    Attributes:
        gives: the output of the signature `tensors` that is converted.
        load_data: (settings of the run, folder for files to write, size) -> the data of the run, with `train`, `test`,
            `class_names` and `counts()`.
        resize: settings of the run -> how images are resized to the model's size, in one word.
        calibrate: (data, seed) -> the number of training images that calibrate an 8-bit model,
            and a function that streams them, one per batch; None where no 8-bit model is offered.
        prove: (the SavedModel, the converted model, data, size) -> the proof on the test split.
        failure: (the proof, whether in 8 bits) -> what is wrong with the model, "" where it may be used.
        how_to_use: (file name, dtype, size, resize, number of classes) -> the README.md beside the file.
    """

    gives: str
    load_data: Callable[[dict, Path, tuple[int, int]], Any]
    resize: Callable[[dict], str]
    calibrate: Callable[[Any, int], tuple[int, Callable[[], Iterable[np.ndarray]]]] | None
    prove: Callable[[PixelFunction, PixelFunction, Any, tuple[int, int]], dict]
    failure: Callable[[dict, bool], str]
    how_to_use: Callable[[str, str, tuple[int, int], str, int], str]


def load_to_convert(version: Path, gives: str):
    """Load the SavedModel of an image model, on the CPU: GPUs round differently.

    Args:
        version: its folder.
        gives: the output of its signature `tensors` to convert.

    Returns:
        The loaded object. Keep a reference to it: its signatures alone lose their variables.

    Raises:
        UserError: it cannot be loaded, or has no signature `tensors` of pixels to that output.
    """
    try:
        with tf.device("CPU:0"):
            loaded = tf.saved_model.load(str(version))
    except (OSError, ValueError, tf.errors.OpError) as problem:
        raise UserError(f"{version} cannot be loaded: {first_line(problem)}. Run the recipe again.") from problem
    signature = loaded.signatures.get("tensors")
    takes = signature.structured_input_signature[1] if signature else {}
    outputs = set(signature.structured_outputs) if signature else set()
    if set(takes) != {"pixels"} or not {"class_names", gives} <= outputs:
        raise UserError(
            f"{version} cannot be converted: its signature `tensors` must take pixels and return class_names and "
            f"{gives}. Its signatures: {', '.join(loaded.signatures) or 'none'}; `tensors` takes "
            f"{', '.join(takes) or 'nothing'}. Name the run of an image classifier or an object detector."
        )
    return loaded


def size_and_class_names(loaded) -> tuple[tuple[int, int], list[str]]:
    """Return (height, width) of the images that a loaded model takes, and its classes in order."""
    pixels = loaded.signatures["tensors"].structured_input_signature[1]["pixels"]
    size = tuple(pixels.shape[1:3])
    answer = loaded.signatures["tensors"](pixels=tf.zeros((1, *size, 3)))
    return size, [name.decode("utf-8") for name in answer["class_names"][0].numpy()]


def with_constant_weights(loaded, gives: str) -> tf.types.experimental.PolymorphicFunction:
    """Return what a SavedModel computes as one function whose weights are constants.

    Args:
        loaded: as `load_to_convert` returns it.
        gives: the output to return.

    Returns:
        A tf.function of `pixels`, float32 [batch, height, width, 3], RGB, 0 to 255, to a dict of that output.
    """
    # tf2onnx and the LiteRT converter freeze with this function too. Done here, it also turns the other
    # tensors of the SavedModel's graph into constants; tf2onnx would turn them into inputs, which cannot be fed.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = loaded.signatures["tensors"]
    pixels = signature.structured_input_signature[1]["pixels"]

    @tf.function(input_signature=[pixels])
    def as_served(pixels):
        return signature(pixels=pixels)[gives]

    frozen = convert_variables_to_constants_v2(as_served.get_concrete_function())
    graph, enters, leaves = frozen.graph.as_graph_def(), frozen.inputs[0].name, frozen.outputs[0].name

    @tf.function(input_signature=[pixels], autograph=False)
    def answer(pixels):
        return {gives: tf.graph_util.import_graph_def(graph, {enters: pixels}, [leaves], name="")[0]}

    return answer


def to_litert(function: tf.types.experimental.PolymorphicFunction) -> bytes:
    """Convert to LiteRT (TensorFlow Lite) in float32.

    Args:
        function: as `with_constant_weights` returns it.

    Returns:
        A .tflite file: same inputs and outputs as the function, any batch size after `resize_tensor_input`.
    """
    return _converter(function).convert()


def to_litert_int8(
    function: tf.types.experimental.PolymorphicFunction, images: Callable[[], Iterable[np.ndarray]]
) -> bytes:
    """Convert to LiteRT with weights and activations in 8 bits, and only the last Dense and its softmax in float32.

    The head stays float because 8 bits are too coarse for its weights: a linear head fitted on standardised features
    has large weights where a feature hardly varies, and one scale for a row of weights that differ a hundredfold
    rounds most of them to 0. It is a small share of the file.

    Args:
        function: as `with_constant_weights` returns it.
        images: returns pixels to calibrate with, float32 [1, height, width, 3] each; never of the test split.

    Returns:
        A .tflite file: takes uint8 [batch, height, width, 3], RGB as decoded, without any scaling; returns
        float32 [batch, classes].
    """
    converter = _converter(function)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one] for one in images())
    head = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=_head_tensors(to_litert(function)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it runs a deprecated interpreter for a statistic that is not used here
        # Despite its name, the one public way to leave single operations in float.
        quantizer = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_options=head)
    return _take_bytes_and_share_zeros(quantizer.get_nondebug_quantized_model())


def to_onnx(function: tf.types.experimental.PolymorphicFunction) -> bytes:
    """Convert to ONNX in float32.

    Args:
        function: as `with_constant_weights` returns it.

    Returns:
        An .onnx file: same inputs and outputs as the function, any batch size.
    """
    import tf2onnx

    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=ONNX_OPSET)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"  # its name would be a number
    return model.SerializeToString()


def open_saved_model(loaded, gives: str) -> PixelFunction:
    """Return a loaded model as a function of pixels float32 [batch, height, width, 3] to one of its outputs."""

    def ask(pixels: np.ndarray) -> np.ndarray:
        with tf.device("CPU:0"):
            return loaded.signatures["tensors"](pixels=tf.constant(pixels))[gives].numpy()

    return ask


def open_litert(model: bytes, threads: int) -> PixelFunction:
    """Return a .tflite file, run by LiteRT, as a function of pixels like `open_saved_model`; rounded for uint8."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=threads)
    interpreter.allocate_tensors()

    def ask(pixels: np.ndarray) -> np.ndarray:
        takes, gives = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        if tuple(takes["shape"]) != pixels.shape:
            interpreter.resize_tensor_input(takes["index"], pixels.shape)
            interpreter.allocate_tensors()
        given = np.rint(pixels).astype(np.uint8) if takes["dtype"] == np.uint8 else pixels
        interpreter.set_tensor(takes["index"], given)
        interpreter.invoke()
        return interpreter.get_tensor(gives["index"])

    return ask


def open_onnx(model: bytes, threads: int) -> PixelFunction:
    """Return an .onnx file, run by ONNX Runtime on the CPU, as a function of pixels like `open_saved_model`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def saved_model_bytes(version: Path) -> int:
    """Return the size of a SavedModel, without the warm-up requests (assets.extra)."""
    files = [path for path in version.rglob("*") if path.is_file() and "assets.extra" not in path.parts]
    return sum(path.stat().st_size for path in files)


def table(conversions: Sequence[dict]) -> list[dict[str, str]]:
    """Return the row of the table for each conversion, by column heading.

    Args:
        conversions: contents of each `conversion.json`.
    """
    return [
        {
            "model": one["kind"],
            "size": f"{one['bytes'] / 1e6:.2f} MB",
            "smaller": f"{one['saved_model_bytes'] / one['bytes']:.2f} times smaller than the SavedModel"
            + (f", {one['float_bytes'] / one['bytes']:.2f} times than float" if "float_bytes" in one else ""),
            "same outputs": f"{one['agreement']:.4f} of {one.get('boxes', one['examples']):,}",
            "largest difference": f"{one['max_abs_diff']:.1e}",
            "accuracy": f"{one['accuracy']:.4f} (SavedModel {one['saved_model_accuracy']:.4f})"
            if "accuracy" in one
            else "",
            "one image": f"{one['milliseconds']:.2f} ms (SavedModel {one['saved_model_milliseconds']:.2f} ms)",
            "proof": "passed" if one["passed"] else "FAILED: do not use it",
        }
        for one in conversions
    ]


_PLACE = re.compile("<!-- conversions -->.*?<!-- end of conversions -->", re.DOTALL)


def show_in_report(report: Path, conversions: Sequence[dict]) -> bool:
    """Put the table of all conversions of a run into its report.html, replacing an earlier one.

    Args:
        report: the file.
        conversions: contents of each `conversion.json` of the run.

    Returns:
        Whether it was inserted; a report of an older version has no place for it.
    """
    text = report.read_bytes().decode("utf-8") if report.exists() else ""
    rows = table(conversions)
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in rows[0])
    lines = []
    for row, one in zip(rows, conversions, strict=True):
        mark = "good-mark" if one["passed"] else "bad-mark"
        name, *cells, proof = (html.escape(cell) for cell in row.values())
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{name}</th>{cells}<td class="{mark}">{proof}</td></tr>')
    section = (
        "<!-- conversions -->\n<h2>Converted models</h2>\n"
        '<p class="quiet">Each ran on the test images in its own runtime; times are per image.</p>\n'
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n' + "\n".join(lines)
        + "\n</tbody></table></div>\n<!-- end of conversions -->"
    )  # fmt: skip
    text, places = _PLACE.subn(lambda _: section, text, count=1)
    if places:
        write_atomically(report, lambda partial: partial.write_bytes(text.encode("utf-8")))
    return bool(places)


# --- inside of a .tflite file ---------------------------------------------------------------------------------


def _converter(function: tf.types.experimental.PolymorphicFunction) -> tf.lite.TFLiteConverter:
    # The module tracks nothing, for all weights are constants; without one, an older converter is used.
    return tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())


def _head_tensors(model: bytes) -> list[str]:
    """Return the names of the outputs of the softmax and the Dense layer at the end of a .tflite file."""
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]
    maker = {operator.outputs[0]: operator for operator in graph.operators}
    tensor, names = graph.outputs[0], []
    for wanted in (schema.BuiltinOperator.SOFTMAX, schema.BuiltinOperator.FULLY_CONNECTED):
        code = parsed.operatorCodes[maker[tensor].opcodeIndex] if tensor in maker else None
        if code is not None and wanted in (code.builtinCode, code.deprecatedBuiltinCode):
            names.append(graph.tensors[tensor].name.decode())
            tensor = maker[tensor].inputs[0]
    return names


def _take_bytes_and_share_zeros(model: bytes) -> bytes:
    """Let an 8-bit .tflite file take uint8 pixels, and store the zero points of its weights once.

    The converter writes an 8-byte zero for each channel of each weight and of each bias: in a MobileNetV2 a tenth of
    the file. The format lets tables share a list.
    """
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]
    pixels = graph.tensors[graph.inputs[0]]
    # The first operation quantizes float pixels; it takes uint8 as well, whose values are the pixels themselves.
    pixels.type = schema.TensorType.UINT8
    pixels.quantization = schema.QuantizationParametersT(scale=np.ones(1, np.float32), zeroPoint=np.zeros(1, np.int64))
    builder = _ZerosOnce(len(model))
    builder.Finish(parsed.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _ZerosOnce(flatbuffers.Builder):
    """Writes equal lists of zero points (they alone are int64) once, and aligns data as the format requires."""

    def __init__(self, size: int):
        super().__init__(size)
        self.places: dict[bytes, int] = {}

    def CreateNumpyVector(self, x):
        if x.dtype == np.uint8:
            self.Prep(16, x.nbytes)
        if x.dtype != np.int64:
            return super().CreateNumpyVector(x)
        if x.tobytes() not in self.places:
            self.places[x.tobytes()] = super().CreateNumpyVector(x)
        return self.places[x.tobytes()]
