"""The end of a run that writes down speech: metrics.json, history.csv, report.html, model_card.md, what is printed.

A number that is absent is shown as "not measured", never guessed, and a proof is shown as passed only where every part
of it was measured and holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common import reporting, runs, speech_metrics
from common.data.audio import SAMPLE_RATE
from common.data.speech_batches import Augmentation, Clips
from common.data.speech_sets import SpeechExamples, SpeechSet
from common.playback import MAX_SECONDS, embed_sounds, encode_sound
from common.speech_metrics import DECODERS, DELETION, INSERTION, Edit

MAX_WORST, MAX_RIGHT = 9, 3  # clips that can be played
MAX_SAMPLES = 16  # clips to listen to before training
MAX_PIECES = 150  # words of a text that is shown, or characters of one without spaces
MAX_SPEAKERS = 50
BASELINES = {
    "frozen": "Frozen source, trained head",
    "scratch": "From scratch",
    "zero_shot": "No adaptation",
}
_TOLD_OF_OTHERS = ("wer", "wer_ci95", "cer", "cer_ci95", "sentence_accuracy")


def conclude(
    recipe: str,
    config,
    data: SpeechSet,
    *,
    references: Sequence[str],
    hypotheses: Sequence[str],
    confidences: np.ndarray,
    decoders: dict[str, Sequence[str]],
    baselines: dict[str, tuple[Sequence[str], float]],
    history: list[dict],
    seconds: dict[str, float],
    parameters: dict[str, int],
    proof: dict,
    export: dict[str, float],
    source_card: dict,
    advice: tuple[str, ...] = (),
    more: dict | None = None,
) -> dict:
    """Measure on the test part and write what a run promises to write.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: the clips.
        references: transcripts of the n test clips in their order, as `Characters.normalise` writes them.
        hypotheses: what the exported model writes for them, n; "" where it writes nothing.
        confidences: of these answers, float32 [n].
        decoders: for each other way to turn what the network says into text, for example `beam`, its n texts.
        baselines: for each name its n texts and the seconds it took.
        history: rows of history.csv.
        seconds: of each part of the run, and `total`.
        parameters: counts.
        proof: {"examples", "agreement", "max_abs_diff", "ops_outside_tf_serving", "tolerance", "passed"}.
        export: as `exporting.size_report` returns it.
        source_card: where the source came from.
        advice: sentences to add to the findings.
        more: further entries of metrics.json.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: texts, confidences and clips do not belong together, or a transcript is empty.
    """
    out = Path(config.out)
    _refuse_strangers(data.test, references, hypotheses, confidences)
    test = speech_metrics.transcription_metrics(references, hypotheses, list(data.test.speakers))
    metrics = {
        "recipe": recipe,
        "test": test,
        "decoders": {name: _told_of_other(references, said) for name, said in decoders.items()},
        "baselines": {
            name: _told_of_other(references, said) | {"seconds": round(spent, 2)}
            for name, (said, spent) in baselines.items()
        },
        "by_confidence": speech_metrics.confidence_table(references, hypotheses, confidences),
    } | runs.facts(config, data.counts(), source_card["spec"], seconds, parameters, proof, export)
    metrics |= more or {}
    answers = {name: said for name, (said, _) in baselines.items()}
    sentences = [
        *speech_metrics.findings(references, hypotheses, answers, decoders, test),
        *data.advice(),
        *advice,
    ]
    told = dict(
        title=f"{recipe.replace('_', ' ').capitalize()}: {config.data}", metrics=metrics, config=vars(config),
        sentences=sentences,
    )  # fmt: skip
    write_report(
        out, history=history, examples=data.test, references=references, hypotheses=hypotheses,
        confidences=confidences, skipped=data.skipped, **told,
    )  # fmt: skip
    write_model_card(out, source_card=source_card, **told)
    runs.finish(out, metrics, history, data.skipped)
    print(summary(metrics, sentences, out))
    return metrics


def _told_of_other(references: Sequence[str], hypotheses: Sequence[str]) -> dict:
    measured = speech_metrics.transcription_metrics(references, hypotheses)
    return {name: measured[name] for name in _TOLD_OF_OTHERS}


def _refuse_strangers(examples: SpeechExamples, references, hypotheses, confidences) -> None:
    if not len(examples) == len(references) == len(hypotheses) == len(confidences):
        raise ValueError(
            f"each of the {len(examples)} test clips needs a transcript, an answer and a confidence; received "
            f"{len(references)} transcripts, {len(hypotheses)} answers and {len(confidences)} confidences"
        )


def summary(metrics: dict, sentences: Sequence[str], out: Path) -> str:
    """Return what a run prints at its end: a small table, the findings, the proof, where the report is."""
    own = sum(metrics["seconds"].get(stage, 0) for stage in ("features", "head", "finetune"))
    rows = [
        *((BASELINES.get(name, name).lower(), score) for name, score in metrics["baselines"].items()),
        ("result", metrics["test"] | {"seconds": own}),
        *((DECODERS.get(name, name), score) for name, score in metrics["decoders"].items()),
    ]
    lines = ["", f"  {'':36}WER (95 % interval)         CER    seconds"]
    for name, score in rows:
        low, high = score["wer_ci95"] or (None, None)
        ends = "(not measured)" if low is None else f"({low:.3f} to {high:.3f})"
        spent = f"{score['seconds']:7.0f}" if "seconds" in score else ""
        lines.append(f"  {name:36}{score['wer']:.3f} {ends:22}{score['cer']:.3f}{spent}".rstrip())
    proof = metrics["proof"]
    verdict = (
        f"Proved: the SavedModel writes the same texts for all {proof['examples']} test clips as evaluated "
        f"(largest difference of a confidence {proof['max_abs_diff']:.1e})."
        if proof["passed"]
        else f"THE PROOF FAILED, do not deploy this export: {proof}"
    )
    return "\n".join(
        [*lines, "", *(f"  {text}" for text in (*sentences, verdict, f"Report: {out / 'report.html'}")), ""]
    )


# --- files ------------------------------------------------------------------------------------------------


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], examples: SpeechExamples,
    references: Sequence[str], hypotheses: Sequence[str], confidences: np.ndarray,
    skipped: Sequence[tuple[str, str]], sentences: Sequence[str],
) -> Path:  # fmt: skip
    """Write OUT/report.html, one file that needs nothing else to be read and heard.

    Args:
        out: the run folder; made if it is missing.
        title: the heading.
        metrics: what metrics.json holds; any part may be absent.
        config: setting name to value.
        history: one row an epoch: "stage", "epoch", "loss", "val_loss", "val_wer"; each may be absent.
        examples: the n clips of the test part.
        references: their transcripts, n.
        hypotheses: what was answered, n.
        confidences: of the answers, float32 [n].
        skipped: (path, reason) of every file that could not be used.
        sentences: findings in plain words, shown near the top.

    Returns:
        The path of the report.

    Raises:
        ValueError: clips, transcripts, answers and confidences do not belong together, or a transcript is empty.
    """
    _refuse_strangers(examples, references, hypotheses, confidences)
    confidences = np.asarray(confidences, np.float64)
    by_confidence = speech_metrics.confidence_table(references, hypotheses, confidences)
    errors, _ = speech_metrics.count_errors(references, hypotheses)
    per_speaker = (metrics.get("test") or {}).get("per_speaker") or []
    context = _context(title, metrics, config, sentences) | {
        "curves": {
            "Loss": reporting.draw_curve(history, {"loss": ", training", "val_loss": ", validation"}),
            "Validation WER": reporting.draw_curve(history, {"val_wer": ""}),
        },
        "clips": _clips(examples, references, hypotheses, confidences),
        "wrong_count": int((errors > 0).sum()),
        "words": speech_metrics.confusions(references, hypotheses),
        "characters": speech_metrics.confusions(references, hypotheses, unit="character"),
        "per_speaker": per_speaker[:MAX_SPEAKERS],
        "speakers_left_out": len(per_speaker[MAX_SPEAKERS:]),
        "by_confidence": by_confidence,
        "confidence_plot": _confidence_plot(by_confidence),
        "test_count": len(examples),
        "test_minutes": float(np.sum(examples.seconds)) / 60,
        "skipped": skipped,
    }
    return reporting.render(Path(out) / "report.html", context, "speech_report.html")


def write_samples(
    path: Path, clips: Clips, texts: Sequence[str], augmentation: Augmentation | None, seed: int
) -> Path:  # fmt: skip
    """Write a page to listen to before training: the first clips, as they are trained on.

    Args:
        path: of the page.
        clips: n clips.
        texts: what is said in each, n.
        augmentation: random changes, or None.
        seed: decides them.

    Returns:
        The path.
    """
    heard = []
    for place in range(min(MAX_SAMPLES, len(clips))):
        clip = clips[place]
        if augmentation:
            clip = augmentation(clip, np.random.default_rng((seed, place)))
        heard.append((encode_sound(clip[: MAX_SECONDS * SAMPLE_RATE]), texts[place]))
    return reporting.render(path, {"clips": heard}, "speech_samples.html")


def write_model_card(
    out: Path, *, title: str, metrics: dict, config: dict, sentences: Sequence[str], source_card: dict
) -> Path:
    """Write OUT/model_card.md: what the model is for, where it comes from, how good it is, how to serve it.

    Args:
        out, title, metrics, config, sentences: as for `write_report`.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.

    Returns:
        The path of the card.
    """
    return reporting.render_card(out, _context(title, metrics, config, sentences), source_card, "speech_card.md")


def _context(title, metrics, config, sentences) -> dict:
    """Return what both files show: the exported model, other decoders of it, then the baselines."""
    context = reporting.shared_context(title, metrics, config, (), sentences)
    exported, *others = context["headline"]
    decoders = [
        {**(row or {}), "name": f"Exported model, {DECODERS.get(key, key)}", "same_model": True}
        for key, row in (metrics.get("decoders") or {}).items()
    ]
    baselines = [
        row | {"name": BASELINES.get(key, key)} for key, row in zip(metrics.get("baselines") or {}, others, strict=True)
    ]
    proof = reporting.judge_proof(
        metrics.get("proof") or {}, examples="Test clips", same="Texts that are the same as in the evaluation",
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
    """Return the clips with the largest share of wrong words, then some of those without an error, by chance."""
    errors, words = speech_metrics.count_errors(references, hypotheses)
    wrong = sorted(
        np.flatnonzero(errors), key=lambda i: (errors[i] / words[i], errors[i], confidences[i]), reverse=True
    )
    right = np.random.default_rng(0).permutation(np.flatnonzero(errors == 0))
    worst, ordinary = wrong[:MAX_WORST], list(right[:MAX_RIGHT])
    places = worst + ordinary
    # A language that is written without spaces has one "word" a sentence: there the characters are marked.
    unit = "word" if any(" " in text for text in references) else "character"
    aligned = speech_metrics.align([references[i] for i in places], [hypotheses[i] for i in places], unit)
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
    """Return transcript and answer as pieces (kind, text) that stand one after the other, and whether both are whole.

    Returns:
        {"said", "written": lists of pieces, "gap": what stands between two of them, "cut"}.
    """
    shown = edits[:MAX_PIECES]
    return {
        "said": [(edit.kind, edit.reference) for edit in shown if edit.kind != INSERTION],
        "written": [(edit.kind, edit.hypothesis) for edit in shown if edit.kind != DELETION],
        "gap": " " if unit == "word" else "",
        "cut": len(edits) > MAX_PIECES,
    }


def _confidence_plot(rows: Sequence[dict]) -> str | None:
    """Draw the error rate of the surest answers over how many of them are used; one point is no curve."""
    if len(rows) < 2:
        return None
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([100 * row["share"] for row in rows], [100 * row["wer"] for row in rows], marker="o", color="#2563a8")
    axes.set(xlabel="% of the clips that are kept, the surest first", ylabel="WER of these, %", xlim=(0, 103))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return reporting.png_of_figure(figure)
