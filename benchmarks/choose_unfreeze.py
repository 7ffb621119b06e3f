"""Choose what `--unfreeze auto` does, on parts of training splits: no test image is read.

    python benchmarks/prepare_data.py --out ../prepared_data
    python benchmarks/choose_unfreeze.py              # continues where it was stopped

Of each data set, a third of the training split becomes a development split, in place of the test split. For each
START_PENALTY of the head (common/linear_head.py), the source is fine-tuned as the recipe does; then the accuracy on the
development split is measured at each share of the way from the pretrained to the fine-tuned weights, and of what the
rule would keep that allows so many standard errors (common/classification/choice.py). Writes
benchmarks/results/unfreeze_choice.json; tests/classification/test_choice.py compares the constants with it.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from provenance import commit  # noqa: E402 (beside this script)
from unfreeze_policies import GROUPS, IMAGE_SIZE, SETS, SIZES  # noqa: E402

from common import linear_head  # noqa: E402
from common.classification.choice import SHARES, within_standard_errors  # noqa: E402
from common.files import write_json  # noqa: E402
from common.images.sources import load_source  # noqa: E402
from common.runs import Run  # noqa: E402
from recipes.image_classification import recipe  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "unfreeze_choice.json"
ERRORS, MOST = (0, 0.5, 1, 2), 600
SEEDS = {0.3: (0, 1, 2), 0.03: (0,), 3.0: (0,)}  # of each penalty


def without_test(name: str, folder: Path, seed: int) -> Path:
    """Write a table of the training images of a data set, a third of them as the test split; return its path."""
    config = recipe.Config(data=SETS[name], group=GROUPS.get(name), out=str(folder / "whole"))
    data, rng = recipe.load_data(config), np.random.default_rng(seed)
    paths, pattern = list(data.train.paths), GROUPS.get(name, "(.*)")
    groups = np.array([re.search(pattern, Path(path).name)[1] for path in paths])  # who belongs together stays together
    names = rng.permutation(np.unique(groups))
    held_out = set(names[: len(names) // 3])
    table = folder / "train.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "group"])
        for place in rng.permutation(len(paths))[: int(1.5 * MOST)]:
            split = "test" if groups[place] in held_out else "train"
            writer.writerow([paths[place], data.class_names[data.train.labels[place]], split, groups[place]])
    return table


def measure(name: str, size: str, penalty: float, seed: int) -> dict:
    """Fine-tune from a head of this penalty; return development accuracy by share, and by rule."""
    with tempfile.TemporaryDirectory() as folder:
        config = recipe.Config(
            data=f"csv:{without_test(name, Path(folder), seed)}", image_size=IMAGE_SIZE, seed=seed, unfreeze="auto",
            out=f"{folder}/out", limit=SIZES["all"]["limit"],
        )  # fmt: skip
        run, data = Run(config), recipe.load_data(config)
        if size != "all":  # some classes are smaller here
            shots = min(SIZES[size]["shots"], int(np.bincount(data.train.labels).min()))
            config = dataclasses.replace(config, shots=shots)
            data = recipe.load_data(config)
        keras.utils.set_random_seed(seed)
        source = load_source(config.source, config.image_size)
        of = recipe.extract_features(source, data, config)
        model = recipe.build_model(source, len(data.class_names), config)
        head = model.get_layer("head")
        linear_head.START_PENALTY = penalty
        weights = recipe.sample_weights(data, config)
        _, val, start = linear_head.fit_final_head(
            head, of["train"], data.train.labels, of["val"][0], data.val.labels,
            sample_weights=weights, val_weights=recipe.sample_weights(data, config, data.val.labels),
        )  # fmt: skip
        found = {0.0: (val, linear_head.predict_head(head, of["test"][0]))}
        head.set_weights(start)
        before = model.get_weights()
        recipe.fine_tune(run, source, model, data, seed, val)
        after = model.get_weights()
        for share in SHARES:
            model.set_weights([(1 - share) * one + share * two for one, two in zip(before, after, strict=True)])
            found[share] = tuple(recipe.predict(source, model, part.paths, config) for part in (data.val, data.test))
        accuracy = {s: float(np.mean(test.argmax(axis=1) == data.test.labels)) for s, (_, test) in found.items()}
        vals = {share: val for share, (val, _) in found.items()}
        rules = {errors: accuracy[within_standard_errors(data.val.labels, vals, errors)[0]] for errors in ERRORS}
    return {"counts": data.counts(), "by_share": accuracy, "by_standard_errors": rules}


def summary(rows: dict[str, dict]) -> dict:
    """Return the mean accuracy, and the least gain over the frozen source, of each rule, and of each penalty.

    Rules are compared on all rows with the penalty 0.3; penalties on the seeds that all of them have.
    """
    found = {"by_standard_errors": {}, "by_share": {}, "by_penalty": {}}
    own = [row for key, row in rows.items() if "| 0.3 |" in key]
    for kind in ("by_standard_errors", "by_share") if own else ():
        for name in own[0][kind]:
            gains = [row[kind][name] - row["by_share"]["0.0"] for row in own]
            found[kind][name] = {
                "accuracy": round(statistics.mean(row[kind][name] for row in own), 4),
                "least_gain_over_frozen": round(min(gains), 4),
            }
    for penalty in SEEDS:
        fitted = [row["by_standard_errors"]["1"] for key, row in rows.items() if key.endswith(f"| {penalty} | 0")]
        if len(fitted) == len(SETS) * len(SIZES):
            found["by_penalty"][str(penalty)] = round(statistics.mean(fitted), 4)
    return found


def main() -> None:
    """Measure what is missing, and write all of it after each."""
    rows = json.loads(OUT.read_text("utf-8"))["rows"] if OUT.exists() else {}
    about = {"command": "python benchmarks/choose_unfreeze.py", "image_size": IMAGE_SIZE}
    for penalty, seeds in SEEDS.items():
        for seed, name, size in itertools.product(seeds, SETS, SIZES):
            if (key := f"{name} | {size} | {penalty} | {seed}") not in rows:
                rows[key] = json.loads(json.dumps(measure(name, size, penalty, seed)))  # with texts as keys
                print(key, rows[key]["by_share"], rows[key]["by_standard_errors"], flush=True)
                write_json(OUT, {**about, "commit": commit(ROOT), "mean": summary(rows), "rows": rows})
                keras.utils.clear_session()


if __name__ == "__main__":
    main()
