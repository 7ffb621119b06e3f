"""Everything that stands beside an export, for whoever deploys it and whoever asks it."""

from __future__ import annotations

from pathlib import Path

from common.exporting import write_request
from common.serving.client_files import write_clients
from common.serving.deployment import write_deployment


def write_serving_files(folder: Path, name: str, *, input_name: str, example: Path | str) -> None:
    """Write a request that works, clients, and the files of docker compose, Kubernetes and KServe.

    Args:
        folder: OUT/serving, which holds NAME/1.
        name: of the model on the server.
        input_name: the input of `serving_default`.
        example: a file or a text for request.json.

    Raises:
        UserError: the disk is full.
    """
    write_request(folder / "request.json", input_name, example)
    write_deployment(folder, name, input_name=input_name)
    write_clients(folder, name)
