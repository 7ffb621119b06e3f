"""The command that converts the export of a run for phones and small servers, and proves what comes out."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import runs
from common.errors import UserError
from common.specs import check_choice, check_installed
from recipes.execution import complain, newest_export, quiet_tensorflow

# What each form needs beside TensorFlow, as it is imported.
PACKAGES = {"litert": ("ai_edge_litert",), "onnx": ("onnx", "tf2onnx", "onnxruntime")}


def convert(arguments: list[str]) -> int:
    """Convert the export of a run on pictures to LiteRT or ONNX, and prove it on the test pictures."""
    parser = argparse.ArgumentParser(prog="python -m recipes convert", description=convert.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder that a run wrote (its --out)")
    parser.add_argument("--to", required=True, metavar="FORM", help="litert (TensorFlow Lite, for phones) or onnx")
    parser.add_argument("--int8", action="store_true", help="litert in 8 bits, classifiers only: a quarter of the size")
    parser.add_argument("--name", help="which export, when the run holds several")
    options = parser.parse_args(arguments)
    check_choice("--to", options.to, tuple(PACKAGES))
    if options.int8 and options.to != "litert":
        raise UserError(
            f"--int8 is offered for litert alone. Received: --to {options.to}. Type: --to litert --int8, or --to onnx."
        )
    version = newest_export(options.run, options.name)
    config, metrics = _read_run(options.run)
    for package in PACKAGES[options.to]:
        check_installed(f"--to {options.to}", package, "requirements-convert.txt")

    with quiet_tensorflow():
        from common import converting, detection_converting
        from common.data import box_images, images
    loaded = converting.load_to_convert(version)
    size, class_names = converting.size_and_class_names(loaded)
    detector = converting.what_it_gives(loaded) == "candidates"
    if detector and options.int8:
        raise UserError("--int8 is offered for classifiers. Received: the run of a detector. Type: --to litert.")
    resize = "letterbox" if detector else config.get("resize", "crop")
    folder = options.run / "converted" / ("litert_int8" if options.int8 else options.to)
    file = folder / ("model.onnx" if options.to == "onnx" else "model.tflite")

    # demo and tfds: write their pictures anew, and the run's own stay as they are.
    with tempfile.TemporaryDirectory() as scratch:
        data = _pictures_of(options.run, config, metrics["counts"], class_names, Path(scratch), detector)

        def pixels_of(paths: Sequence[str], batch: int) -> Iterable:
            return images.image_batches(paths, size, batch, resize=resize).as_numpy_iterator()

        began = time.monotonic()
        with runs.room_for("the converted model", folder, 2 * converting.saved_model_bytes(version)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "conversion.json").unlink(missing_ok=True)  # it tells of the model that is replaced now
            if options.int8:
                some = converting.choose_to_calibrate(data.train.paths, config.get("seed", 0))
                print(f"calibrating with {len(some):,} pictures of the training part ...", flush=True)
            with quiet_tensorflow():
                function = converting.with_constant_weights(loaded)
                if options.to == "onnx":
                    model = converting.to_onnx(function)
                elif options.int8:
                    model = converting.to_litert_int8(function, lambda: pixels_of(some, 1))
                else:
                    model = converting.to_litert(function)
                beside = {}
                if options.int8:
                    beside = {"float_bytes": len(converting.to_litert(function)), "calibration_pictures": len(some)}
            runs.write_atomically(file, lambda partial: partial.write_bytes(model))
        seconds = time.monotonic() - began

        print(f"asking it and the SavedModel about {len(data.test):,} test pictures ...", flush=True)
        threads = os.cpu_count() or 1
        with quiet_tensorflow():
            run_by = converting.open_onnx if options.to == "onnx" else converting.open_litert
            ask = run_by(model, threads)
        saved = converting.ask_saved_model(loaded)
        if detector:
            letterboxed = box_images.evaluation_batches(data.test, size, 8).as_numpy_iterator()
            proof = detection_converting.prove_conversion(saved, ask, (pixels for pixels, _, _ in letterboxed))
            passed = detection_converting.passes(proof)
        else:
            proof = converting.prove_conversion(saved, ask, pixels_of(data.test.paths, 32), data.test.labels)
            passed = converting.passes(proof, options.int8)

    takes = "uint8" if options.int8 else "float32"
    result = {
        "kind": folder.name,
        "from": str(version.relative_to(options.run)),
        "takes": f"{takes} [batch, {size[0]}, {size[1]}, 3], RGB, 0 to 255; resize: {resize}",
        **proof,
        "passed": passed,
        "bytes": len(model),
        "saved_model_bytes": converting.saved_model_bytes(version),
        **beside,
        "threads": threads,
        "seconds": round(seconds, 2),
        "data": config["data"],
        "versions": runs.versions() | _versions_of(options.to),
    }
    with runs.room_for("what belongs to the converted model", folder):
        one_a_line = "".join(" ".join(name.split()) + "\n" for name in class_names)
        (folder / "labels.txt").write_text(one_a_line, encoding="utf-8")
        if detector:
            usage = detection_converting.how_to_use(file.name, size, len(class_names))
        else:
            usage = converting.how_to_use(file.name, takes, size, resize, len(class_names))
        (folder / "README.md").write_text(usage, encoding="utf-8")
        runs.write_json(folder / "conversion.json", result)
        results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.parent.glob("*/conversion.json"))]
        shown = converting.show_in_report(options.run / "report.html", results)
    for heading, text in converting.table([result])[0].items():
        print(f"  {heading:20}{text}")
    print(f"  {'file':20}{file}" + (f"\n  {'report':20}{options.run / 'report.html'}" if shown else ""))
    if not passed:
        complain(_what_failed(proof, options.int8, file))
    return 0 if passed else 1


def _read_run(run: Path) -> tuple[dict, dict]:
    try:
        config, metrics = (json.loads((run / name).read_text("utf-8")) for name in ("config.json", "metrics.json"))
    except OSError as problem:
        raise UserError(
            f"{run} holds no finished run ({Path(problem.filename).name}: {problem.strerror}). Let it finish first: "
            f"python -m recipes run NAME --resume {run}"
        ) from problem
    except ValueError as problem:
        raise UserError(f"{run} cannot be read: {problem}. Give the --out of a finished run.") from problem
    if "data" not in config or "counts" not in metrics:
        raise UserError(f"{run} is no run on labelled pictures: its config.json names no data. Give one that is.")
    return config, metrics


def _pictures_of(run: Path, config: dict, counts: dict, class_names: list[str], scratch: Path, detector: bool):
    """Split the data of a run again, and refuse what is not the same any more."""
    from common.data.box_sets import load_box_set
    from common.data.image_sets import load_image_set

    settings = {name: config[name] for name in ("limit", "val_share") if name in config}
    if detector:
        settings["class_names"] = config.get("class_names") or None
    try:
        data = (load_box_set if detector else load_image_set)(config["data"], scratch, **settings)
    except UserError as problem:
        raise UserError(
            f"The pictures of {run} are needed, to calibrate and to prove, and are not where they were "
            f"(--data {config['data']}, as seen from {Path.cwd()}): {problem} Put them back, or type this where the "
            f"run was started."
        ) from problem
    if data.counts() != counts or list(data.class_names) != class_names:
        raise UserError(
            f"The pictures in --data {config['data']} are not those of {run} any more. Then: {counts}, classes "
            f"{', '.join(class_names[:5])}; now: {data.counts()}, classes {', '.join(data.class_names[:5])}. Put them "
            f"back, or run the recipe again."
        )
    return data


def _versions_of(form: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name.replace("_", "-")) for name in PACKAGES[form]}


def _what_failed(proof: dict, int8: bool, file: Path) -> str:
    """Say why a conversion must not be used."""
    from common.converting import FLOAT_TOLERANCE, INT8_AGREEMENT

    if proof["batch_max_abs_diff"] > FLOAT_TOLERANCE:
        found = f"answers a picture alone otherwise than in a batch (by {proof['batch_max_abs_diff']:.1e})"
    elif int8:
        found = f"gives {proof['agreement']:.4f} of the test pictures the same label; {INT8_AGREEMENT} are wanted"
    else:
        found = (
            f"agrees on {proof['agreement']:.4f} of the answers (1 is wanted), with scores up to "
            f"{proof['max_abs_diff']:.1e} away (a classifier's may be {FLOAT_TOLERANCE:.0e} away)"
        )
    advice = " The float one is exact: --to litert." if int8 else ""
    return f"the proof failed: {file} {found}. Do not use it.{advice}"
