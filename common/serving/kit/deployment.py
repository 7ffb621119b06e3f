"""The files that deploy an export with the real TensorFlow Serving: docker compose, Kubernetes, KServe."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from common.files import write_atomically

# The release of June 2026, the first in three years whose TF Text has the ops of KerasHub's tokenizers: from
# 2.12 to 2.19 the server linked TF Text 2.12, and refused such graphs with "Op type not registered
# 'TFText>RoundRobinTrim'". common/proof/fresh_process/served_ops.json lists the ops of this release, and every
# export is checked against it. Change both together.
SERVING_IMAGE = "tensorflow/serving:2.20.0"

TEMPLATES = Path(__file__).with_name("templates")
FILES = (
    "docker-compose.yml",
    "models.config",
    "batching.config",
    "monitoring.config",
    "kubernetes/pvc.yaml",
    "kubernetes/loader.yaml",
    "kubernetes/config.yaml",
    "kubernetes/deployment.yaml",
    "kubernetes/service.yaml",
    "kubernetes/autoscaler.yaml",
    "kserve.yaml",
)

# A name that matches needs no quoting in a path, a URL, a YAML string or a text proto.
SERVABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# A Service's name has at most 63 characters; the names of other resources add a word to it.
_LONGEST_RESOURCE_NAME = 50


def write_deployment(folder: Path, name: str, *, input_name: str) -> list[Path]:
    """Write the files that deploy a servable, beside it.

    Args:
        folder: holds NAME/1/ (the SavedModel) and request.json; need not hold them yet.
        name: the model's name on the server.
        input_name: the input of `serving_default`, named in the comments.

    Returns:
        The files: docker-compose.yml and kserve.yaml, the server's three .config files, and a folder kubernetes/.

    Raises:
        ValueError: an invalid name.
    """
    for what, word in (("name", name), ("input_name", input_name)):
        if not SERVABLE_NAME.fullmatch(word):
            raise ValueError(f"{what} must be letters, digits, '_', '.', '-', the first no sign; received {word!r}")
    texts = render_deployment(name, input_name=input_name)
    return [
        write_atomically(folder / file, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))
        for file, text in texts.items()
    ]


def render_deployment(name: str, *, input_name: str) -> dict[str, str]:
    """Return the text of every file of a deployment, by its path.

    Args:
        name: the model's name on the server.
        input_name: the input of `serving_default`.

    Returns:
        {path: text}, in reading order.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    image, _, version = SERVING_IMAGE.rpartition(":")
    values = {
        "name": name,
        "resource": resource_name(name),
        "input_name": input_name,
        "image": image,
        "version": version,
    }
    return {file: environment.get_template(file).render(values) for file in FILES}


def resource_name(name: str) -> str:
    """Return a model's name for Kubernetes: RFC 1123, beginning with a letter, as a Service requires.

    Args:
        name: the model's name on the server, `image_classification`.

    Returns:
        `image-classification`.
    """
    dashed = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not dashed[0].isalpha():
        dashed = f"model-{dashed}"
    return dashed[:_LONGEST_RESOURCE_NAME].strip("-")
