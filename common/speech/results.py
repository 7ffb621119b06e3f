"""The end of a run that transcribes speech: measure on the test split, and pass everything to `common.results`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common import results
from common.reporting import lower_first
from common.results import Outcome, training_seconds
from common.speech import report
from common.speech.dataset import SpeechSet
from common.speech.metrics import DECODERS, confidence_table, count_errors, findings, transcription_metrics

_SCORES_OF_OTHERS = ("wer", "wer_ci95", "cer", "cer_ci95", "ci95_over", "sentence_accuracy")


@dataclass(frozen=True)
class Baseline:
    """What a baseline returned for the n test clips.

    Attributes:
        texts: its outputs, possibly "".
        seconds: of its training and evaluation.
        ending: how its training ended, for a network from scratch: "stopped at a plateau after 80 epochs".
    """

    texts: Sequence[str]
    seconds: float
    ending: str = ""


def conclude(
    recipe: str, config, data: SpeechSet, outcome: Outcome, *, references: Sequence[str], hypotheses: Sequence[str],
    confidences: np.ndarray, decoders: dict[str, Sequence[str]], baselines: dict[str, Baseline],
    titles: Mapping[str, str],
) -> dict:  # fmt: skip
    """Measure on the test split and write the files of a run.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: the clips.
        outcome: what the run did.
        references: transcripts of the n test clips in order, normalised by `Characters.normalise`.
        hypotheses: n outputs of the exported model, possibly "".
        confidences: of these outputs, float32 [n].
        decoders: n texts per other decoder, for example `beam`.
        baselines: by name.
        titles: of the baselines, by name.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: the numbers of texts, confidences and clips differ, or a transcript is empty.
    """
    report.check_aligned(data.test, references, hypotheses, confidences)
    speakers = list(data.test.speakers)
    test = transcription_metrics(references, hypotheses, speakers)
    scores = {
        "test": test,
        "decoders": {name: _scores_of_other(references, texts, speakers) for name, texts in decoders.items()},
        "baselines": {
            name: _scores_of_other(references, one.texts, speakers)
            | {"seconds": round(one.seconds, 2), **({"ending": one.ending} if one.ending else {})}
            for name, one in baselines.items()
        },
        "by_confidence": confidence_table(references, hypotheses, confidences),
    }
    texts = {name: one.texts for name, one in baselines.items()}
    endings = {name: one.ending for name, one in baselines.items() if one.ending}
    sentences = [*findings(references, hypotheses, texts, decoders, test, speakers, endings), *data.advice()]

    def write_files(out, **shared) -> None:
        report.write_report(
            out, history=outcome.history, examples=data.test, references=references, hypotheses=hypotheses,
            confidences=confidences, skipped=data.skipped, titles=titles, **shared,
        )  # fmt: skip
        report.write_model_card(out, source_card=outcome.source_card, titles=titles, **shared)
        errors, words = count_errors(references, hypotheses)
        results.write_predictions(
            out, example=data.test.names, label=references, predicted=hypotheses, confidence=confidences, errors=errors,
            words=[int(count) for count in words], speaker=speakers,
        )  # fmt: skip

    return results.conclude(
        recipe, config, outcome, scores, counts=data.counts(), skipped=data.skipped, sentences=sentences,
        write_files=write_files, table=lambda found: table(found, titles),
        proved="returns the same texts for all {examples} test clips as evaluated (largest difference of a confidence "
        "{max_abs_diff:.1e})",
    )  # fmt: skip


def table(metrics: Mapping, titles: Mapping[str, str]) -> list[str]:
    """Return the table that a run prints at its end: baselines, result, other decoders.

    Args:
        metrics: content of metrics.json.
        titles: of the baselines, by name.
    """
    rows = [
        *((lower_first(titles.get(name, name)), score) for name, score in metrics["baselines"].items()),
        ("result", metrics["test"] | {"seconds": training_seconds(metrics)}),
        *((DECODERS.get(name, name), score) for name, score in metrics["decoders"].items()),
    ]
    lines = [f"  {'':36}WER (95 % interval)         CER    seconds"]
    for name, score in rows:
        low, high = score["wer_ci95"] or (None, None)
        ends = "(not measured)" if low is None else f"({low:.3f} to {high:.3f})"
        spent = f"{score['seconds']:7.0f}" if "seconds" in score else ""
        lines.append(f"  {name:36}{score['wer']:.3f} {ends:22}{score['cer']:.3f}{spent}".rstrip())
    return lines


def _scores_of_other(references: Sequence[str], hypotheses: Sequence[str], speakers: Sequence[str]) -> dict:
    measured = transcription_metrics(references, hypotheses, speakers)
    return {name: measured[name] for name in _SCORES_OF_OTHERS}
