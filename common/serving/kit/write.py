"""Write the files beside an export: a request, clients, deployment files."""

from __future__ import annotations

import base64
from pathlib import Path

from common import files
from common.serving.kit.client_files import write_clients
from common.serving.kit.deployment import write_deployment


def write_serving_files(folder: Path, name: str, *, input_name: str, example: Path | bytes | str) -> None:
    """Write an example request, clients, and the files for docker compose, Kubernetes and KServe.

    Args:
        folder: OUT/serving, which holds NAME/1.
        name: of the model on the server.
        input_name: the input of `serving_default`.
        example: for request.json: a file, the bytes of one, or a text.

    Raises:
        UserError: the disk is full.
    """
    write_request(folder / "request.json", input_name, example)
    write_deployment(folder, name, input_name=input_name)
    write_clients(folder, name)


def write_request(path: Path, input_name: str, example: Path | bytes | str) -> Path:
    """Write an example REST request: `curl -d @request.json http://HOST:8501/v1/models/NAME:predict`.

    Args:
        path: of the request.
        input_name: of `serving_default`.
        example: a file or its bytes, sent as base64, or a text.
    """
    content = example.read_bytes() if isinstance(example, Path) else example
    if isinstance(content, bytes):
        content = {"b64": base64.b64encode(content).decode()}
    return files.write_json(path, {"instances": [{input_name: content}]})
