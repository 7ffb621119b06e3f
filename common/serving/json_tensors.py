"""Convert between the JSON of TensorFlow Serving's REST API and arrays.

The format is that of tensorflow_serving/g3doc/api_rest.md, and so are the beginnings of the messages of
tensorflow_serving/util/json_tensor.cc (github.com/tensorflow/serving): clients match them.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson
import tensorflow as tf

from common.serving.refusals import invalid

_TYPE_NAMES = {type(None): "Null", bool: "Bool", dict: "Object", list: "Array", str: "String", int: "Number",
               float: "Number"}  # fmt: skip
_SHOWN = 100  # characters of a wrong value that an error repeats


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request; NaN, Infinity and -Infinity are numbers, as in the REST API.

    Raises:
        Refusal: it is not JSON, or not an object.
    """
    if not body.strip():
        raise invalid("JSON Parse error: The document is empty")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = _parse_leniently(body)
    if not isinstance(content, dict):
        raise invalid(f"JSON Value: {shown(content)} Is not object")
    return content


def _parse_leniently(body: bytes) -> Any:
    """Parse again with a slower parser, which supports NaN and Infinity."""
    try:
        return json.loads(body)
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string: {error.reason} at offset: {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid value. ({error.msg}) at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Invalid value. (nested too deeply)") from None
    except ValueError as error:  # a whole number with thousands of digits
        raise invalid(f"JSON Parse error: Invalid value. ({error})") from None


def signature_name(content: Mapping[str, Any]) -> str:
    """Return the signature name in a request, or "" where there is none."""
    name = content.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {shown(content)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def tensors_of_request(
    content: Mapping[str, Any], dtypes: Mapping[str, tf.DType]
) -> tuple[dict[str, np.ndarray], bool]:
    """Return the inputs of a predict request.

    Args:
        content: the request's JSON object.
        dtypes: of each input of the signature.

    Returns:
        (an array for each input, whether the request lists instances; its answer then does so too).

    Raises:
        Refusal: the request does not match the signature.
    """
    if "instances" in content and "inputs" in content:
        raise invalid(
            f"JSON Value: {shown(content)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
            f"to exist "
        )
    if "instances" in content:
        return _from_instances(content["instances"], content, dtypes), True
    if "inputs" in content:
        return _from_inputs(content["inputs"], dtypes), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_instances(instances: Any, content: Mapping, dtypes: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {shown(content)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {shown(content)} No values in 'instances' array")
    named = _is_named(instances[0])
    if not named and len(dtypes) > 1:
        raise invalid(
            f"instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            f"tensorinfo_map: {', '.join(sorted(dtypes))}"
        )
    for place, instance in enumerate(instances):
        if named and not _is_named(instance):
            raise invalid(f"Expecting object but got list at item {place} of input list")
        if not named and _is_named(instance):
            raise invalid(f"Expecting value/list but got object at item {place} of input list")
    if not named:
        name = next(iter(dtypes))
        return {name: _stack(instances, dtypes[name])}
    for place, instance in enumerate(instances):
        if instance.keys() != dtypes.keys():
            raise invalid(
                f"Failed to process element: {place} of 'instances' list. JSON object: {shown(instance)} keys must be "
                f"equal to: {','.join(sorted(dtypes))}"
            )
    return {name: _stack([one[name] for one in instances], dtype, name) for name, dtype in dtypes.items()}


def _from_inputs(inputs: Any, dtypes: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    if not _is_named(inputs):
        if len(dtypes) > 1:
            raise invalid(
                f"inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                f"tensorinfo_map: {', '.join(sorted(dtypes))}"
            )
        inputs = {next(iter(dtypes)): inputs}
    absent = sorted(dtypes.keys() - inputs.keys())
    if absent:
        raise invalid(f"Missing named input: {absent[0]} in 'inputs' object.")
    unknown = sorted(inputs.keys() - dtypes.keys())
    if unknown:  # the real server ignores them, which would hide a misspelt optional input
        raise invalid(f"JSON object: does not have named input: {unknown[0]}. It has: {', '.join(sorted(dtypes))}")
    return {name: dense(inputs[name], dtype) for name, dtype in dtypes.items()}


def _stack(values: list, dtype: tf.DType, name: str | None = None) -> np.ndarray:
    """Return one array of all instances; where their shapes differ, the error names the wrong one."""
    try:
        return dense(values, dtype)
    except Exception:
        first = None
        for place, value in enumerate(values):
            key = f" key: {name}" if name else ""
            began = f"Failed to process element: {place}{key} of 'instances' list. Error: INVALID_ARGUMENT: "
            try:
                one = dense(value, dtype)
            except Exception as problem:
                raise invalid(began + str(problem)) from None
            first = one if first is None else first
            if one.size != first.size:
                raise invalid(f"{began}Expecting tensor size: {first.size} but got: {one.size}") from None
            if one.shape != first.shape:
                raise invalid(
                    f"{began}Expecting shape {list(first.shape)} but got: {list(one.shape)}".replace(", ", ",")
                ) from None
        raise


def dense(value: Any, dtype: tf.DType) -> np.ndarray:
    """Return nested lists of JSON values as an array.

    Args:
        value: a scalar, or lists nested equally deep everywhere. Bytes are {"b64": TEXT}.
        dtype: of the array; a number that it cannot represent is refused, not rounded.

    Raises:
        Refusal: lists of different lengths, or a value of another type.
    """
    shape, level = [], [value]
    # All values of one depth at a time, so that an image of 150,000 numbers takes milliseconds.
    while level and type(level[0]) is list:
        sizes = {len(item) if type(item) is list else None for item in level}
        if None in sizes:
            lone = next(item for item in level if type(item) is not list)
            raise invalid(
                f"JSON Value: {shown(lone)} found at incorrect level: {len(shape) + 1} in the JSON DOM. Expected at "
                f"level: {len(shape) + 2}"
            )
        if len(sizes) > 1:
            expected = len(level[0])
            other = next(len(item) for item in level if len(item) != expected)
            raise invalid(
                f"Encountered list at unexpected size: {other} at level: {len(shape)} expected size: {expected}"
            )
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    if any(type(item) is list for item in level):
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return _values(level, dtype).reshape(shape)


def _values(values: list, dtype: tf.DType) -> np.ndarray:
    """Return JSON scalars as an array of one dimension."""
    if dtype == tf.string:
        array = np.empty(len(values), dtype=object)
        array[:] = [_bytes(value) for value in values]
        return array
    if dtype == tf.bool:
        allowed = {bool}
    elif dtype.is_integer:
        allowed = {int}
    elif dtype.is_floating:
        allowed = {int, float}
    else:
        raise invalid(f"Conversion of JSON Value: {shown(values[:1])} to type: {dtype.name} is not supported")
    if not set(map(type, values)) <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        raise _type_error(wrong, dtype)
    if dtype == tf.bool:
        return np.array(values, dtype=bool)
    if dtype.is_integer:
        return _whole_numbers(values, dtype)
    return _decimal_numbers(values, dtype)


def _whole_numbers(values: list, dtype: tf.DType) -> np.ndarray:
    wrong = next((value for value in values if not dtype.min <= value <= dtype.max), None)
    if wrong is not None:
        raise _type_error(wrong, dtype)
    return np.array(values, dtype=dtype.as_numpy_dtype)


def _decimal_numbers(values: list, dtype: tf.DType) -> np.ndarray:
    digits = np.finfo(np.float64 if dtype == tf.float64 else np.float32).nmant + 1
    wrong = next((value for value in values if type(value) is int and abs(value) >= 2**digits), None)
    if wrong is None:
        exact = np.array(values, dtype=np.float64)
        with np.errstate(over="ignore"):
            array = exact.astype(dtype.as_numpy_dtype)
        overflown = np.isinf(np.asarray(array, np.float64)) & np.isfinite(exact)
        if not overflown.any():
            return array
        wrong = float(exact[overflown][0])
    name = {tf.float32: "float", tf.float64: "double"}.get(dtype, dtype.name)
    raise invalid(f"Cannot convert JSON value: {shown(wrong)} to {name} without loss of precision.")


def _bytes(value: Any) -> bytes:
    if type(value) is str:
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError:
            raise invalid(f"JSON Value: {shown(value)} holds half a surrogate pair, which is not valid text") from None
    if type(value) is dict:
        return decode_base64(value)
    raise _type_error(value, tf.string)


def decode_base64(value: dict) -> bytes:
    if not is_base64(value):
        raise invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split()).rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise invalid(f"Unable to base64 decode: {error}") from None


def is_base64(value: Any) -> bool:
    return type(value) is dict and value.keys() == {"b64"} and type(value["b64"]) is str


def _is_named(value: Any) -> bool:
    return type(value) is dict and not is_base64(value)


def _type_error(value: Any, dtype: tf.DType) -> Exception:
    kind = str(value) if type(value) is bool else _TYPE_NAMES[type(value)]
    name = {tf.float32: "float", tf.float64: "double"}.get(dtype, dtype.name)
    return invalid(f"JSON Value: {shown(value)} Type: {kind} is not of expected type: {name}")


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


def answer_to_json(outputs: Mapping[str, np.ndarray], as_instances: bool) -> bytes:
    """Return the JSON of a predict answer: `predictions` for a request with instances, else `outputs`.

    An output of bytes whose name ends in `_bytes` is base64; other bytes are text, with invalid UTF-8
    replaced.

    Raises:
        Refusal: the outputs have no common first dimension for instances, or a type that JSON lacks.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    values = {name: _writable(name, outputs[name]) for name in sorted(outputs)}
    if not as_instances:
        return to_json({"outputs": values if len(values) > 1 else next(iter(values.values()))})
    sizes = {}
    for name, array in outputs.items():
        if not np.ndim(array):
            raise invalid(f"Tensor name: {name} has no shape information ")
        sizes[name] = len(array)
        if len(set(sizes.values())) > 1:
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: "
                f"{next(iter(sizes.values()))}. Send 'inputs' instead of 'instances'."
            )
    if len(values) == 1:
        return to_json({"predictions": next(iter(values.values()))})
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return to_json({"predictions": rows})


def _writable(name: str, array: np.ndarray) -> np.ndarray | list | str | dict:
    """Return a value that orjson can write."""
    array = np.asarray(array)
    if array.dtype == object:
        write = _to_base64 if name.endswith("_bytes") else (lambda value: value.decode("utf-8", "replace"))
        return _each(array.tolist(), write)
    if array.dtype.kind not in "fiub" and array.dtype.name not in ("bfloat16",):
        raise invalid(f"Failed to write JSON value for tensor type: {tf.as_dtype(array.dtype).name}")
    if array.dtype.name in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        # str() gives the shortest text of a float32; a float64 would add digits that are not in the output.
        return _each(array.tolist(), lambda value: float(str(array.dtype.type(value))))
    if not array.ndim:
        return array.dtype.type(array)
    return np.ascontiguousarray(array)


def _to_base64(value: bytes) -> dict[str, str]:
    return {"b64": binascii.b2a_base64(value, newline=False).decode("ascii")}


def _each(value: Any, write) -> Any:
    return [_each(item, write) for item in value] if isinstance(value, list) else write(value)


def to_json(content: Any) -> bytes:
    """Return JSON, with numbers of arrays as short as their precision allows, and NaN and Infinity kept."""
    if _has_non_finite(content):
        return json.dumps(_plain(content), ensure_ascii=False).encode()
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def _has_non_finite(content: Any) -> bool:
    """Return whether a Python float in it is NaN or infinite: orjson would write null (its arrays hold none)."""
    if isinstance(content, float):
        return not np.isfinite(content)
    inner: Iterable = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return any(_has_non_finite(item) for item in inner)


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    if isinstance(content, np.ndarray | np.generic):
        # The other outputs of an answer with a NaN: their text as orjson would have written it.
        return json.loads(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
    return content
