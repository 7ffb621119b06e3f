"""The report and the model card of a run that transcribes speech.

A missing number is shown as "not measured", and a proof as passed only if all of it was measured and holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common import reporting
from common.speech.audio.playback import embed_sounds
from common.speech.dataset import SpeechExamples
from common.speech.metrics import (
    DECODERS,
    DELETION,
    INSERTION,
    Edit,
    align,
    confidence_table,
    confusions,
    count_errors,
)

TEMPLATES = Path(__file__).with_name("templates")
MAX_WORST, MAX_RIGHT = 9, 3  # clips with players
MAX_PIECES = 150  # shown words of a text, or characters of one without spaces
MAX_SPEAKERS = 50


def check_aligned(examples: SpeechExamples, references, hypotheses, confidences) -> None:
    """Raise ValueError unless there are a transcript, an output and a confidence per clip."""
    if not len(examples) == len(references) == len(hypotheses) == len(confidences):
        raise ValueError(
            f"each of the {len(examples)} test clips needs a transcript, an output and a confidence; received "
            f"{len(references)} transcripts, {len(hypotheses)} outputs and {len(confidences)} confidences"
        )


# --- files ------------------------------------------------------------------------------------------------


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], examples: SpeechExamples,
    references: Sequence[str], hypotheses: Sequence[str], confidences: np.ndarray,
    skipped: Sequence[tuple[str, str]], sentences: Sequence[str], titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/report.html, a single file with all sounds in it.

    Args:
        out: the run folder; created if missing.
        title: the heading.
        metrics: content of metrics.json; any value may be missing.
        config: setting name to value.
        history: one row per epoch: "stage", "epoch", "loss", "val_loss", "val_wer"; each may be missing.
        examples: the n clips of the test split.
        references: n transcripts.
        hypotheses: n outputs.
        confidences: of the outputs, float32 [n].
        skipped: (path, reason) of every skipped file.
        sentences: findings, shown near the top.
        titles: of the baselines, by name.

    Returns:
        The path of the report.

    Raises:
        ValueError: the numbers of clips, transcripts, outputs and confidences differ, or a transcript is empty.
    """
    check_aligned(examples, references, hypotheses, confidences)
    confidences = np.asarray(confidences, np.float64)
    by_confidence = confidence_table(references, hypotheses, confidences)
    errors, _ = count_errors(references, hypotheses)
    per_speaker = (metrics.get("test") or {}).get("per_speaker") or []
    context = _context(title, metrics, config, sentences, titles) | {
        "curves": {
            "Loss": reporting.draw_curve(history, {"loss": ", training", "val_loss": ", validation"}),
            "Validation WER": reporting.draw_curve(history, {"val_wer": ""}),
        },
        "clips": _clips(examples, references, hypotheses, confidences),
        "wrong_count": int((errors > 0).sum()),
        "words": confusions(references, hypotheses),
        "characters": confusions(references, hypotheses, unit="character"),
        "per_speaker": per_speaker[:MAX_SPEAKERS],
        "speakers_left_out": len(per_speaker[MAX_SPEAKERS:]),
        "by_confidence": by_confidence,
        "confidence_plot": _confidence_plot(by_confidence),
        "test_count": len(examples),
        "test_minutes": float(np.sum(examples.seconds)) / 60,
        "skipped": skipped,
    }
    return reporting.render(Path(out) / "report.html", context, TEMPLATES)


def write_model_card(
    out: Path, *, title: str, metrics: dict, config: dict, sentences: Sequence[str], source_card: dict,
    titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/model_card.md: intended use, origin, results and serving.

    Args:
        out, title, metrics, config, sentences, titles: as for `write_report`.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.

    Returns:
        The path of the card.
    """
    return reporting.render_card(out, _context(title, metrics, config, sentences, titles), source_card, TEMPLATES)


def _context(title, metrics, config, sentences, titles) -> dict:
    """Return the content of both files: the exported model, other decoders of it, then the baselines."""
    context = reporting.shared_context(title, metrics, config, (), sentences, titles)
    exported, *baselines = context["headline"]
    decoders = [
        {**(row or {}), "name": f"Exported model, {DECODERS.get(key, key)}", "same_model": True}
        for key, row in (metrics.get("decoders") or {}).items()
    ]
    proof = reporting.judge_proof(
        metrics.get("proof") or {}, examples="Test clips", same="Texts identical to the evaluation",
        number="confidence",
    )  # fmt: skip
    headline = [exported, *decoders, *baselines]
    return context | {
        "headline": headline, "no_baselines": not baselines, "proof": proof, "decimal": _decimal,
    }  # fmt: skip


def _decimal(value: object) -> str:
    number = reporting.as_number(value)
    return reporting.NOT_MEASURED if number is None else f"{number:.3f}"


# --- clips and figures ------------------------------------------------------------------------------------


def _clips(
    examples: SpeechExamples, references: Sequence[str], hypotheses: Sequence[str], confidences: np.ndarray
) -> dict[str, list[dict]]:
    """Return the clips with the highest error rates, then some without errors, at random."""
    errors, words = count_errors(references, hypotheses)
    wrong = sorted(
        np.flatnonzero(errors), key=lambda i: (errors[i] / words[i], errors[i], confidences[i]), reverse=True
    )
    right = np.random.default_rng(0).permutation(np.flatnonzero(errors == 0))
    worst, ordinary = wrong[:MAX_WORST], list(right[:MAX_RIGHT])
    places = worst + ordinary
    # In languages without spaces a sentence is one "word": there the characters are marked.
    unit = "word" if any(" " in text for text in references) else "character"
    aligned = align([references[i] for i in places], [hypotheses[i] for i in places], unit)
    sounds = embed_sounds([str(examples.paths[i]) for i in places])
    clips = [
        {
            **sound,
            **_marked(edits, unit),
            "name": Path(str(examples.paths[i])).name,
            "speaker": examples.speakers[i],
            "seconds": examples.seconds[i],
            "confidence": confidences[i],
            "errors": errors[i],
            "words": words[i],
        }
        for i, edits, sound in zip(places, aligned, sounds, strict=True)
    ]
    return {"worst": clips[: len(worst)], "right": clips[len(worst) :]}


def _marked(edits: Sequence[Edit], unit: str) -> dict:
    """Return {"reference", "hypothesis": lists of (kind, text), "gap": their separator, "cut": whether shortened}."""
    shown = edits[:MAX_PIECES]
    return {
        "reference": [(edit.kind, edit.reference) for edit in shown if edit.kind != INSERTION],
        "hypothesis": [(edit.kind, edit.hypothesis) for edit in shown if edit.kind != DELETION],
        "gap": " " if unit == "word" else "",
        "cut": len(edits) > MAX_PIECES,
    }


def _confidence_plot(rows: Sequence[dict]) -> str | None:
    """Plot the error rate of the most confident outputs over the share kept; a single point is no curve."""
    if len(rows) < 2:
        return None
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([100 * row["share"] for row in rows], [100 * row["wer"] for row in rows], marker="o", color="#2563a8")
    axes.set(xlabel="% of the clips kept, the most confident first", ylabel="WER of these, %", xlim=(0, 103))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return reporting.png_of_figure(figure)
