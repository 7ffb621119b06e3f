"""The end of a classification run: measures on the test split, and hands everything to `common.results`."""

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
    """Measure on the test split and write what a run promises to write.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: a labelled set with `test.labels`, `class_names`, `skipped`, `counts()` and `advice()`.
        outcome: what the run did.
        probabilities: of the exported model on the test split, float32 [n, classes].
        baselines: for each name its probabilities on the test split and the seconds it took.
        titles: of the baselines, by name.
        what: the examples in one word, such as images.
        preview: shows test examples in the report, as `report.write_report` takes it.
        advice: sentences to add to the findings.
        explanation: what a wing found out about the model and its data: `numbers` for metrics.json, `sentences`,
            `reliability` as `calibration.reliability` gives it, and `chapter()` of the report; None leaves it out.
        more: further entries of metrics.json.

    Returns:
        What metrics.json holds.
    """
    labels = data.test.labels
    of_baselines = {name: said for name, (said, _) in baselines.items()}
    scores = {
        "test": metrics.classification_metrics(labels, probabilities),
        "baselines": {
            name: metrics.classification_metrics(labels, said) | {"seconds": round(spent, 2)}
            for name, (said, spent) in baselines.items()
        },
    }
    scores |= (explanation.numbers if explanation else {}) | (more or {})
    sentences = [
        *metrics.findings(labels, probabilities, of_baselines, titles),
        *(explanation.sentences if explanation else ()),
        *data.advice(),
        *advice,
    ]

    def write_files(out, **told) -> None:
        told |= {"class_names": data.class_names, "titles": titles}
        report.write_report(
            out, history=outcome.history, labels=labels, probabilities=probabilities,
            per_class=metrics.per_class_table(labels, probabilities, data.class_names), skipped=data.skipped,
            what=what, preview=preview, reliability=explanation.reliability if explanation else (),
            chapters=[explanation.chapter()] if explanation else (), **told,
        )  # fmt: skip
        report.write_model_card(out, source_card=outcome.source_card, **told)

    return results.conclude(
        recipe, config, outcome, scores, counts=data.counts(), skipped=data.skipped, sentences=sentences,
        write_files=write_files, table=lambda found: metrics.table(found, titles),
        proved="answers all {examples} test examples as evaluated (largest difference {max_abs_diff:.1e})",
    )  # fmt: skip
