"""Run the exported model of a run on files or texts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from recipes.commands._discovery import load_only, recipe_of_run
from recipes.commands._execution import complain, importing_tensorflow, newest_export, reason_of

TAKES = "RUN FILE..."


def main(arguments: list[str], root: Path) -> int:
    """Predict files or texts with the newest export of a run."""
    parser = argparse.ArgumentParser(prog="python -m recipes predict", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder that a run wrote (its --out)")
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_TEXT", help="files of images or sounds, or texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object per input, with all probabilities")
    parser.add_argument("--name", help="which export, if the run holds several")
    options = parser.parse_args(arguments)
    export = newest_export(options.run, options.name)
    recipe = recipe_of_run(root, options.run, export)
    takes = recipe.literal("INPUT")
    if takes is None:
        raise UserError(f"predict does not support {recipe.name}: its recipe.py has no INPUT.")
    absent = [name for name in options.inputs if takes != "text" and not _is_file(name)]
    if absent:  # reported before importing TensorFlow, which takes seconds
        shown = ", ".join(name[:200] for name in absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(f"{len(absent)} of {len(options.inputs)} are not files: {shown}. Name existing files.")
    with importing_tensorflow():
        import tensorflow as tf

        predictor = load_only(recipe.file, "PREDICTOR", "a Predictor").PREDICTOR
    try:
        # The loaded object must stay in a variable: its signatures reference its weights only weakly.
        loaded = tf.saved_model.load(str(export))
    except (OSError, ValueError, tf.errors.OpError) as problem:
        raise UserError(f"{export} cannot be loaded: {problem}. Run the recipe again.") from problem
    signature = loaded.signatures.get("serving_default")
    found = signature.structured_input_signature[1] if signature else {}
    gives = signature.structured_outputs if signature else {}
    if set(found) != {takes} or not set(predictor.answers.gives) <= set(gives):
        raise UserError(
            f"{export} is not an export of {recipe.name}: it takes {', '.join(found) or 'nothing'} and returns "
            f"{', '.join(gives) or 'nothing'}. Required: {takes} and {', '.join(predictor.answers.gives)}."
        )
    return _predict(signature, predictor, options)


def _predict(signature, predictor, options) -> int:
    """Print a prediction per input; return 1 where one of them failed."""
    import tensorflow as tf

    def ask(contents: list[bytes]) -> list[dict[str, Any] | str]:
        """Return one prediction per input, or the reason why it failed, as text."""
        try:
            outputs = signature(**{predictor.takes: tf.constant(contents)})
            outputs = {name: value.numpy() for name, value in outputs.items()}
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as problem:
            # One bad file fails its whole batch, and the error does not name it: send one by one.
            if len(contents) == 1:
                return [reason_of(problem.message)]
            return [answer for content in contents for answer in ask([content])]
        return [predictor.answers.parse(outputs, row) for row in range(len(contents))]

    failed, inputs = 0, options.inputs
    places = _places(inputs, options.run / "predictions") if predictor.takes != "text" else {}
    for start in range(0, len(inputs), predictor.batch):
        answers: dict[int, dict[str, Any] | str] = {}
        contents: dict[int, bytes] = {}
        for number, name in enumerate(inputs[start : start + predictor.batch]):
            try:
                content = predictor.read(name, options.run, places.get(name))
            except UserError as problem:
                answers[number] = str(problem).removeprefix(f"{name} ")
                continue
            (contents if isinstance(content, bytes) else answers)[number] = content
        answers |= zip(contents, ask(list(contents.values())) if contents else (), strict=True)
        for number, answer in sorted(answers.items()):
            name = inputs[start + number]
            if isinstance(answer, str):
                failed += 1
                complain(f"{name}: {answer}")
            elif options.json:
                key = "text" if predictor.takes == "text" else "file"
                print(json.dumps({key: name, **answer}, ensure_ascii=False))
            else:
                typed = repr(name) if predictor.takes == "text" else name
                print(predictor.answers.show(answer, typed, places.get(name)))
    return 1 if failed else 0


def _places(names: list[str], folder: Path) -> dict[str, Path]:
    """Return the path without suffix for files written about each input; equal names get a number."""
    names = list(dict.fromkeys(names))
    ends = [Path(name).name for name in names]
    return {
        name: folder / (end if ends.count(end) == 1 else f"{number}_{end}")
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1)
    }


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a text may be too long for a file name, or hold invalid characters
        return False
