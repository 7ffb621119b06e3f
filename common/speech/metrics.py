"""Word and character error rates with confidence intervals, the most frequent errors, and sentences about both.

Transcripts and outputs must both be normalised by `Characters.normalise`: two spellings of one word would count as an
error. Alignment and counts are jiwer's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jiwer
import numpy as np

from common.bootstrap import FEW_GROUPS, ratio_interval95
from common.data.folders import printable

UNITS = ("word", "character")
EQUAL, SUBSTITUTION, DELETION, INSERTION = "equal", "substitution", "deletion", "insertion"
FEW_CLIPS = 30  # bootstrap intervals over fewer are too narrow
FROM_SCRATCH = {"scratch": "the same network", "spectrogram": "the small log-mel network"}  # baselines without a source
WORDS_OF_A_SPEAKER = 50  # the error rate of fewer is too uncertain
_KINDS = {"equal": EQUAL, "substitute": SUBSTITUTION, "delete": DELETION, "insert": INSERTION}
DECODERS = {"beam": "beam search", "beam_lm": "beam search with a language model"}
_KEPT_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


class Edit(NamedTuple):
    """One step from the transcript to the output.

    Attributes:
        kind: `equal`, `substitution`, `deletion` (missing in the output) or `insertion` (added by the output).
        reference: word or character of the transcript; "" for an insertion.
        hypothesis: that of the output; "" for a deletion.
    """

    kind: str
    reference: str
    hypothesis: str


def align(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> list[list[Edit]]:
    """Return the fewest steps from each transcript to its output (Levenshtein alignment).

    Args:
        references: n transcripts.
        hypotheses: n outputs; an empty one is all deletions.
        unit: `word`, or `character`, which includes spaces.

    Raises:
        ValueError: the numbers differ, there is no clip, a transcript is empty, or the unit is unknown.
    """
    _refuse_what_cannot_be_counted(references, hypotheses)
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}; received {unit!r}")
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    found = process(list(references), list(hypotheses))
    return [
        [edit for chunk in chunks for edit in _edits(chunk, reference, hypothesis)]
        for chunks, reference, hypothesis in zip(found.alignments, found.references, found.hypotheses, strict=True)
    ]


def _refuse_what_cannot_be_counted(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if not len(references) or len(references) != len(hypotheses):
        raise ValueError(
            f"each transcript needs an output, and at least 1 clip is required; received {len(references)} "
            f"transcript(s) and {len(hypotheses)} output(s)"
        )
    empty = [place for place, text in enumerate(references) if not text.split()]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(references)} transcripts are empty, the first is number {empty[0]} (from 0): "
            "errors are counted per word. Skip such clips, with the reason given by `encode_texts`"
        )


def _edits(chunk: jiwer.AlignmentChunk, reference: list[str], hypothesis: list[str]) -> list[Edit]:
    """Return the single steps of a run of one kind; one side of insertions and deletions is empty."""
    sides = reference[chunk.ref_start_idx : chunk.ref_end_idx], hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
    empty = [""] * max(map(len, sides))
    return [Edit(_KINDS[chunk.type], *pair) for pair in zip(*(side or empty for side in sides), strict=True)]


def count_errors(
    references: Sequence[str], hypotheses: Sequence[str], unit: str = "word"
) -> tuple[np.ndarray, np.ndarray]:
    """Return (errors per clip, words or characters of its transcript), int64 [n] each; arguments as for `align`."""
    return _counts(align(references, hypotheses, unit))


def _counts(aligned: Sequence[Sequence[Edit]]) -> tuple[np.ndarray, np.ndarray]:
    errors = [sum(edit.kind != EQUAL for edit in edits) for edits in aligned]
    totals = [sum(edit.kind != INSERTION for edit in edits) for edits in aligned]
    return np.array(errors, np.int64), np.array(totals, np.int64)


def transcription_metrics(
    references: Sequence[str], hypotheses: Sequence[str], speakers: Sequence[str] = (), seed: int = 0
) -> dict:
    """Return word and character error rate with 95 % intervals, the kinds of errors, and the rates per speaker.

    Rates are pooled: all errors divided by all words of the transcripts, so that long clips count more; a rate can
    exceed 1. Intervals are percentiles of a bootstrap (Bisani and Ney, 2004, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation") over speakers, each with all its clips (Liu and Peng, 2020,
    https://arxiv.org/abs/1912.09508): clips of one speaker are not independent. With unknown speakers or a single one
    they are over clips; a single clip has none. For few speakers: `ratio_interval95`.

    Args:
        references: n transcripts, none of them empty.
        hypotheses: n outputs, which may be empty.
        speakers: of each clip, "" if unknown; () if all are unknown.
        seed: of the resampling.

    Returns:
        {"wer", "wer_ci95": [low, high], "cer", "cer_ci95", "sentence_accuracy": share of clips without an error,
        "ci95_over": `speakers` or `clips`, "words", "characters": of the transcripts, "substitutions", "deletions",
        "insertions": of words,
        "per_speaker": [{"speaker", "clips", "words", "wer", "cer"}], the worst first, of known speakers}.

    Raises:
        ValueError: as `align`; or the number of speakers differs.
    """
    if len(speakers) not in (0, len(references)):
        raise ValueError(f"each of the {len(references)} clips needs a speaker, or none does; received {len(speakers)}")
    aligned = align(references, hypotheses)
    kinds = Counter(edit.kind for edits in aligned for edit in edits)
    errors, words = _counts(aligned)
    character_errors, characters = count_errors(references, hypotheses, "character")
    return {
        "wer": _rate(errors, words),
        "wer_ci95": _interval(errors, words, speakers, seed),
        "cer": _rate(character_errors, characters),
        "cer_ci95": _interval(character_errors, characters, speakers, seed),
        "ci95_over": resampled_units(speakers),
        "sentence_accuracy": float(np.mean(errors == 0)),
        "words": int(words.sum()),
        "characters": int(characters.sum()),
        "substitutions": kinds[SUBSTITUTION],
        "deletions": kinds[DELETION],
        "insertions": kinds[INSERTION],
        "per_speaker": _per_speaker(speakers, errors, words, character_errors, characters),
    }


def _per_speaker(speakers, errors, words, character_errors, characters) -> list[dict]:
    clips_of = defaultdict(list)
    for place, speaker in enumerate(speakers):
        if speaker:
            clips_of[speaker].append(place)
    rows = [
        {
            "speaker": printable(speaker),  # may be the name of a folder, which need not be UTF-8
            "clips": len(clips),
            "words": int(words[clips].sum()),
            "wer": _rate(errors[clips], words[clips]),
            "cer": _rate(character_errors[clips], characters[clips]),
        }
        for speaker, clips in clips_of.items()
    ]
    return sorted(rows, key=lambda row: (-row["wer"], row["speaker"]))


def _rate(errors: np.ndarray, totals: np.ndarray) -> float:
    return float(errors.sum() / totals.sum())


def resampled_units(speakers: Sequence[str]) -> str:
    """Return what intervals resample: `speakers` where all clips have one and there are several, else `clips`."""
    return "speakers" if len(speakers) and all(speakers) and len(set(speakers)) > 1 else "clips"


def _interval(errors: np.ndarray, totals: np.ndarray, speakers: Sequence[str], seed: int) -> list[float] | None:
    """Return the 95 % interval of a rate; the same seed draws the same clips or speakers."""
    return ratio_interval95(errors, totals, speakers if resampled_units(speakers) == "speakers" else (), seed)


def confusions(references: Sequence[str], hypotheses: Sequence[str], most: int = 20, unit: str = "word") -> list[dict]:
    """Return the most frequent errors.

    Args:
        references, hypotheses, unit: as for `align`.
        most: maximum number.

    Returns:
        [{"kind", "reference", "hypothesis", "count"}], the most frequent first; kind and texts as in `Edit`.
    """
    counts = Counter(edit for edits in align(references, hypotheses, unit) for edit in edits if edit.kind != EQUAL)
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return [edit._asdict() | {"count": count} for edit, count in ordered[:most]]


def paired_gain(
    references: Sequence[str], ours: Sequence[str], theirs: Sequence[str], speakers: Sequence[str] = (), seed: int = 0
) -> tuple[float, float, float] | None:
    """Return by how much one model lowers the word error rate of another on the same clips.

    Args:
        references: n transcripts.
        ours: n outputs of one model.
        theirs: n outputs of the other.
        speakers: of each clip, as for `transcription_metrics`; both models are measured on the same draws of them.
        seed: of the resampling.

    Returns:
        (gain, low, high) with the 95 % interval, as fractions, above 0 where ours is better; None for a single clip,
        which allows no comparison.

    Raises:
        ValueError: as `align`.
    """
    (our_errors, words), (their_errors, _) = (count_errors(references, texts) for texts in (ours, theirs))
    interval = _interval(their_errors - our_errors, words, speakers, seed)
    return (_rate(their_errors - our_errors, words), *interval) if interval else None


def confidence_table(references: Sequence[str], hypotheses: Sequence[str], confidences: np.ndarray) -> list[dict]:
    """Return how many clips remain, and their error rate, at different thresholds of the confidence.

    Args:
        references: n transcripts.
        hypotheses: n outputs.
        confidences: of the outputs, float32 [n]; NaN counts as 0.

    Returns:
        [{"threshold", "clips", "share", "wer", "sentence_accuracy"}], from all clips to the most confident ones. Clips
        of equal confidence are kept or removed together, so there may be few rows.

    Raises:
        ValueError: as `align`; or the number of confidences differs.
    """
    if len(confidences) != len(references):
        raise ValueError(f"each of the {len(references)} clips needs a confidence; received {len(confidences)}")
    errors, words = count_errors(references, hypotheses)
    confidences = np.nan_to_num(np.asarray(confidences, np.float64), nan=0.0)
    ordered, rows = np.sort(confidences)[::-1], {}
    for share in _KEPT_SHARES:
        least = ordered[max(1, round(share * len(ordered))) - 1]
        threshold = np.floor(least * 1e6) / 1e6  # rounded down, so that all intended clips are kept
        kept = confidences >= threshold
        rows[threshold] = {
            "threshold": float(threshold),
            "clips": int(kept.sum()),
            "share": float(kept.mean()),
            "wer": _rate(errors[kept], words[kept]),
            "sentence_accuracy": float(np.mean(errors[kept] == 0)),
        }
    return list(rows.values())


# --- findings ---------------------------------------------------------------------------------------------


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Return {"wer", "cer"} of n outputs against their transcripts, without intervals."""
    counts = {
        name: count_errors(references, hypotheses, unit) for name, unit in (("wer", "word"), ("cer", "character"))
    }
    return {name: errors.sum() / units.sum() for name, (errors, units) in counts.items()}


def findings(
    references: Sequence[str],
    ours: Sequence[str],
    baselines: Mapping[str, Sequence[str]],
    decoders: Mapping[str, Sequence[str]],
    test: dict,
    speakers: Sequence[str] = (),
    endings: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Return sentences on whether transfer helped, the remaining kinds of errors, and the hardest speaker.

    Args:
        references: n transcripts of the test split.
        ours: n outputs of the exported model.
        baselines: the same per baseline: `zero_shot`, `frozen`, and those of `FROM_SCRATCH`, of which the best counts.
        decoders: the same per other decoder of the same logits.
        test: as returned by `transcription_metrics` for ours.
        speakers: of each clip, as for `transcription_metrics`.
        endings: how the training of a baseline ended, by name.

    Returns:
        Sentences; one starts with "Negative transfer" if a network from scratch did better.
    """
    scratch = {name: error_rates(references, baselines[name])["wer"] for name in FROM_SCRATCH if name in baselines}
    best = min(scratch, key=scratch.get, default=None)
    compared = [name for name in baselines if name not in scratch or name == best]
    sentences = [_beside_baseline(name, references, ours, baselines[name], speakers) for name in compared]
    if scratch:
        rates = (
            f"{FROM_SCRATCH[name]} has a WER of {100 * wer:.1f} %"
            + (f" and {endings[name]}" if name in endings else "")
            for name, wer in sorted(scratch.items(), key=lambda one: one[1])
        )
        better = " The comparison is with the better one." if len(scratch) > 1 else ""
        sentences.append(f"Trained from scratch, {'; '.join(rates)}.{better}")
    sentences += [_beside_decoder(name, references, ours, theirs, speakers) for name, theirs in decoders.items()]
    sentences += _findings_of_mistakes(test, sum(not text.strip() for text in ours), len(ours))
    sentences += _findings_of_speakers(test["per_speaker"])
    if len(references) > 1:
        sentences.append(_on_intervals(speakers))
    if len(references) < FEW_CLIPS:
        sentences.append(
            f"The test split has only {len(references)} clip(s): the results are uncertain, and their intervals too "
            "narrow."
        )
    return sentences


def _on_intervals(speakers: Sequence[str]) -> str:
    count = len(set(speakers))
    if resampled_units(speakers) == "speakers":
        if count < FEW_GROUPS:
            return f"The test split has {count} speakers, which are few: intervals are Student's, over the speakers."
        return f"The intervals resample the {count} speakers of the test split with all their clips."
    if count == 1 and all(speakers):
        return "All test clips are of one speaker: the intervals resample clips, and hold for this speaker only."
    return (
        "The speakers of the test clips are unknown: the intervals resample clips, and are too narrow where a speaker "
        "has several."
    )


def _points(found: tuple[float, float, float]) -> str:
    gain, low, high = (100 * number for number in found)
    return f"{abs(gain):.1f} points of WER for this seed (95 % interval {low:+.1f} to {high:+.1f})"


def _name_of_baseline(name: str) -> str:
    if name in FROM_SCRATCH:
        return f"{FROM_SCRATCH[name]} trained from scratch"
    known = {"frozen": "the frozen source with a trained head", "zero_shot": "the source without adaptation"}
    return known.get(name, f"the baseline {name}")


def _beside_baseline(name: str, references, ours, theirs, speakers) -> str:
    """Return whether a baseline is better or worse, and whether the difference is significant."""
    called = _name_of_baseline(name)
    if list(ours) == list(theirs):
        return f"The exported model and {called} give exactly the same texts."
    found = paired_gain(references, ours, theirs, speakers)
    if found is None:
        return f"A single test clip allows no comparison with {called}."
    (gain, low, high), points = found, _points(found)
    better, worse = low > 0, high < 0
    if name in FROM_SCRATCH and worse:
        return f"Negative transfer: {called} is better by {points}. Try another --source."
    if name in FROM_SCRATCH and gain <= 0:
        return f"The pretrained source does not help here: {called} is at least as good, by {points}."
    if better:
        subject = {"frozen": "Fine-tuning", "zero_shot": "Adaptation"}.get(name, "The exported model")
        return f"{'The pretrained source' if name in FROM_SCRATCH else subject} gains {points} over {called}."
    if worse:
        subject = {"frozen": "Fine-tuning hurts: ", "zero_shot": "Adaptation hurts: "}.get(name, "")
        text = f"{subject}{called} is better by {points}."
        return text[0].upper() + text[1:]
    return f"The exported model and {called} are too close to call: {points}."


def _beside_decoder(name: str, references, ours, theirs, speakers) -> str:
    """Return whether another decoder is better than the exported one, with the same network."""
    name = DECODERS.get(name, name)
    start = f"Decoding with {name}"
    if list(ours) == list(theirs):
        return f"{start} gives exactly the same texts as the exported model."
    found = paired_gain(references, theirs, ours, speakers)
    if found is None:
        return f"A single test clip allows no comparison with {name}."
    (_, low, high), points = found, _points(found)
    if low > 0:
        return f"{start} is better than the exported model, by {points}."
    if high < 0:
        return f"{start} is worse than the exported model, by {points}."
    return f"{start} and the exported model are too close to call: {points}."


def _findings_of_mistakes(test: dict, empty: int, clips: int) -> list[str]:
    counts = {kind: test[f"{kind}s"] for kind in (SUBSTITUTION, DELETION, INSERTION)}
    total = sum(counts.values())
    if not total:
        return ["Every word of the test split is correct."]
    often, times = max(counts.items(), key=lambda one: one[1])
    meaning = {
        SUBSTITUTION: f"Most are substitutions; the character error rate is {100 * test['cer']:.1f} %.",
        DELETION: "Most are deletions: typical of too little training, or of quiet or fast speech.",
        INSERTION: "Most are insertions: typical of noise or other speakers, or of words that are split in two.",
    }[often]
    sentences = [
        f"Of {test['words']:,} words, {counts[SUBSTITUTION]:,} are substituted and {counts[DELETION]:,} deleted; "
        f"{counts[INSERTION]:,} are inserted." + (f" {meaning}" if 2 * times > total else "")
    ]
    if empty:
        sentences.append(f"The output is empty for {empty:,} of {clips:,} test clips.")
    return sentences


def _findings_of_speakers(per_speaker: Sequence[dict]) -> list[str]:
    measured = [row for row in per_speaker if row["words"] >= WORDS_OF_A_SPEAKER]
    if len(measured) < 2 or measured[0]["wer"] == measured[-1]["wer"]:
        return []
    worst, best = measured[0], measured[-1]
    return [
        f"The hardest speaker is {worst['speaker']}: WER {100 * worst['wer']:.1f} % on {worst['words']:,} words; "
        f"the easiest is {best['speaker']} with {100 * best['wer']:.1f} %."
    ]
