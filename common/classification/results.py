"""The end of a classification run: measure on the test split, then `common.results`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from common import results
from common.classification import metrics, report
from common.results import Outcome


def conclude(
    recipe: str, config, data, outcome: Outcome, *, probabilities: np.ndarray,
    baselines: dict[str, tuple[np.ndarray, float]], titles: Mapping[str, str], what: str,
    preview: Callable[[Sequence[int]], list[dict | None]], advice: Sequence[str] = (), explanation=None,
    more: Mapping | None = None,
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

    Returns:
        Contents of metrics.json.
    """
    labels = data.test.labels
    of_baselines = {name: theirs for name, (theirs, _) in baselines.items()}
    scores = {
        "test": metrics.classification_metrics(labels, probabilities),
        "baselines": {
            name: metrics.classification_metrics(labels, theirs) | {"seconds": round(spent, 2)}
            for name, (theirs, spent) in baselines.items()
        },
    }
    scores |= (explanation.numbers if explanation else {}) | (more or {})
    sentences = [
        *metrics.findings(labels, probabilities, of_baselines, titles),
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
