"""The end of every run: metrics.json, history.csv, predictions.csv, the report, the card, and the printed summary."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import runs
from common.files import write_table


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, apart from its scores.

    Attributes:
        history: rows of history.csv.
        seconds: of each stage, and `total`.
        parameters: counts.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.
        proof: result of the proof; empty where nothing is exported.
        export: sizes of the export, as `exporting.size_report` returns them; empty where nothing is exported.
    """

    history: list[dict]
    seconds: dict[str, float]
    parameters: dict[str, int]
    source_card: dict[str, str]
    proof: dict = field(default_factory=dict)
    export: dict[str, float] = field(default_factory=dict)


def conclude(
    recipe: str,
    config,
    outcome: Outcome,
    scores: Mapping,
    *,
    counts: dict[str, int],
    skipped: Sequence[tuple[str, str]],
    sentences: Sequence[str],
    write_files: Callable[..., None],
    table: Callable[[dict], list[str]],
    proved: str = "",
) -> dict:
    """Write the files of a finished run, and print its table, its findings and the result of the proof.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        outcome: of the run.
        scores: "test", "baselines" and further entries of metrics.json.
        counts: examples of each split, and skipped ones.
        skipped: (path, reason) of every file that could not be used.
        sentences: the findings.
        write_files: writes report and card; takes the folder, and by name title, metrics, config, sentences.
        table: metrics -> lines of the printed table.
        proved: what a passed proof has shown, with {examples} and {max_abs_diff}.

    Returns:
        The contents of metrics.json.
    """
    out = Path(config.out)
    metrics = {"recipe": recipe, **scores} | facts(config, counts, outcome)
    title = f"{recipe.replace('_', ' ').capitalize()}: {config.data}"
    write_files(out, title=title, metrics=metrics, config=vars(config), sentences=sentences)
    runs.finish(out, metrics, outcome.history, skipped)
    lines = [*sentences, *([verdict(outcome.proof, proved)] if outcome.proof else []), f"Report: {out / 'report.html'}"]
    print("\n".join(["", *table(metrics), "", *(f"  {line}" for line in lines), ""]))
    if getattr(config, "mlflow", None):
        tracking = importlib.import_module("common.tracking")  # on demand, as its packages
        tracking.log_to_mlflow(config.mlflow, recipe, config, metrics, outcome.history)
    return metrics


def facts(config, counts: dict[str, int], outcome: Outcome) -> dict:
    """Return the entries of metrics.json that every run has."""
    return {
        "seconds": outcome.seconds,
        "counts": counts,
        "parameters": outcome.parameters,
        "proof": outcome.proof,
        **({"export": outcome.export} if outcome.export else {}),
        "peak_memory_mb": runs.peak_memory_mb(),
        "source": outcome.source_card["spec"],
        "data": config.data,
        "seed": config.seed,
        "versions": runs.versions(),
    }


def measured_from_scratch(recipe_file: str, config, counts: dict[str, int], score: str = "accuracy") -> list[str]:
    """Return a sentence on training from scratch on a demo, as measured and committed; none for other data or settings.

    It takes minutes, so a run does without where `--baselines` does not name it.

    Args:
        recipe_file: `__file__` of a recipe, beside its results.json.
        config: of the run, a dataclass with `baselines`.
        counts: examples of each split; a row of other counts is of another demo.
        score: to show.
    """
    given, file = vars(config), Path(recipe_file).with_name("results.json")
    free = ("out", "resume", "seed", "seeds", "baselines", "save_every", "explain", "tensorboard", "mlflow")
    defaults = {field.name: field.default for field in dataclasses.fields(config) if field.name not in free}
    if "scratch" in config.baselines or any(given[name] != value for name, value in defaults.items()):
        return []
    for row in json.loads(file.read_text("utf-8"))["runs"] if file.exists() else ():
        found = row["baselines"].get("scratch", {}).get(score)
        command = row["command"].partition(" --seed ")[0]
        if found and row["counts"] == counts and "--" not in command.partition(" --baselines ")[0].replace(" -m ", ""):
            spread = f"± {found['std']:.3f} over {len(found['seeds'])} seeds" if found["seeds"][1:] else "for one seed"
            values = f"{score} {found['mean']:.3f} {spread}"
            return [f"From scratch on this demo, measured before: {values}. To measure it here, in minutes: {command}"]
    return []


def training_seconds(metrics: Mapping) -> float:
    """Return the seconds that training the exported model took."""
    return sum(metrics["seconds"].get(stage, 0) for stage in ("features", "head", "finetune", "pretraining"))


def verdict(proof: Mapping, proved: str) -> str:
    """Return the sentence on a proof.

    Args:
        proof: its result.
        proved: what a passed proof has shown, with {examples} and {max_abs_diff}.
    """
    if not proof["passed"]:
        return f"THE PROOF FAILED, do not deploy this export: {dict(proof)}"
    return f"Proved: the SavedModel {proved.format(**proof)}."


def write_predictions(
    out: Path, *, example: Sequence[str], label: Sequence[str], predicted: Sequence[str], confidence: Sequence[float],
    errors: Sequence[int], words: Sequence[int] = (), speaker: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Write predictions.csv into a run folder, one row per test example, in the order of the test split.

    Args:
        out: the run folder.
        example: file or text of each example. A file that the run wrote is named by its path in `out`, so that another
            run on the same data names it alike.
        label: class name, or transcript.
        predicted: the same, as the exported model answers.
        confidence: of the answer, 0 to 1.
        errors: 1 for a wrong class, else 0; of a transcript, its wrong words.
        words: of each transcript; left out for classes.
        speaker: of each clip, "" if unknown; left out for images and texts.

    Returns:
        The path of the file.
    """
    names = [one.removeprefix(f"{out}{os.sep}") for one in example]
    columns = {"example": names, "label": label, "predicted": predicted, "errors": [int(count) for count in errors]}
    columns["confidence"] = [f"{value:.6f}" for value in confidence]
    columns |= {name: given for name, given in (("words", words), ("speaker", speaker)) if len(given)}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return write_table(out / "predictions.csv", rows, list(columns))
