"""TF Hub models and other SavedModels as sources of images.

A SavedModel is code: this module and what runs that code are imported only for `hub:` sources.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from common.errors import UserError, first_line
from common.hub import SavedModelLayer, reinitialise
from common.images.keras_applications import Preprocessing
from common.sources.specs import SourceSpec


def load_hub(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    # What is unfrozen is decided later, but variables must be trainable from the start.
    arguments = {"trainable": True, "signature": spec.options.get("signature"), "name": "saved_model"}
    print(f"hub: {spec.name} is a SavedModel, which is code that will run here; load only trusted models", flush=True)
    layer = SavedModelLayer(spec.name, **arguments)
    size = _input_size(spec, layer, wanted)
    pixels = keras.Input((*size, 3), name="saved_model_pixels")
    try:
        gives = layer.compute_output_spec(pixels)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"The SavedModel cannot take images of {size[0]} x {size[1]} pixels. Received: hub:{spec.name}. "
            f"TensorFlow says: {first_line(error)}"
        ) from error
    layer.output_key = _features_among(gives, spec)
    features = layer(pixels)
    if random_weights:
        reinitialise(layer)
    low, high = spec.options.get("range", (0.0, 1.0))
    unknown = "see the page of the model"
    card = {"origin": f"SavedModel {spec.name}", "licence": unknown, "data": unknown}
    if random_weights:
        card |= {"origin": card["origin"] + ", initial weights", "data": "none"}
    backbone = keras.Model(pixels, features, name="saved_model_backbone")
    return backbone, Preprocessing(((high - low) / 255,), (low,)), size, card


def _features_among(gives, spec: SourceSpec) -> str | int | None:
    """Return the key of the output with the features: the chosen one, or `default`, its name on TF Hub."""
    if isinstance(gives, keras.KerasTensor):
        outputs = {None: gives}
    else:
        outputs = dict(sorted(gives.items())) if isinstance(gives, dict) else dict(enumerate(gives))
    usable = {
        str(key): key for key, tensor in outputs.items()
        if isinstance(tensor, keras.KerasTensor) and len(tensor.shape) in (2, 3, 4) and "float" in tensor.dtype
    }  # fmt: skip
    wanted = spec.options.get("output", "default")
    if wanted in usable:
        return usable[wanted]
    if len(outputs) == len(usable) == 1 and "output" not in spec.options:
        return next(iter(usable.values()))
    received = ", ".join(f"{key} {getattr(tensor, 'shape', '')}" for key, tensor in outputs.items())
    raise UserError(
        "The SavedModel has several outputs, or none with features (float, 2 to 4 dimensions). Allowed: "
        f"'hub:FOLDER(output=KEY)' with one of {', '.join(usable) or 'none: it has no such output'}. "
        f"Received: hub:{spec.name}{f' with output={wanted}' if 'output' in spec.options else ''}, which returns "
        f"{received}."
    )


def _input_size(spec: SourceSpec, layer: SavedModelLayer, wanted: tuple[int, int] | None) -> tuple[int, int]:
    takes = list(layer.input_specs.values())
    shape = takes[0].shape if len(takes) == 1 and isinstance(takes[0], tf.TensorSpec) else tf.TensorShape(None)
    if takes and takes[0].dtype == tf.float32 and shape.rank is None:
        shape = tf.TensorShape((None, None, None, 3))
    if shape.rank != 4 or shape[-1] not in (3, None) or takes[0].dtype != tf.float32:
        raise UserError(
            "The SavedModel does not take RGB images. Allowed: one input, float32 [batch, height, width, 3]. "
            f"Received: hub:{spec.name} with input {', '.join(map(str, takes)) or 'none'}; its signatures: "
            f"{', '.join(layer.saved_model.signatures) or 'none'}. To choose one: 'hub:FOLDER(signature=NAME)'"
        )
    if not wanted and "size" in spec.options:
        wanted = (spec.options["size"], spec.options["size"])
    size = tuple(given or one for given, one in zip(shape[1:3], wanted or (224, 224), strict=True))
    if wanted and size != wanted:
        raise UserError(
            f"The SavedModel takes images of {size[0]} x {size[1]} pixels only. Received: hub:{spec.name} at "
            f"{wanted[0]} x {wanted[1]}. Try it without --image-size and size=."
        )
    return size
