"""The end of a classification run: measure on the test split, then `common.results`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from common import results
from common.classification import metrics, report
from common.reporting import lower_first
from common.results import Outcome


def conclude(
    recipe: str, config, data, outcome: Outcome, *, exported: int, probabilities: Mapping[int, np.ndarray],
    baselines: Mapping[str, tuple[Mapping[int, np.ndarray], float]], titles: Mapping[str, str], what: str,
    preview: Callable[[Sequence[int]], list[dict | None]], advice: Sequence[str] = (), explanation=None,
    more: Mapping | None = None,
) -> dict:  # fmt: skip
    """Measure on the test split and write the files of a finished run.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: a labelled set with `test.labels`, `test.names`, `class_names`, `skipped`, `counts()` and `advice()`.
        outcome: of the run.
        exported: the seed of the exported model.
        probabilities: of the model of each seed on the test split, float32 [n, classes].
        baselines: for each name its probabilities for each seed, and its seconds, as `run_baselines` returns them.
        titles: of the baselines, by name.
        what: the examples in one word, such as images.
        preview: of test examples, as for `report.write_report`.
        advice: sentences to add to the findings; empty ones are left out.
        explanation: of the model and its data: `numbers` for metrics.json, `sentences`, `reliability` as returned by
            `calibration.reliability`, and `chapter()` of the report; None omits it.
        more: further entries of metrics.json.

    Returns:
        Contents of metrics.json.
    """
    labels, ours = data.test.labels, probabilities[exported]
    scores = {
        "test": metrics.classification_metrics(labels, ours),
        "baselines": {
            name: metrics.classification_metrics(labels, of[exported]) | {"seconds": round(spent, 2)}
            for name, (of, spent) in baselines.items()
        },
        "exported_seed": exported,
    }
    if len(probabilities) > 1:
        scores |= scores_of_seeds(labels, probabilities, {name: of for name, (of, _) in baselines.items()})
    scores |= (explanation.numbers if explanation else {}) | (more or {})
    of_baselines = {name: [of[seed] for seed in probabilities] for name, (of, _) in baselines.items()}
    sentences = [
        *(describe_seeds(scores, titles) if len(probabilities) > 1 else ()),
        *metrics.findings(labels, list(probabilities.values()), of_baselines, titles),
        *filter(None, advice),
        *(explanation.sentences if explanation else ()),
        *data.advice(),
    ]

    def write_files(out, **shared) -> None:
        shared |= {"class_names": data.class_names, "titles": titles}
        report.write_report(
            out, history=outcome.history, labels=labels, probabilities=ours,
            per_class=metrics.per_class_table(labels, ours, data.class_names), skipped=data.skipped,
            what=what, preview=preview, reliability=explanation.reliability if explanation else (),
            chapters=[explanation.chapter()] if explanation else (), **shared,
        )  # fmt: skip
        report.write_model_card(out, source_card=outcome.source_card, **shared)
        names, predicted = np.asarray(data.class_names, dtype=object), ours.argmax(axis=1)
        results.write_predictions(
            out, example=data.test.names, label=names[labels], predicted=names[predicted], errors=predicted != labels,
            confidence=ours.max(axis=1), speaker=getattr(data.test, "speakers", ()),
        )  # fmt: skip

    return results.conclude(
        recipe, config, outcome, scores, counts=data.counts(), skipped=data.skipped, sentences=sentences,
        write_files=write_files, table=lambda found: metrics.table(found, titles),
        proved="answers all {examples} test examples as evaluated (largest difference {max_abs_diff:.1e})",
    )  # fmt: skip


def scores_of_seeds(
    labels: np.ndarray, probabilities: Mapping[int, np.ndarray], baselines: Mapping[str, Mapping[int, np.ndarray]]
) -> dict:
    """Return the scores of each seed, their mean and their standard deviation, as in metrics.json.

    Args:
        labels: of the test split, int [n].
        probabilities, baselines: as for `conclude`, without seconds.

    Returns:
        {"seeds": {seed: {"test": scores, "baselines": {name: scores}}}, "mean": likewise, "std": likewise}.
    """
    found = {
        str(seed): {
            "test": metrics.point_scores(labels, ours),
            "baselines": {name: metrics.point_scores(labels, of[seed]) for name, of in baselines.items()},
        }
        for seed, ours in probabilities.items()
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
