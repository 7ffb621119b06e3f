"""Write the clients of a served model beside its export."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from common.errors import UserError
from common.files import room_for, write_atomically
from common.serving.kit.deployment import SERVABLE_NAME

CLIENTS = Path(__file__).with_name("clients")
_DEFAULT = 'MODEL = ""\n'


def write_clients(folder: Path, name: str) -> list[Path]:
    """Write client.py (REST, with the standard library alone) and grpc_client.py, with this model as default.

    Args:
        folder: OUT/serving of a run.
        name: of the model on the server.

    Returns:
        The files.

    Raises:
        UserError: the name is not valid for a model, or the disk is full.
    """
    if not SERVABLE_NAME.fullmatch(name):
        raise UserError(
            f"the name of a model must consist of letters a to z, digits, '_', '.' and '-', and begin with a letter or "
            f"digit; received {name!r}"
        )
    written = []
    with room_for("the clients", folder):
        for client in sorted(CLIENTS.glob("*client.py")):
            text = client.read_text("utf-8")
            if text.count(_DEFAULT) != 1:
                raise ValueError(f"{client.name} must hold the line {_DEFAULT.strip()!r} once, to fill in the name")
            text = text.replace(_DEFAULT, f'MODEL = "{name}"\n')
            write = partial(Path.write_text, data=text, encoding="utf-8")
            written.append(write_atomically(folder / client.name, write))
    return written
