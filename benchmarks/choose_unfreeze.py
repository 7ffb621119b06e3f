"""Choose what `--unfreeze auto` does, on parts of training splits: no test image is read.

    python benchmarks/prepare_data.py --out ../prepared_data
    python benchmarks/choose_unfreeze.py              # continues where it was stopped

Of each data set, a third of the training split becomes a development split, in place of the test split. From the head
of each START_PENALTY (common/linear_head.py), the source is fine-tuned as the recipe does. At each share of the way
from the pretrained to the fine-tuned weights, the head is fitted anew and measured on the development split, as is what
each rule would keep (common/classification/choice.py); at the end of the way, with each REFIT_PENALTY too. Writes
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
from common.classification.choice import within_standard_errors  # noqa: E402
from common.files import write_json  # noqa: E402
from common.images import features  # noqa: E402
from common.images.sources import load_source  # noqa: E402
from common.runs import Run  # noqa: E402
from recipes.image_classification import recipe  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "unfreeze_choice.json"
SHARES, MOST = (0.25, 0.5, 0.75, 1.0), 600
PREFERENCES = {"frozen first": (0.0, 0.5, 1.0), "half first": (0.5, 1.0, 0.0), "fine-tuned first": (1.0, 0.5, 0.0)}
ERRORS, FEWEST_ERRORS = (0, 0.5, 1, 2), (0, 5)
REFIT_PENALTIES = (0.01, 0.1, 1.0)  # on the draws of seed 0 from a head of the first penalty
SEEDS = {3.0: (0, 1, 2), 30.0: (0,), 0.3: (0,)}  # of each penalty


def without_test(name: str, folder: Path, seed: int) -> Path:
    """Write a table of the training images of a data set, a third of them as the test split; return its path."""
    config = recipe.Config(data=SETS[name], group=GROUPS.get(name), out=str(folder / "whole"))
    data, rng = recipe.load_data(config)[0], np.random.default_rng(seed)
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
        run, data = Run(config), recipe.load_data(config)[0]
        if size != "all":  # some classes are smaller here
            shots = min(SIZES[size]["shots"], int(np.bincount(data.train.labels).min()))
            config = dataclasses.replace(config, shots=shots)
            data = recipe.load_data(config)[0]
        keras.utils.set_random_seed(seed)
        source = load_source(config.source, config.image_size)
        of, _ = recipe.extract_features(source, data, config)
        model = recipe.build_model(source, len(data.class_names), config)
        head, labels = model.get_layer("head"), data.val.labels
        weights = {
            "sample_weights": recipe.weights_of_images(data, config),
            "val_weights": recipe.weights_of_images(data, config, labels),
        }
        linear_head.START_PENALTY = penalty
        history, val, start = linear_head.fit_final_head(
            head, of["train"], data.train.labels, of["val"][0], labels, **weights, val_groups=data.val.groups
        )
        found, by_penalty = {0.0: (val, linear_head.predict_head(head, of["test"][0]))}, {}
        head.set_weights(start)
        before = model.get_weights()
        recipe.fine_tune(run, source, model, data, seed, history)
        after = model.get_weights()
        not_refitted = recipe.predict(model, data)
        for share in SHARES:
            model.set_weights([(1 - share) * one + share * two for one, two in zip(before, after, strict=True)])
            chosen = linear_head.chosen_penalty(history)
            val = features.refit_head(head, source, data, cache=run.out / "features", penalty=chosen, **weights)
            found[share] = val, recipe.predict(model, data)
        for candidate in REFIT_PENALTIES if seed == 0 and penalty == next(iter(SEEDS)) else ():
            features.REFIT_PENALTY = candidate  # the features of the end of the way are stored
            features.refit_head(head, source, data, cache=run.out / "features", penalty=chosen, **weights)
            by_penalty[candidate] = accuracy_of(recipe.predict(model, data), data)
        features.REFIT_PENALTY = linear_head.REFIT_PENALTY
    accuracy = {share: accuracy_of(test, data) for share, (_, test) in found.items()}
    wrong = int(np.sum(found[0.0][0].argmax(axis=1) != labels))
    rules = {}
    for (name, order), errors, fewest in itertools.product(PREFERENCES.items(), ERRORS, FEWEST_ERRORS):
        kept = within_standard_errors(labels, {share: found[share][0] for share in order}, errors)[0]
        rules[f"{name}, {errors} SE, {fewest} errors"] = accuracy[kept if wrong >= fewest else 0.0]
    return {
        "counts": data.counts(),
        "frozen_errors_on_val": wrong,
        "by_share": accuracy,
        "all_without_new_head": accuracy_of(not_refitted, data),
        "by_refit_penalty": by_penalty,
        "by_rule": rules,
    }


def accuracy_of(probabilities: np.ndarray, data) -> float:
    """Return the accuracy of probabilities for the development split, which stands in place of the test split."""
    return float(np.mean(probabilities.argmax(axis=1) == data.test.labels))


def summary(rows: dict[str, dict]) -> dict:
    """Return the mean accuracy and the least gain over the frozen source, by penalty and by share or rule.

    The first penalty is summarised on all its draws, and each other one beside it on the draws that both have.
    """
    of = {penalty: {key.partition(" | ")[2]: row for key, row in rows.items()
                    if float(key.partition(" | ")[0]) == penalty} for penalty in SEEDS}  # fmt: skip
    first, *others = SEEDS
    found = {f"all draws, {first}": means(list(of[first].values()))}
    for penalty in others:
        both = sorted(of[first].keys() & of[penalty].keys())
        for one in (first, penalty):
            found[f"draws of {penalty}, {one}"] = means([of[one][draw] for draw in both])
    measured = [row["by_refit_penalty"] for row in of[first].values() if row.get("by_refit_penalty")]
    found["refit penalty"] = {"draws": len(measured)} | {
        name: mean_of(row[name] for row in measured) for name in (measured[0] if measured else ())
    }
    return found


def means(rows: list[dict]) -> dict:
    """Return the mean accuracy and the least gain over the frozen source of each share and each rule."""
    found = {"draws": len(rows)}
    if rows:
        found["1.0 without a new head"] = {"accuracy": mean_of(row["all_without_new_head"] for row in rows)}
    for kind in ("by_share", "by_rule"):
        for name in rows[0][kind] if rows else ():
            gains = [row[kind][name] - row["by_share"]["0.0"] for row in rows]
            found[name] = {
                "accuracy": mean_of(row[kind][name] for row in rows),
                "least_gain_over_frozen": round(min(gains), 4),
            }
    return found


def mean_of(values) -> float:
    """Return the mean, rounded."""
    return round(statistics.mean(values), 4)


def main() -> None:
    """Measure what is missing, and write all of it after each."""
    rows = json.loads(OUT.read_text("utf-8"))["rows"] if OUT.exists() else {}
    about = {"command": "python benchmarks/choose_unfreeze.py", "image_size": IMAGE_SIZE}
    for penalty, seed, size, name in itertools.product(SEEDS, (0, 1, 2), SIZES, SETS):
        if seed in SEEDS[penalty] and (key := f"{penalty} | {name} | {size} | {seed}") not in rows:
            rows[key] = json.loads(json.dumps(measure(name, size, penalty, seed)))  # with texts as keys
            print(key, rows[key]["by_share"], flush=True)
            write_json(OUT, {**about, "commit": commit(ROOT), "mean": summary(rows), "rows": rows})
            keras.utils.clear_session()


if __name__ == "__main__":
    main()
