"""The end of a classification run: metrics.json, history.csv, report.html, model_card.md, and what is printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common import evaluation, reporting, runs
from common.data.image_sets import ImageSet
from common.data.speech_sets import SpeechSet
from common.data.text_sets import TextSet
from common.explaining import Explanation
from common.text_explaining import TextExplanation


def conclude(
    recipe: str,
    config,
    data: ImageSet | TextSet | SpeechSet,
    *,
    probabilities: np.ndarray,
    baselines: dict[str, tuple[np.ndarray, float]],
    history: list[dict],
    seconds: dict[str, float],
    parameters: dict[str, int],
    proof: dict,
    export: dict[str, float],
    source_card: dict,
    advice: tuple[str, ...] = (),
    explanation: Explanation | TextExplanation | None = None,
    more: dict | None = None,
) -> dict:
    """Measure on the test part and write what a run promises to write.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: the pictures, the texts, or the clips with labels.
        probabilities: of the exported model on the test part, float32 [n, classes].
        baselines: for each name its probabilities on the test part and the seconds it took.
        history: rows of history.csv.
        seconds: of each part of the run, and `total`.
        parameters: counts.
        proof: as `exporting.prove_image_classifier` and `prove_text_classifier` return it.
        export: as `exporting.size_report` returns it.
        source_card: where the source came from.
        advice: sentences to add to the findings.
        more: further entries of metrics.json.
        explanation: as `explaining.explain` or `text_explaining.explain_texts` returns it.

    Returns:
        What metrics.json holds.
    """
    out, labels = Path(config.out), data.test.labels
    metrics = {
        "recipe": recipe,
        "test": evaluation.classification_metrics(labels, probabilities),
        "baselines": {
            name: evaluation.classification_metrics(labels, said) | {"seconds": round(spent, 2)}
            for name, (said, spent) in baselines.items()
        },
    } | runs.facts(config, data.counts(), source_card["spec"], seconds, parameters, proof, export)
    metrics |= (explanation.numbers if explanation else {}) | (more or {})
    sentences = [
        *evaluation.findings(labels, probabilities, {name: said for name, (said, _) in baselines.items()}),
        *(explanation.sentences if explanation else ()),
        *data.advice(),
        *advice,
    ]
    told = dict(
        title=f"{recipe.replace('_', ' ').capitalize()}: {config.data}", metrics=metrics, config=vars(config),
        class_names=data.class_names, sentences=sentences,
    )  # fmt: skip
    if isinstance(data, TextSet):
        examples = {"texts": data.test.texts}
    else:
        examples = {"sound_paths" if isinstance(data, SpeechSet) else "image_paths": data.test.paths}
    reporting.write_report(
        out, history=history, labels=labels, probabilities=probabilities,
        per_class=evaluation.per_class_table(labels, probabilities, data.class_names), skipped=data.skipped,
        explanation=explanation, **examples, **told,
    )  # fmt: skip
    reporting.write_model_card(out, source_card=source_card, **told)
    runs.finish(out, metrics, history, data.skipped)
    print(evaluation.summary(metrics, sentences, out))
    return metrics
