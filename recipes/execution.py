"""The side of the command line that imports TensorFlow: load a recipe, ask the export of a run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from common.errors import UserError
from common.runs import room_for
from recipes.discovery import Recipe

PREDICT_BATCH = 32
_CLASSES, _BOXES = {"label", "probabilities", "class_names"}, {"boxes", "labels", "scores", "count"}


def load_recipe(recipe: Recipe) -> ModuleType:
    """Import recipe.py for real, TensorFlow and all; this takes seconds.

    It is loaded from its file and not by its name, so that it may lie under any folder.
    """
    module_name = f"{recipe.file.parent.parent.name}.{recipe.name}.recipe"
    specification = importlib.util.spec_from_file_location(module_name, recipe.file)
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    with quiet_tensorflow():
        specification.loader.exec_module(module)
    return module


@contextlib.contextmanager
def trouble_told_plainly(recipe: Recipe, settings) -> Iterator[None]:
    """While a recipe runs: a full disk or a picture that goes away becomes a UserError. A bug keeps its traceback."""
    try:
        with room_for("what this run writes", Path(settings.out)):
            yield
    except UserError:
        raise
    except Exception as error:
        lost = _lost_picture(error)
        if not lost:
            raise
        raise UserError(
            f"A picture was moved, changed or deleted after it had been checked: {lost}. See what can be read now: "
            f"python -m recipes check {recipe.name} --data {shlex.quote(settings.data)}. Put it back as it was, or "
            f"start over in another --out."
        ) from error


def _lost_picture(error: Exception) -> str:
    """Say which picture an error is about, or why it cannot be decoded; "" where it is about something else."""
    from common.data.image_rows import PICTURE_SUFFIXES  # here: it imports numpy, and `list` does without

    if isinstance(error, OSError) and Path(str(error.filename)).suffix.lower() in (*PICTURE_SUFFIXES, ".img"):
        return f"{error.filename} ({error.strerror})"
    # TensorFlow names the file where it cannot be read, and the operation where it cannot be decoded.
    by_tensorflow = type(error).__module__.startswith("tensorflow.") and hasattr(error, "message")
    if by_tensorflow and ("ReadFile" in error.message or "DecodeImage" in error.message):
        return _reason(error.message)
    return ""


def predict(arguments: list[str]) -> int:
    """Classify image files or texts, or find objects, with the newest export of a run, as a server would."""
    parser = argparse.ArgumentParser(prog="python -m recipes predict", description=predict.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder that a run wrote (its --out)")
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_TEXT", help="image files, or texts")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all probabilities")
    parser.add_argument("--name", help="which export, when the run holds several")
    options = parser.parse_args(arguments)
    export = newest_export(options.run, options.name)
    from common.data.image_rows import PICTURE_SUFFIXES  # here: it imports numpy, and `list` does without

    absent = [name for name in options.inputs if Path(name).suffix.lower() in PICTURE_SUFFIXES and not _is_file(name)]
    if absent:  # told before the seconds of importing TensorFlow
        shown = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(f"{len(absent)} of {len(options.inputs)} are not files: {shown}. Name image files.")
    with quiet_tensorflow():
        import tensorflow as tf

        from common.data.images import why_unusable
    try:
        # The loaded object must stay in a variable: its signatures hold its weights only weakly.
        loaded = tf.saved_model.load(str(export))
    except (OSError, ValueError, tf.errors.OpError) as problem:
        raise UserError(f"{export} cannot be loaded: {problem}. Run the recipe again.") from problem
    signature = loaded.signatures.get("serving_default")
    takes = signature.structured_input_signature[1] if signature else {}
    gives = signature.structured_outputs if signature else {}
    known = _CLASSES <= set(gives) or _BOXES <= set(gives)
    if takes.keys() - {"image", "text"} or not known:
        raise UserError(
            f"{export} is no classifier of images or texts, and finds no objects: it takes "
            f"{', '.join(takes) or 'nothing'} and gives {', '.join(gives) or 'nothing'}. predict needs the export of a "
            f"recipe."
        )
    if "text" in takes:
        return _predict_texts(signature, options.inputs, options.json)
    files = [Path(name) for name in options.inputs]
    if absent := [name for name in options.inputs if not _is_file(name)]:
        raise UserError(f"{absent[0][:200]!r} is no file; this model takes image files.")

    def classify(contents: list[bytes]) -> list[dict[str, Any] | str]:
        """One answer a file; a text instead says why that file has none."""
        try:
            outputs = {name: value.numpy() for name, value in signature(image=tf.constant(contents)).items()}
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as problem:
            # One bad image fails its whole batch, and the error does not say which: ask one by one.
            if len(contents) == 1:
                return [_reason(problem.message)]
            return [answer for content in contents for answer in classify([content])]
        return [_answer(outputs, row) for row in range(len(contents))]

    failed = 0
    for start in range(0, len(files), PREDICT_BATCH):
        answers: list[tuple[Path, dict[str, Any] | str]] = []
        readable: list[tuple[Path, bytes]] = []
        for file in files[start : start + PREDICT_BATCH]:
            try:
                content = file.read_bytes()
            except OSError as problem:
                answers.append((file, problem.strerror or str(problem)))
                continue
            if reason := why_unusable(content):
                answers.append((file, reason))
            else:
                readable.append((file, content))
        if readable:
            answered = classify([content for _, content in readable])
            answers += zip([file for file, _ in readable], answered, strict=True)
        for file, answer in answers:
            if isinstance(answer, str):
                failed += 1
                complain(f"{file}: {answer}")
            elif options.json:
                print(json.dumps({"file": str(file), **answer}, ensure_ascii=False))
            elif "objects" in answer:
                drawn = _draw(file, answer["objects"], options.run / "predictions")
                found = "; ".join(f"{one['label']} {one['score']:.2f}" for one in answer["objects"]) or "nothing"
                print(f"{file}  {found}  drawn: {drawn}")
            else:
                print(f"{file}  {answer['label']}  {answer['probability']:.4f}")
    return 1 if failed else 0


def _draw(file: Path, objects: list[dict[str, Any]], folder: Path) -> Path:
    """Write a picture with the boxes that were found in it."""
    import numpy as np
    import tensorflow as tf

    from common.drawing import draw_boxes
    from common.runs import write_atomically

    # As the model saw it: TensorFlow's decoder does not follow the camera's note to turn a picture.
    pixels = tf.io.decode_image(file.read_bytes(), channels=3, expand_animations=False).numpy()
    names = sorted({one["label"] for one in objects})
    picture = draw_boxes(
        pixels,
        np.array([one["box"] for one in objects]).reshape(-1, 4),
        np.array([names.index(one["label"]) for one in objects], int),
        names,
        np.array([one["score"] for one in objects]),
    )
    return write_atomically(folder / f"{file.name}.png", lambda partial: picture.save(partial, "PNG"))


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a text is too long for a name, or holds what no name may
        return False


def _predict_texts(signature, texts: list[str], as_json: bool) -> int:
    import tensorflow as tf

    for start in range(0, len(texts), PREDICT_BATCH):
        some = texts[start : start + PREDICT_BATCH]
        said = signature(text=tf.constant([text.encode("utf-8", "replace") for text in some]))
        outputs = {name: value.numpy() for name, value in said.items()}
        for row, text in enumerate(some):
            answer = _answer(outputs, row)
            if as_json:
                print(json.dumps({"text": text, **answer}, ensure_ascii=False))
            else:
                print(f"{text!r}  {answer['label']}  {answer['probability']:.4f}")
    return 0


def newest_export(run: Path, name: str | None) -> Path:
    """Return the folder of the highest version that a run exported.

    Raises:
        UserError: there is none, or several models and no name.
    """
    if not run.is_dir():
        raise UserError(f"there is no folder {run}. Give the --out of `python -m recipes run`.")
    pattern = f"serving/{name or '*'}/*/saved_model.pb"
    versions = [file.parent for file in run.glob(pattern) if file.parent.name.isdecimal()]
    # By number, not by text: version 10 is newer than version 9. Of each name the last one stays.
    versions.sort(key=lambda version: int(version.name))
    newest = {version.parent.name: version for version in versions}
    if not newest:
        raise UserError(f"{run} holds no export: nothing matches {pattern}. Let the run finish first.")
    if len(newest) > 1:
        choices = ", ".join(f"--name {key}" for key in sorted(newest))
        raise UserError(f"{run} holds the exports of several recipes. Add one of: {choices}")
    return next(iter(newest.values()))


def _answer(outputs: dict[str, Any], row: int) -> dict[str, Any]:
    if "boxes" in outputs:
        found = zip(
            *(outputs[name][row][: outputs["count"][row]] for name in ("labels", "scores", "boxes")), strict=True
        )
        return {
            "objects": [
                {"label": label.decode(), "score": float(score), "box": [round(float(side), 1) for side in box]}
                for label, score, box in found
            ]
        }
    probabilities = [float(value) for value in outputs["probabilities"][row]]
    names = [name.decode() for name in outputs["class_names"][row]]
    return {
        "label": outputs["label"][row].decode(),
        "probability": max(probabilities),
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }


def _reason(message: str) -> str:
    """The one line of a TensorFlow graph error that tells what went wrong."""
    boilerplate = ("Graph execution error", "Detected at node", "<stack traces", "]]")
    lines = [line.rpartition("}}")[2].strip() or line.strip() for line in message.splitlines()]
    telling = [line for line in lines if line and not line.startswith(boilerplate)]
    return telling[0] if telling else message


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Keep what TensorFlow's native code says at its import away from the user, unless the import fails.

    TF_CPP_MIN_LOG_LEVEL does not reach these lines (oneDNN, CUDA): they are written before it is read. With
    TF_CPP_MIN_LOG_LEVEL=0 or 1 nothing is kept away.
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
            if "tensorflow" in sys.modules:  # the last noisy step is the first look for a GPU
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
    """Print one error on stderr, in red where somebody watches."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error: {problem}{plain}", file=sys.stderr)
