"""Ask the export of a run about pictures, texts or sounds: what `python -m recipes predict` does."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common.errors import UserError
from recipes.execution import complain, newest_export, quiet_tensorflow, reason_of

BATCH, SOUNDS = 32, 4  # files of pictures, or texts, and of sounds that are asked about at once
LONG_SECONDS = 60.0  # a longer recording is read in windows, and its words get their times
_CLASSES, _BOXES, _SPEECH = (
    {"label", "probabilities", "class_names"},
    {"boxes", "labels", "scores", "count"},
    {"text", "confidence"},
)


def predict(arguments: list[str]) -> int:
    """Classify pictures, texts or sounds, find objects or write down what is said, with the newest export of a run."""
    parser = argparse.ArgumentParser(prog="python -m recipes predict", description=predict.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder that a run wrote (its --out)")
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_TEXT", help="files of pictures or sounds, or texts")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all probabilities")
    parser.add_argument("--name", help="which export, when the run holds several")
    options = parser.parse_args(arguments)
    export = newest_export(options.run, options.name)
    from common.data.audio import SOUND_SUFFIXES  # here: they import numpy, and `list` does without
    from common.data.image_rows import PICTURE_SUFFIXES

    files = (*PICTURE_SUFFIXES, *SOUND_SUFFIXES)
    absent = [name for name in options.inputs if Path(name).suffix.lower() in files and not _is_file(name)]
    if absent:  # told before the seconds of importing TensorFlow
        shown = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(f"{len(absent)} of {len(options.inputs)} are not files: {shown}. Name files that are there.")
    with quiet_tensorflow():
        import tensorflow as tf
    try:
        # The loaded object must stay in a variable: its signatures hold its weights only weakly.
        loaded = tf.saved_model.load(str(export))
    except (OSError, ValueError, tf.errors.OpError) as problem:
        raise UserError(f"{export} cannot be loaded: {problem}. Run the recipe again.") from problem
    signature = loaded.signatures.get("serving_default")
    takes = signature.structured_input_signature[1] if signature else {}
    gives = signature.structured_outputs if signature else {}
    known = any(names <= set(gives) for names in (_CLASSES, _BOXES, _SPEECH))
    if len(takes) != 1 or takes.keys() - {"image", "text", "audio"} or not known:
        raise UserError(
            f"{export} is no model of pictures, texts or sounds that predict knows: it takes "
            f"{', '.join(takes) or 'nothing'} and gives {', '.join(gives) or 'nothing'}. predict needs the export of a "
            f"recipe."
        )
    [what] = takes
    if what == "text":
        return _predict_texts(signature, options.inputs, options.json)
    if absent := [name for name in options.inputs if not _is_file(name)]:
        kind = "pictures" if what == "image" else "sounds"
        raise UserError(f"{absent[0][:200]!r} is no file; this model takes files of {kind}.")
    return _predict_files(signature, what, options)


def _predict_files(signature, what: str, options) -> int:
    """Print an answer for each file; 1 where one of them has none."""
    import tensorflow as tf

    def ask(contents: list[bytes]) -> list[dict[str, Any] | str]:
        """One answer a file; a text instead says why that file has none."""
        try:
            outputs = {name: value.numpy() for name, value in signature(**{what: tf.constant(contents)}).items()}
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as problem:
            # One bad file fails its whole batch, and the error does not say which: ask one by one.
            if len(contents) == 1:
                return [reason_of(problem.message)]
            return [answer for content in contents for answer in ask([content])]
        return [_answer(outputs, row) for row in range(len(contents))]

    failed, files = 0, [Path(name) for name in options.inputs]
    places, writes = _places(files, options.run / "predictions"), "text" in signature.structured_outputs
    size = BATCH if what == "image" else SOUNDS
    for start in range(0, len(files), size):
        answers: list[tuple[Path, dict[str, Any] | str]] = []
        readable: list[tuple[Path, bytes]] = []
        for file in files[start : start + size]:
            content = _picture(file) if what == "image" else _sound(file, options.run, writes, places[file])
            if isinstance(content, bytes):
                readable.append((file, content))
            else:
                answers.append((file, content))
        if readable:
            answers += zip([file for file, _ in readable], ask([content for _, content in readable]), strict=True)
        for file, answer in answers:
            if isinstance(answer, str):
                failed += 1
                complain(f"{file}: {answer}")
            elif options.json:
                print(json.dumps({"file": str(file), **answer}, ensure_ascii=False))
            else:
                print(_line(file, answer, places[file]))
    return 1 if failed else 0


def _line(file: Path, answer: dict[str, Any], place: Path) -> str:
    """Return an answer as people read it; boxes are drawn, and the words of a long recording written as subtitles."""
    if "objects" in answer:
        found = "; ".join(f"{one['label']} {one['score']:.2f}" for one in answer["objects"]) or "nothing"
        return f"{file}  {found}  drawn: {_draw(file, answer['objects'], place)}"
    if "text" in answer:
        written = f"  subtitles: {answer['subtitles']}" if "subtitles" in answer else ""
        return f"{file}  {answer['text']!r}  {answer['confidence']:.4f}{written}"
    return f"{file}  {answer['label']}  {answer['probability']:.4f}"


def _picture(file: Path) -> bytes | str:
    """Return the bytes of a picture, or why it cannot be used."""
    from common.data.images import why_unusable

    try:
        content = file.read_bytes()
    except OSError as problem:
        return problem.strerror or str(problem)
    return why_unusable(content) or content


def _sound(file: Path, run: Path, writes: bool, place: Path) -> bytes | str | dict[str, Any]:
    """Return a sound as the bytes of a WAV file, why it cannot be used, or of a long recording what is said in it."""
    import soundfile

    from common.speech_exporting import as_served_wav

    try:
        long = writes and soundfile.info(str(file)).duration > LONG_SECONDS
    except soundfile.SoundFileError:
        long = False  # what reads it below says what is wrong
    try:
        if long:
            return _words_of(file, run, place)
        with tempfile.TemporaryDirectory() as folder:
            return as_served_wav(file, Path(folder)).read_bytes()
    except UserError as problem:
        return str(problem).removeprefix(f"{file} ")


def _words_of(file: Path, run: Path, place: Path) -> dict[str, Any]:
    """Write down a long recording with the model of the run, which its export was proved to equal."""
    from common.long_sound import confidence_of, join_words, transcribe_long, write_srt
    from common.recognising import build_listener
    from common.speech_models import as_recogniser
    from common.speech_sources import load_speech_source

    recogniser = as_recogniser(load_speech_source(f"preset:{(run / 'preset').absolute()}"))
    characters = recogniser.characters
    words = transcribe_long(build_listener(recogniser), recogniser.config, characters, file)
    place.parent.mkdir(exist_ok=True)
    return {
        "text": join_words(words, characters),
        "confidence": confidence_of(words),
        "subtitles": str(write_srt(words, characters, Path(f"{place}.srt"))),
        "words": [vars(word) for word in words],
    }


def _draw(file: Path, objects: list[dict[str, Any]], place: Path) -> Path:
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
    return write_atomically(Path(f"{place}.png"), lambda partial: picture.save(partial, "PNG"))


def _places(files: list[Path], folder: Path) -> dict[Path, Path]:
    """Return the beginning of the path of what is written about each file; equal names get a number."""
    files = list(dict.fromkeys(files))
    names = [file.name for file in files]
    return {
        file: folder / (file.name if names.count(file.name) == 1 else f"{number}_{file.name}")
        for number, file in enumerate(files, 1)
    }


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a text is too long for a name, or holds what no name may
        return False


def _predict_texts(signature, texts: list[str], as_json: bool) -> int:
    import tensorflow as tf

    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        said = signature(text=tf.constant([text.encode("utf-8", "replace") for text in some]))
        outputs = {name: value.numpy() for name, value in said.items()}
        for row, text in enumerate(some):
            answer = _answer(outputs, row)
            if as_json:
                print(json.dumps({"text": text, **answer}, ensure_ascii=False))
            else:
                print(f"{text!r}  {answer['label']}  {answer['probability']:.4f}")
    return 0


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
    if "text" in outputs:
        return {"text": outputs["text"][row].decode("utf-8"), "confidence": float(outputs["confidence"][row])}
    probabilities = [float(value) for value in outputs["probabilities"][row]]
    names = [name.decode() for name in outputs["class_names"][row]]
    return {
        "label": outputs["label"][row].decode(),
        "probability": max(probabilities),
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }
