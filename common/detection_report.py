"""The end of a detection run: metrics.json, history.csv, report.html, model_card.md, and what is printed.

A number that is absent is shown as "not measured", never guessed, and a proof is shown as passed only where every part
of it was measured and holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from common import detection_metrics, reporting, runs
from common.data.box_sets import BoxExamples, BoxSet
from common.detection_metrics import NOBODY, NOT_JUDGED, Curve, Detections, Matching
from common.drawing import colour_of, draw_boxes

SCORE_TOLERANCE = 1e-3  # for a proof that does not say its own: of boxes that are sorted, cut and sorted again
MAX_CURVES = 8  # lines in one figure that an eye can tell apart
MAX_PICTURES = 4  # of each kind: two pictures each, large enough to see boxes
PICTURE_PIXELS = 480
FEW_OBJECTS = 10  # an AP of fewer moves by ten points with a single object
BASELINES = {"frozen": "Frozen backbone, trained head", "scratch": "From scratch", "none": "No adaptation"}
SIZES = {
    "small": "small, up to 32 x 32",
    "medium": "medium, up to 96 x 96",
    "large": "large, above 96 x 96",
}


def conclude(
    recipe: str,
    config,
    data: BoxSet,
    *,
    detections: Detections,
    val_detections: Detections,
    baselines: dict[str, tuple[Detections, float]],
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
        data: the pictures with boxes.
        detections: of the exported model on the test part, down to scores that nobody would use: AP needs them.
        val_detections: the same on the validation part, where the threshold is chosen.
        baselines: for each name its detections on the test part and the seconds it took.
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
    """
    out = Path(config.out)
    thresholds = detection_metrics.threshold_table(data.val, val_detections)
    threshold = detection_metrics.recommend_threshold(thresholds)
    [at_threshold] = detection_metrics.threshold_table(data.test, detections, [threshold])
    matchings = detection_metrics.match(data.test, detections, threshold)
    test, boxes = detection_metrics.evaluate(data.test, detections, data.class_names), data.box_counts()
    for row in test["per_class"]:
        row["train_boxes"] = boxes["train"][row["class"]]
    metrics = {
        "recipe": recipe,
        "test": test | {"at_threshold": at_threshold},
        "baselines": {
            name: detection_metrics.evaluate(data.test, said, data.class_names) | {"seconds": round(spent, 2)}
            for name, (said, spent) in baselines.items()
        },
        "threshold": threshold,
        "boxes": {part: sum(found.values()) for part, found in boxes.items()},
    }
    metrics |= runs.facts(config, data.counts(), source_card["spec"], seconds, parameters, proof, export) | (more or {})
    sentences = [
        *findings(data.test, detections, {name: said for name, (said, _) in baselines.items()}, len(data.class_names)),
        *_findings_of_boxes(metrics["test"], detections, data, matchings),
        *data.advice(),
        *advice,
    ]
    told = dict(
        title=f"{recipe.replace('_', ' ').capitalize()}: {config.data}", metrics=metrics, config=vars(config),
        class_names=data.class_names, sentences=sentences,
    )  # fmt: skip
    write_report(
        out, history=history, examples=data.test, detections=detections, matchings=matchings, threshold=threshold,
        thresholds=thresholds, skipped=data.skipped, **told,
    )  # fmt: skip
    write_model_card(out, source_card=source_card, **told)
    runs.finish(out, metrics, history, data.skipped)
    print(summary(metrics, sentences, out))
    return metrics


# --- what is said and printed -----------------------------------------------------------------------------


def findings(examples: BoxExamples, ours: Detections, baselines: dict[str, Detections], classes: int) -> list[str]:
    """Say in plain sentences whether the transfer and the fine-tuning helped, in points of AP50.

    Args:
        examples: the test part.
        ours: of the model that is exported.
        baselines: the same for each baseline: `scratch`, `frozen`.
        classes: number of classes.

    Returns:
        Sentences; one that begins with "Negative transfer" where a random start did better.
    """
    sentences = []
    for name, theirs in baselines.items():
        if name == "frozen" and _same(ours, theirs):
            sentences.append("The exported model is the frozen backbone with its trained head: nothing was fine-tuned.")
            continue
        found = detection_metrics.paired_gain(examples, ours, theirs, classes)
        if found is None:
            sentences.append(f"{BASELINES.get(name, name)}: a single test picture allows no comparison.")
            continue
        gain, low, high = found
        points = f"{abs(gain) * 100:.1f} points of AP50 (95 % interval {low * 100:+.1f} to {high * 100:+.1f})"
        worse = gain < 0 and high < 0
        if name == "scratch" and worse:
            text = f"Negative transfer: training from scratch is better by {points}. Try another --source."
        elif name == "scratch" and gain <= 0:
            text = f"The pretrained source brings nothing here: training from scratch is at least as good, by {points}."
        elif name == "scratch" and low <= 0:
            text = f"The pretrained source and training from scratch are too close to call: {points}."
        elif name == "scratch":
            text = f"The pretrained source gains {points} over training from scratch."
        elif low > 0:
            text = f"Fine-tuning gains {points} over the frozen backbone."
        elif worse:
            text = f"Fine-tuning hurts: the frozen backbone is better by {points}. Try --epochs 0."
        else:
            text = f"Fine-tuning and the frozen backbone are too close to call: {points}."
        sentences.append(text)
    return sentences


def _findings_of_boxes(test: dict, detections: Detections, data: BoxSet, matchings: Sequence[Matching]) -> list[str]:
    """Say what to expect at the recommended threshold, which class is weak, and what is taken for what."""
    at = test["at_threshold"]
    sentences = []
    if at["recall"] is not None and at["precision"] is not None:
        sentences.append(
            f"With the threshold {at['threshold']:.2f} (best F1 on validation) it finds "
            f"{100 * at['recall']:.0f} of 100 test objects, and {100 * at['precision']:.0f} of 100 boxes are right: "
            f"{at['false_alarms']:.2f} false alarms a picture."
        )
    measured = [row for row in test["per_class"] if row["boxes"]]
    if len(measured) > 1:
        row = min(measured, key=lambda row: row["ap50"])
        sentences.append(
            f"The weakest class is {row['class']}: AP50 {100 * row['ap50']:.1f} % on {row['boxes']} test objects; "
            f"{row['train_boxes']:,} were there to learn from."
        )
    few = [row["class"] for row in measured if row["boxes"] < FEW_OBJECTS]
    if few:
        names = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        sentences.append(
            f"Fewer than {FEW_OBJECTS} test objects: {names}. The numbers of such a class say little; label more of it."
        )
    pairs = Counter(
        (int(data.test.labels[picture][box]), int(detections.labels[picture][alarm]))
        for picture, one in enumerate(matchings)
        for box, alarm in one.misnamed
    )
    if pairs:
        (true, answer), times = pairs.most_common(1)[0]
        often = f", most often {data.class_names[true]} taken for {data.class_names[answer]} ({times})"
        sentences.append(
            f"Boxes in the right place under a wrong name: {sum(pairs.values())}{often if times > 1 else ''}."
        )
    return sentences


def _same(ours: Detections, theirs: Detections) -> bool:
    return all(
        one.shape == other.shape and np.allclose(one, other, atol=1e-5)
        for mine, others in ((ours.scores, theirs.scores), (ours.boxes, theirs.boxes))
        for one, other in zip(mine, others, strict=True)
    )


def summary(metrics: dict, sentences: Sequence[str], out: Path) -> str:
    """Return what a run prints at its end: a small table, the findings, the proof, where the report is."""
    scores = {**{name: metrics["baselines"].get(name) for name in ("none", "scratch", "frozen")},
              "result": metrics["test"]}  # fmt: skip
    own = sum(metrics["seconds"].get(stage, 0) for stage in ("features", "head", "finetune"))
    lines = ["", f"  {'':32}AP50 (95 % interval)        AP      AP75    seconds"]
    for name, score in scores.items():
        if score is None:
            continue
        interval = score.get("ap50_ci95")
        ends = f"({interval[0]:.3f} to {interval[1]:.3f})" if interval else "(not measured)"
        lines.append(
            f"  {BASELINES.get(name, name).lower():32}{_three(score['ap50'])} {ends:22}{_three(score['ap']):8}"
            f"{_three(score['ap75']):8}{score.get('seconds', own):7.0f}"
        )
    proof = metrics["proof"]
    verdict = (
        f"Proved: the SavedModel answers all {proof['examples']} test pictures as evaluated "
        f"(largest difference of a score {proof['max_abs_diff']:.1e})."
        if proof["passed"]
        else f"THE PROOF FAILED, do not deploy this export: {proof}"
    )
    return "\n".join(
        [*lines, "", *(f"  {text}" for text in (*sentences, verdict, f"Report: {out / 'report.html'}")), ""]
    )


def _three(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


# --- files ------------------------------------------------------------------------------------------------


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], class_names: Sequence[str],
    examples: BoxExamples, detections: Detections, matchings: Sequence[Matching], threshold: float,
    thresholds: Sequence[dict], skipped: Sequence[tuple[str, str]], sentences: Sequence[str],
) -> Path:  # fmt: skip
    """Write OUT/report.html, one file that needs nothing else to be read.

    Args:
        out: the run folder; made if it is missing.
        title: the heading.
        metrics: what metrics.json holds; any part may be absent.
        config: setting name to value.
        history: one row an epoch: "stage", "epoch", "loss", "val_loss", "val_ap50"; each may be absent.
        class_names: name of each class number.
        examples: the test part.
        detections: of these pictures.
        matchings: as `detection_metrics.match` gives them at the threshold.
        threshold: the recommended one.
        thresholds: as `detection_metrics.threshold_table` gives them on the validation part.
        skipped: (path, reason) of every file that could not be used.
        sentences: findings in plain words, shown near the top.

    Returns:
        The path of the report.

    Raises:
        ValueError: examples, detections and matchings do not belong together.
    """
    if not len(examples) == len(detections) == len(matchings):
        raise ValueError(
            f"a report needs detections and a matching for each picture; received {len(examples)} pictures, "
            f"detections of {len(detections)} and {len(matchings)} matchings"
        )
    classes, stored = len(class_names), examples.as_stored()
    confusion = detection_metrics.confusion(stored, detections, matchings, classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    small, per_class = classes <= reporting.MAX_CLASSES_IN_MATRIX, _per_class(metrics, confusion)
    weakest = [row["class"] for row in per_class if row["boxes"]][:MAX_CURVES]
    curves = {name: detection_metrics.precision_recall(stored, detections, list(class_names).index(name))
              for name in weakest}  # fmt: skip
    context = _context(title, metrics, config, class_names, sentences) | {
        "curves": {
            "Loss": reporting.draw_curve(history, {"loss": ", training", "val_loss": ", validation"}),
            "Validation AP50": reporting.draw_curve(history, {"val_ap50": ""}),
        },
        "threshold": threshold,
        "thresholds": _chosen_rows(thresholds, threshold),
        "threshold_plot": _threshold_plot(thresholds, threshold) if thresholds else None,
        "recall_plot": _recall_plot(curves, list(class_names), threshold) if curves else None,
        "curve_keys": [(name, _css(list(class_names).index(name))) for name in curves],
        "per_class": per_class,
        "sizes": SIZES,
        "confusion": confusion.tolist() if small else None,
        "shares": shares.tolist() if small else None,
        "pairs": [] if small else reporting.confused_pairs(confusion[:-1, :-1], shares[:-1, :-1]),
        "keys": [(name, _css(number)) for number, name in enumerate(class_names)] if classes <= 20 else [],
        "pictures": _pictures(stored, detections, matchings, class_names, threshold),
        "some_not_judged": any(crowds.any() for crowds in examples.crowds),
        "missed_pictures": sum(bool(len(one.missed)) for one in matchings),
        "alarm_pictures": sum(bool(len(one.false_alarms)) for one in matchings),
        "object_count": sum(int((~crowds).sum()) for crowds in examples.crowds),
        "test_count": len(examples),
        "skipped": skipped,
    }
    return reporting.render(Path(out) / "report.html", context, "detection_report.html")


def write_model_card(
    out: Path, *, title: str, metrics: dict, config: dict, class_names: Sequence[str],
    sentences: Sequence[str], source_card: dict,
) -> Path:  # fmt: skip
    """Write OUT/model_card.md: what the model is for, where it comes from, how good it is, how to serve it.

    Args:
        out, title, metrics, config, class_names, sentences: as for `write_report`.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.

    Returns:
        The path of the card.
    """
    context = _context(title, metrics, config, class_names, sentences)
    return reporting.render_card(out, context, source_card, "detection_card.md")


def _context(title, metrics, config, class_names, sentences) -> dict:
    """Return what both files show: the names of the rows and the words of the proof are those of boxes."""
    context = reporting.shared_context(title, metrics, config, class_names, sentences)
    keys = [None, *(metrics.get("baselines") or {})]
    headline = [
        row | {"name": BASELINES.get(key, row["name"])} for key, row in zip(keys, context["headline"], strict=True)
    ]
    return context | {"headline": headline, "proof": _judge_proof(metrics.get("proof") or {}), "decimal": _decimal}


def _judge_proof(proof: dict) -> dict:
    same = "Boxes that are the same as in the evaluation, of the same class and overlapping by at least 0.99"
    return reporting.judge_proof(proof, examples="Test pictures", same=same, number="score", tolerance=SCORE_TOLERANCE)


def _decimal(value: object) -> str:
    number = reporting.as_number(value)
    return reporting.NOT_MEASURED if number is None else f"{number:.2f}"


# --- tables and figures -----------------------------------------------------------------------------------


def _per_class(metrics: dict, confusion: np.ndarray) -> list[dict]:
    """Return a row a class, the weakest first: that is the one a reader looks for. Unmeasured classes come last."""
    given = (metrics.get("test") or {}).get("per_class") or []
    rows = [
        {**row, "found": int(confusion[number, number]),
         "alarms": int(confusion[:, number].sum() - confusion[number, number])}
        for number, row in enumerate(given)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: float("inf") if row["ap50"] is None else row["ap50"])


def _chosen_rows(rows: Sequence[dict], threshold: float) -> list[dict]:
    """Return every tenth row and the recommended one, which is marked."""
    chosen = [{**row, "chosen": row["threshold"] == threshold} for row in rows]
    return [row for row in chosen if row["chosen"] or round(row["threshold"] * 100) % 10 == 0]


def _axes(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    return figure, axes


def _threshold_plot(rows: Sequence[dict], threshold: float) -> str:
    figure, axes = _axes(5.6, 4.2)
    for key, label, colour in (
        ("precision", "precision", "#2563a8"), ("recall", "recall", "#b7791f"), ("f1", "F1", "#1d7a46")
    ):  # fmt: skip
        values = np.array([row[key] for row in rows], dtype=float)  # None becomes NaN, which is not drawn
        axes.plot([row["threshold"] for row in rows], values, color=colour, label=label)
    axes.axvline(threshold, color="#6b7280", linestyle=":", label="recommended")
    axes.set(xlabel="threshold", ylabel="on validation pictures")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return reporting.png_of_figure(figure)


def _recall_plot(curves: dict[str, Curve], class_names: list[str], threshold: float) -> str:
    figure, axes = _axes(5.6, 4.4)
    for name, curve in curves.items():
        colour = [part / 255 for part in colour_of(class_names.index(name))]
        recall, precision = np.concatenate([[0.0], curve.recall]), curve.envelope
        precision = np.concatenate([precision[:1], precision]) if len(precision) else np.zeros(1)
        axes.plot(recall, precision, color=colour, drawstyle="steps-pre")
        kept = int((curve.scores >= np.float32(threshold)).sum())
        if kept:
            axes.plot(curve.recall[kept - 1], curve.precision[kept - 1], "o", color=colour, clip_on=False)
    axes.set(xlabel="recall", ylabel="precision")  # the page names the lines: it has letters for every language
    return reporting.png_of_figure(figure)


def _css(label: int) -> str:
    return "rgb({} {} {})".format(*colour_of(label))


# --- pictures ---------------------------------------------------------------------------------------------


def _pictures(
    examples: BoxExamples, detections: Detections, matchings: Sequence[Matching], class_names: Sequence[str],
    threshold: float,
) -> dict[str, list[dict]]:  # fmt: skip
    """Draw the worst misses, then the surest false alarms, then some by chance: each picture once, those that open."""
    chance = np.random.default_rng(0).random(len(matchings))
    worth = {  # of each picture; None is not shown in this row
        "missed": [(len(one.missed), len(one.missed) / len(one.found_by)) if len(one.missed) else None
                   for one in matchings],
        "alarms": [max(scores[one.false_alarms], default=None)
                   for scores, one in zip(detections.scores, matchings, strict=True)],
        "ordinary": chance.tolist(),
    }  # fmt: skip
    seen: set[int] = set()
    drawn: dict[str, list[dict]] = {kind: [] for kind in worth}
    for kind, values in worth.items():
        places = [place for place, value in enumerate(values) if value is not None and place not in seen]
        for place in sorted(places, key=lambda place: values[place], reverse=True):
            if len(drawn[kind]) == MAX_PICTURES:
                break
            if picture := _picture(examples, detections, matchings[place], place, class_names, threshold):
                drawn[kind].append(picture)
                seen.add(place)
    return drawn


def _picture(
    examples: BoxExamples, detections: Detections, matching: Matching, place: int, class_names: Sequence[str],
    threshold: float,
) -> dict | None:  # fmt: skip
    """Draw one picture twice, as it is labelled and as it was answered; None where it cannot be read any more."""
    path = str(examples.paths[place])
    try:
        with Image.open(path) as image:
            # Not turned by its EXIF note: TensorFlow's decoder ignores it, so this is how the model saw it.
            times = PICTURE_PIXELS / max(image.size)
            pixels = image.convert("RGB").resize([max(1, round(side * times)) for side in image.size])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    truths, answers = examples.boxes[place] * times, detections.boxes[place] * times
    labels, said, scores = examples.labels[place], detections.labels[place], detections.scores[place]
    missed, alarms = matching.missed, matching.false_alarms
    judged = matching.finds >= 0
    on_crowd = (matching.finds == NOT_JUDGED) & (scores >= np.float32(threshold))
    right = _outlined(pixels, truths, np.where(examples.crowds[place], -2, labels), matching.found_by != NOBODY)
    labelled = draw_boxes(right, truths[missed], labels[missed], class_names)
    right = _outlined(pixels, answers, np.where(on_crowd, -2, said), judged | on_crowd)
    answered = draw_boxes(right, answers[alarms], said[alarms], class_names, scores[alarms])
    return {
        "labelled": reporting.jpeg_of_picture(labelled),
        "answered": reporting.jpeg_of_picture(answered),
        "name": Path(path).name,
        "text": _told(matching, labels, said, scores, class_names),
    }


def _outlined(pixels: Image.Image, boxes: np.ndarray, labels: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return the picture with some of the boxes as thin lines without a name, uint8 [height, width, 3]."""
    picture = pixels.copy()
    draw = ImageDraw.Draw(picture)
    for place in np.flatnonzero(which):
        left, top, right, bottom = (round(float(number)) for number in boxes[place])
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour_of(labels[place]))
    return np.asarray(picture)


def _told(
    matching: Matching, labels: np.ndarray, said: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> str:
    """Say in words what the two pictures show."""
    missed, alarms = matching.missed, matching.false_alarms
    objects = int((matching.found_by != NOT_JUDGED).sum())
    if not objects:
        text = "No objects here."
    elif len(missed):
        names = Counter(class_names[label] for label in labels[missed]).most_common()
        text = f"Missed {len(missed)} of {objects}: " + ", ".join(f"{times} {name}" for name, times in names) + "."
    else:
        text = f"Found all {objects}." if objects > 1 else "Found the only object."
    if not len(alarms):
        return f"{text} No false alarm."
    surest = alarms[scores[alarms].argmax()]
    count = "1 false alarm" if len(alarms) == 1 else f"{len(alarms)} false alarms, the surest"
    text += f" {count}: {class_names[said[surest]]} {scores[surest]:.2f}."
    if len(matching.misnamed):
        pairs = Counter((class_names[labels[box]], class_names[said[alarm]]) for box, alarm in matching.misnamed)
        text += " Under a wrong name: " + ", ".join(f"{times} {true} as {answer}" for (true, answer), times in
                                                    pairs.most_common()) + "."  # fmt: skip
    return text
