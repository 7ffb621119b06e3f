"""The models to serve: from the folder of a run, of an export, or a models.config file."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from common.errors import UserError
from common.serving.models import ModelConfig, version_folders


def configs_of_folder(folder: Path) -> list[ModelConfig]:
    """Return the models in the folder of a run, in a folder of versions, or in one version.

    Args:
        folder: OUT of a run, NAME with versions inside, or NAME/NUMBER.

    Raises:
        UserError: there is no export.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}. Name the --out of `python -m recipes run`, or a folder NAME/NUMBER with a "
            f"SavedModel inside."
        )
    if (folder / "serving").is_dir():
        found = [path for path in sorted((folder / "serving").iterdir()) if path.is_dir() and version_folders(path)]
        if found:
            return [ModelConfig(path.name, path) for path in found]
        raise UserError(f"{folder} is the folder of a run without an export: let the run finish first.")
    if (folder / "saved_model.pb").exists() and folder.name.isdecimal():
        return [ModelConfig(folder.parent.name, folder.parent, specific=(int(folder.name),))]
    return [ModelConfig(folder.name, folder)]  # a folder without versions is rejected before serving


def configs_of_file(path: Path) -> list[ModelConfig]:
    """Return the models of a models.config file, read as in TensorFlow Serving.

    Args:
        path: a text protobuf of ModelServerConfig. A relative base_path is relative to the folder of the file.

    Raises:
        UserError: the file cannot be read, or requires what this server lacks.
    """
    try:
        parsed = text_format.Parse(path.read_text("utf-8"), ModelServerConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise UserError(f"--models-config {path} cannot be read: {error}") from error
    if not parsed.model_config_list.config:
        raise UserError(f"--models-config {path} names no model. Add: model_config_list {{ config {{ name: ... }} }}")
    configs = []
    for one in parsed.model_config_list.config:
        if one.model_platform not in ("", "tensorflow"):
            raise UserError(
                f"--models-config {path}: {one.name} has platform {one.model_platform!r}; only 'tensorflow' is served"
            )
        policy, latest, specific = one.model_version_policy, 1, ()
        if policy.HasField("all"):
            latest = None
        elif policy.HasField("specific"):
            specific = tuple(policy.specific.versions)
        elif policy.HasField("latest"):
            latest = max(1, policy.latest.num_versions)
        folder = (path.parent / one.base_path).absolute()
        configs.append(ModelConfig(one.name or folder.name, folder, latest, specific, dict(one.version_labels)))
    return configs
