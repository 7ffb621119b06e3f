"""The part of the command line that imports TensorFlow: load a recipe, find the export of a run."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from common.errors import UserError
from common.files import room_for
from recipes.commands._discovery import Recipe, config_class

ROOT = Path(__file__).resolve().parents[2]  # an error about a file in it is a bug


def load_recipe(recipe: Recipe) -> ModuleType:
    """Import recipe.py completely, including TensorFlow; this takes seconds.

    It is loaded from its file and not by its name, so that it may be in any folder.
    """
    module_name = f"{recipe.file.parent.parent.name}.{recipe.name}.recipe"
    specification = importlib.util.spec_from_file_location(module_name, recipe.file)
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    with importing_tensorflow():
        specification.loader.exec_module(module)
    return module


def refuse_early(recipe: Recipe, settings) -> None:
    """Raise UserError for data that cannot work, found without TensorFlow by the function that the recipe names."""
    if where := recipe.literal("EARLY"):
        path = Path(settings.data.partition(":")[2]).expanduser()
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe can be read only once
            return
        module, _, name = where.partition(":")
        getattr(importlib.import_module(module), name)(settings)


def parse_flags(command: str, recipe: Recipe, arguments: list[str]):
    """Parse flags into a class equal to the recipe's Config; nothing heavy is imported.

    Raises:
        UserError: a value that the recipe rejects, with the recipe's own message. Wrong flags exit the program
            with exit code 2.
    """
    import tyro  # here: `list` does without

    light_class = config_class(recipe.file)
    # tyro would wrap the recipe's own message in a box: tyro only parses, the check follows.
    validate = getattr(light_class, "__post_init__", lambda config: None)
    light_class.__post_init__ = lambda config: None
    config = tyro.cli(
        light_class,
        args=arguments,
        prog=f"python -m recipes {command} {recipe.name}",
        description=recipe.docstring().splitlines()[0],
    )
    try:
        validate(config)
    except (ValueError, OSError) as problem:
        raise UserError(str(problem)) from problem
    return config


READING = ("ReadFile", "DecodeImage", "DecodeJpeg", "ExtractJpegShape")  # operations that fail where a file changed


@contextlib.contextmanager
def failures_as_user_errors(recipe: Recipe, settings) -> Iterator[None]:
    """Turn a full disk or a file that disappears during a run into a UserError. A bug keeps its traceback."""
    try:
        with room_for("the files of this run", Path(settings.out)):
            yield
    except UserError:
        raise
    except Exception as error:
        if "UserError: " in str(error):  # raised within tf.data
            raise UserError(str(error).partition("UserError: ")[2].splitlines()[0]) from error
        lost = _lost_file(error)
        if not lost:
            raise
        raise UserError(
            f"A file was moved, changed or deleted after it had been checked: {lost}. Check the data again: "
            f"python -m recipes check {recipe.name} --data {shlex.quote(settings.data)}. Restore the file, or start "
            f"over in another --out."
        ) from error


def _lost_file(error: Exception) -> str:
    """Return the file of the data that an error is about, or why it cannot be decoded; "" where it is about none."""
    if isinstance(error, FileNotFoundError | PermissionError) and error.filename:
        file = Path(os.fsdecode(error.filename))
        return "" if file.absolute().is_relative_to(ROOT) else f"{error.filename} ({error.strerror})"
    # TensorFlow names the file where it cannot be read, and the operation where it cannot be decoded.
    by_tensorflow = type(error).__module__.startswith("tensorflow.") and hasattr(error, "message")
    if by_tensorflow and any(operation in error.message for operation in READING):
        return reason_of(error.message)
    return ""


def newest_export(run: Path, name: str | None) -> Path:
    """Return the folder of the highest version that a run exported.

    Raises:
        UserError: there is none, or several models and no name.
    """
    if not run.is_dir():
        raise UserError(f"there is no folder {run}. Name the --out of `python -m recipes run`.")
    pattern = f"serving/{name or '*'}/*/saved_model.pb"
    versions = [file.parent for file in run.glob(pattern) if file.parent.name.isdecimal()]
    # By number, not as text: version 10 is newer than version 9. The last one of each name is kept.
    versions.sort(key=lambda version: int(version.name))
    newest = {version.parent.name: version for version in versions}
    if not newest:
        raise UserError(f"{run} holds no export: nothing matches {pattern}. Let the run finish first.")
    if len(newest) > 1:
        choices = ", ".join(f"--name {key}" for key in sorted(newest))
        raise UserError(f"{run} holds the exports of several recipes. Add one of: {choices}")
    return next(iter(newest.values()))


def reason_of(message: str) -> str:
    """The line of a TensorFlow graph error that states the cause."""
    boilerplate = ("Graph execution error", "Detected at node", "<stack traces", "]]")
    lines = [line.rpartition("}}")[2].strip() or line.strip() for line in message.splitlines()]
    telling = [line for line in lines if line and not line.startswith(boilerplate)]
    return telling[0] if telling else message


@contextlib.contextmanager
def importing_tensorflow() -> Iterator[None]:
    """Import TensorFlow and what needs it, quietly, and without looking for garbage among what stays until the end.

    Python would look through all objects of the modules again and again, for a fifth of the seconds of the import.
    """
    first, enabled = "tensorflow" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        with quiet_tensorflow():
            yield
    finally:
        if enabled:
            gc.enable()
    if first:  # later, garbage of that time would be kept as well
        gc.freeze()


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Hide the messages of TensorFlow's native code at import, unless the import fails.

    TF_CPP_MIN_LOG_LEVEL does not affect these lines (oneDNN, CUDA): they are written before it is read. With
    TF_CPP_MIN_LOG_LEVEL=0 or 1 nothing is hidden.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1"):
        yield
        return
    sys.stderr.flush()
    real_stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
            if "tensorflow" in sys.modules:  # the last step with messages is the first query for GPUs
                sys.modules["tensorflow"].config.list_physical_devices("GPU")
        except BaseException:
            kept.seek(0)
            os.write(real_stderr, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real_stderr, 2)
            os.close(real_stderr)


def complain(problem: object) -> None:
    """Print one error on stderr, in red on a terminal."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error: {problem}{plain}", file=sys.stderr)
