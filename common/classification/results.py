"""The end of a classification run: measure on the test split, then `common.results`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common import results
from common.classification import metrics, report
from common.reporting import lower_first
from common.results import Outcome


@dataclass(frozen=True)
class Predictions:
    """What one seed predicts for the test split.

    Attributes:
        probabilities: of its model, float32 [n, classes].
        baselines: of each baseline that depends on the seed, float32 [n, classes].
    """

    probabilities: np.ndarray
    baselines: dict[str, np.ndarray] = field(default_factory=dict)


def conclude(
    recipe: str, config, data, outcome: Outcome, *, probabilities: np.ndarray,
    baselines: dict[str, tuple[np.ndarray, float]], titles: Mapping[str, str], what: str,
    preview: Callable[[Sequence[int]], list[dict | None]], advice: Sequence[str] = (), explanation=None,
    more: Mapping | None = None, seeds: Mapping[int, Predictions] | None = None,
) -> dict:  # fmt: skip
    """Measure on the test split and write the files of a finished run.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: a labelled set with `test.labels`, `class_names`, `skipped`, `counts()` and `advice()`.
        outcome: of the run.
        probabilities: of the exported model on the test split, float32 [n, classes].
        baselines: for each name its probabilities on the test split and its seconds.
        titles: of the baselines, by name.
        what: the examples in one word, such as images.
        preview: of test examples, as for `report.write_report`.
        advice: sentences to add to the findings.
        explanation: of the model and its data: `numbers` for metrics.json, `sentences`, `reliability` as returned by
            `calibration.reliability`, and `chapter()` of the report; None omits it.
        more: further entries of metrics.json.
        seeds: the predictions of each seed; `probabilities` are those of the exported one.

    Returns:
        Contents of metrics.json.
    """
    labels = data.test.labels
    everybody = list((seeds or {config.seed: Predictions(probabilities)}).values())
    of_baselines = {
        name: [one.baselines.get(name, theirs) for one in everybody] for name, (theirs, _) in baselines.items()
    }
    scores = {
        "test": metrics.classification_metrics(labels, probabilities),
        "baselines": {
            name: metrics.classification_metrics(labels, theirs) | {"seconds": round(spent, 2)}
            for name, (theirs, spent) in baselines.items()
        },
    }
    if len(everybody) > 1:
        scores |= scores_of_seeds(labels, seeds)
    scores |= (explanation.numbers if explanation else {}) | (more or {})
    sentences = [
        *(describe_seeds(scores, titles) if len(everybody) > 1 else ()),
        *metrics.findings(labels, [one.probabilities for one in everybody], of_baselines, titles),
        *(explanation.sentences if explanation else ()),
        *data.advice(),
        *advice,
    ]

    def write_files(out, **shared) -> None:
        shared |= {"class_names": data.class_names, "titles": titles}
        report.write_report(
            out, history=outcome.history, labels=labels, probabilities=probabilities,
            per_class=metrics.per_class_table(labels, probabilities, data.class_names), skipped=data.skipped,
            what=what, preview=preview, reliability=explanation.reliability if explanation else (),
            chapters=[explanation.chapter()] if explanation else (), **shared,
        )  # fmt: skip
        report.write_model_card(out, source_card=outcome.source_card, **shared)

    return results.conclude(
        recipe, config, outcome, scores, counts=data.counts(), skipped=data.skipped, sentences=sentences,
        write_files=write_files, table=lambda found: metrics.table(found, titles),
        proved="answers all {examples} test examples as evaluated (largest difference {max_abs_diff:.1e})",
    )  # fmt: skip


def scores_of_seeds(labels: np.ndarray, seeds: Mapping[int, Predictions]) -> dict:
    """Return the scores of each seed, their mean and their standard deviation, as in metrics.json.

    Args:
        labels: of the test split, int [n].
        seeds: the predictions of each.

    Returns:
        {"seeds": {seed: {"test": scores, "baselines": {name: scores}}}, "mean": likewise, "std": likewise}.
    """
    found = {
        str(seed): {
            "test": metrics.point_scores(labels, one.probabilities),
            "baselines": {name: metrics.point_scores(labels, theirs) for name, theirs in one.baselines.items()},
        }
        for seed, one in seeds.items()
    }

    def over(reduce: Callable, values: list):
        if isinstance(values[0], dict):
            return {name: over(reduce, [value[name] for value in values]) for name in values[0]}
        return float(reduce(values))

    every = list(found.values())
    return {"seeds": found, "mean": over(np.mean, every), "std": over(lambda values: np.std(values, ddof=1), every)}


def describe_seeds(scores: Mapping, titles: Mapping[str, str]) -> list[str]:
    """Return a sentence with the mean accuracy of all seeds ± its standard deviation, and those of the baselines."""
    rows = {"result": (scores["mean"]["test"], scores["std"]["test"])} | {
        lower_first(titles.get(name, name)): (mean, scores["std"]["baselines"][name])
        for name, mean in scores["mean"]["baselines"].items()
    }
    each = ", ".join(f"{name} {mean['accuracy']:.3f} ± {std['accuracy']:.3f}" for name, (mean, std) in rows.items())
    return [
        f"Accuracy in the mean of the seeds {', '.join(scores['seeds'])}, ± standard deviation: {each}. The exported "
        "model, whose numbers follow, is that of the seed which is best on validation."
    ]
