"""Convert the export of a run to LiteRT (float or --int8) or ONNX, for phones and small servers, and prove it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
import time
from pathlib import Path

from common import files, runs
from common.errors import UserError
from common.flags import check_choice, check_installed
from recipes.commands._discovery import recipe_of_run
from recipes.commands._execution import complain, importing_tensorflow, newest_export, quiet_tensorflow

TAKES = "RUN --to FORM"
# The packages that each form needs besides TensorFlow, by import name.
PACKAGES = {"litert": ("ai_edge_litert",), "onnx": ("onnx", "tf2onnx", "onnxruntime")}


def main(arguments: list[str], root: Path) -> int:
    """Convert the export of an image recipe to LiteRT or ONNX, and prove it on the test images."""
    parser = argparse.ArgumentParser(prog="python -m recipes convert", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder that a run wrote (its --out)")
    parser.add_argument("--to", required=True, metavar="FORM", help="litert (TensorFlow Lite, for phones) or onnx")
    parser.add_argument("--int8", action="store_true", help="litert in 8 bits, classifiers only: a quarter of the size")
    parser.add_argument("--name", help="which export, if the run holds several")
    options = parser.parse_args(arguments)
    check_choice("--to", options.to, tuple(PACKAGES))
    if options.int8 and options.to != "litert":
        raise UserError(
            f"--int8 is available for litert only. Received: --to {options.to}. Type: --to litert --int8, or --to onnx."
        )
    version = newest_export(options.run, options.name)
    recipe = recipe_of_run(root, options.run, version)
    config, metrics = _read_run(options.run)
    place = recipe.literal("CONVERTER")
    if place is None:
        raise UserError(f"The exports of {recipe.name} cannot be converted. Name the run of an image recipe.")
    for package in PACKAGES[options.to]:
        check_installed(f"--to {options.to}", package, "requirements-convert.txt")

    with importing_tensorflow():
        from common import converting

        module, _, name = place.partition(":")
        converter = getattr(importlib.import_module(module), name)
    loaded = converting.load_to_convert(version, converter.gives)
    size, class_names = converting.size_and_class_names(loaded)
    if options.int8 and converter.calibrate is None:
        raise UserError(f"--int8 is not available for {recipe.name}. Type: --to litert.")
    resize = converter.resize(config)
    folder = options.run / "converted" / ("litert_int8" if options.int8 else options.to)
    file = folder / ("model.onnx" if options.to == "onnx" else "model.tflite")

    # Generated and tfds images are written again, without changing those of the run.
    with tempfile.TemporaryDirectory() as scratch:
        data = _data_of(options.run, converter, config, metrics["counts"], class_names, Path(scratch), size)
        began = time.monotonic()
        with files.room_for("the converted model", folder, 2 * converting.saved_model_bytes(version)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "conversion.json").unlink(missing_ok=True)  # it describes the model that is replaced
            if options.int8:
                count, calibration = converter.calibrate(data, config.get("seed", 0))
                print(f"calibrating with {count:,} training images ...", flush=True)
            with quiet_tensorflow():
                function, beside = converting.with_constant_weights(loaded, converter.gives), {}
                if options.to == "onnx":
                    model = converting.to_onnx(function)
                elif options.int8:
                    model = converting.to_litert_int8(function, calibration)
                    beside = {"float_bytes": len(converting.to_litert(function)), "calibration_images": count}
                else:
                    model = converting.to_litert(function)
            files.write_atomically(file, lambda partial: partial.write_bytes(model))
        seconds = time.monotonic() - began

        print(f"comparing it with the SavedModel on {len(data.test):,} test images ...", flush=True)
        threads = os.cpu_count() or 1
        with quiet_tensorflow():
            ask = (converting.open_onnx if options.to == "onnx" else converting.open_litert)(model, threads)
        proof = converter.prove(converting.open_saved_model(loaded, converter.gives), ask, data, size)
    failure = converter.failure(proof, options.int8)

    takes = "uint8" if options.int8 else "float32"
    result = {
        "kind": folder.name,
        "from": str(version.relative_to(options.run)),
        "takes": f"{takes} [batch, {size[0]}, {size[1]}, 3], RGB, 0 to 255; resize: {resize}",
        **proof,
        "passed": not failure,
        "bytes": len(model),
        "saved_model_bytes": converting.saved_model_bytes(version),
        **beside,
        "threads": threads,
        "seconds": round(seconds, 2),
        "data": config["data"],
        "versions": runs.versions() | _versions_of(options.to),
    }
    with files.room_for("the files of the converted model", folder):
        one_a_line = "".join(" ".join(name.split()) + "\n" for name in class_names)
        (folder / "labels.txt").write_text(one_a_line, encoding="utf-8")
        usage = converter.how_to_use(file.name, takes, size, resize, len(class_names))
        (folder / "README.md").write_text(usage, encoding="utf-8")
        files.write_json(folder / "conversion.json", result)
        results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.parent.glob("*/conversion.json"))]
        shown = converting.show_in_report(options.run / "report.html", results)
    for heading, text in converting.table([result])[0].items():
        print(f"  {heading:20}{text}")
    print(f"  {'file':20}{file}" + (f"\n  {'report':20}{options.run / 'report.html'}" if shown else ""))
    if failure:
        advice = " The float one is exact: --to litert." if options.int8 else ""
        complain(f"the proof failed: {file} {failure}. Do not use it.{advice}")
        return 1
    return 0


def _read_run(run: Path) -> tuple[dict, dict]:
    try:
        config, metrics = (json.loads((run / name).read_text("utf-8")) for name in ("config.json", "metrics.json"))
    except OSError as problem:
        raise UserError(
            f"{run} holds no finished run ({Path(problem.filename).name}: {problem.strerror}). Let it finish first: "
            f"python -m recipes run NAME --resume {run}"
        ) from problem
    except ValueError as problem:
        raise UserError(f"{run} cannot be read: {problem}. Name the --out of a finished run.") from problem
    if "data" not in config or "counts" not in metrics:
        raise UserError(f"{run} is not a run on labelled images: its config.json names no data. Name one that is.")
    return config, metrics


def _data_of(run: Path, converter, config: dict, counts: dict, class_names: list[str], scratch: Path, size):
    """Split the data of a run again, and raise UserError where it has changed."""
    try:
        data = converter.load_data(config, scratch, size)
    except UserError as problem:
        raise UserError(
            f"The images of {run} are needed for calibration and proof, but were not found "
            f"(--data {config['data']}, from {Path.cwd()}): {problem} Restore them, or type this in the directory "
            f"where the run was started."
        ) from problem
    if data.counts() != counts or list(data.class_names) != class_names:
        raise UserError(
            f"The images in --data {config['data']} are no longer those of {run}. Then: {counts}, classes "
            f"{', '.join(class_names[:5])}; now: {data.counts()}, classes {', '.join(data.class_names[:5])}. Restore "
            f"them, or run the recipe again."
        )
    return data


def _versions_of(form: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name.replace("_", "-")) for name in PACKAGES[form]}
