"""Transcribe speech: from recordings to a proved SavedModel that takes wav files and returns text.

    python -m recipes run speech_wav2vec                                                  # spoken demo words
    python -m recipes run speech_wav2vec --data tsv:CLIPS.tsv --source preset:hf://facebook/wav2vec2-base-960h

CLIPS.tsv has the columns path and text, and preferably speaker; Common Voice, LibriSpeech and LJSpeech are read as
they are. A pretrained wav2vec 2.0 (arXiv:2006.11477) extracts features, and a head learns to write characters (CTC):
first the head alone, then the transformer below it, at a lower learning rate. Where speakers are known, splits made
here share none. The report plays the worst clips and compares the result with the baselines. The SavedModel takes wav
files of any rate, and has been proved in a fresh process to write what the evaluation read.

What to expect, measured, with commands and machine: `python -m recipes show speech_wav2vec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from common import exporting, freezing
from common.data.splits import PARTS
from common.exporting import Predictor
from common.flags import check_choice, check_range, parse_baselines, parse_data, parse_list, parse_policy
from common.progress import format_seconds
from common.results import Outcome
from common.runs import Run
from common.serving.kit.write import write_serving_files
from common.sources.specs import parse_source
from common.speech import batches, models, results
from common.speech.answers import BATCH, TRANSCRIPTS, read_recording
from common.speech.batches import Augmentation, Clips
from common.speech.ctc.beam_search import read_language, write_with_beams
from common.speech.ctc.characters import CASES, POLICIES, build_characters, samples_needed, with_more
from common.speech.ctc_targets import Lesson, draw_shots, writable_clips
from common.speech.dataset import DATA_KINDS, SpeechSet, load_speech_set
from common.speech.export import LONGEST_SECONDS, export_recogniser, prove_recogniser, served_wav
from common.speech.inference import Recogniser, Transcripts, build_transcriber
from common.speech.metrics import error_rates
from common.speech.readers import SpeechColumns
from common.speech.samples import write_samples
from common.speech.sources import SpeechSource, load_speech_source
from common.speech.training import VALIDATIONS, seconds_of_training, seconds_of_validation, stage_epochs, train_stage

BASELINES = {"zero_shot": "No adaptation", "frozen": "Frozen source, trained head", "scratch": "From scratch"}
SCORES = ("wer", "cer")
SOURCES = ("wav2vec2_mini", "wav2vec2_base_960h")
GALLERY = {"in": "recordings with transcripts", "out": "text, confidence", "row": "fsdd"}
QUICK = "--limit 12 --epochs 1 --head-epochs 1 --baselines zero_shot"  # a run of seconds, for tests
INPUT = "audio"  # of the served model
PREDICTOR = Predictor(INPUT, read_recording, TRANSCRIPTS, BATCH)
AUGMENTATIONS = ("speed", "noise", "gain", "microphone")


@dataclass(frozen=True)
class Config:
    """Settings of speech_wav2vec."""

    data: str = "demo"  # demo, folder:PATH (LibriSpeech, LJSpeech, Common Voice), csv:PATH, tsv:PATH, manifest:PATH
    path_column: str | None = None  # Column of the paths in a table; found by its usual names by default
    text_column: str | None = None  # Column of the transcripts; found by its usual names by default
    speaker_column: str | None = None  # Column of the speakers; found by its usual names by default
    split_column: str | None = None  # Column of the splits train, val, test; found by its usual names by default
    encoding: str = "utf-8"  # Encoding of tables: utf-8, latin-1 ...
    share_speakers: bool = False  # Split clip by clip: test speakers may be in training, the result is for them only
    source: str = "bundled:wav2vec2_mini"  # bundled:wav2vec2_mini, preset:FOLDER or preset:hf://OWNER/NAME
    out: str = "runs/speech_wav2vec"  # Folder for everything this run writes
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    max_seconds: float = 40.0  # Longer clips are left out, of the test split as well: attention needs memory
    case: str | None = None  # Letters of the transcripts: lower, upper or keep; as the source's by default, else lower
    outside: str = "drop"  # Characters that cannot be written: drop (the character), skip (the clip) or error
    unfreeze: str = "encoder"  # What is trained after the head: encoder (all but the convolutions), all, last:N ...
    head_epochs: int | None = None  # Epochs in which only the head is trained; 2 by default, more for few clips
    epochs: int | None = None  # Epochs in which the encoder is trained too; 10 to 20 by default, more for few clips
    batch_size: int = 16  # Clips per step, at most
    batch_seconds: float = 80.0  # Seconds of sound per step, padding included, at most: memory grows with it
    learning_rate: float = 1e-3  # Peak learning rate of the encoder, after warm-up; cosine decay
    head_rate: float = 2e-3  # Peak learning rate of the head
    weight_decay: float = 0.01  # Weight decay
    augment: str = "speed,noise,gain,microphone"  # Some of speed, noise, gain, microphone (another room), or none
    language_model: str | None = None  # Text file: beam search prefers words that follow each other in it
    beams: int = 16  # Beam width of the evaluation; 0 leaves beam search out. The export decodes greedily
    baselines: str = "zero_shot"  # To compare with: zero_shot, frozen, scratch (the last two take as long), or none
    shots: int | None = None  # Train on this many clips of each repeated sentence, without choices on validation
    limit: int | None = None  # Use at most this many clips of each split: a quick look
    strict: bool = False  # Stop at the first clip that cannot be used instead of skipping and counting it
    seed: int = 0  # Seed of initial weights, shuffling and augmentation; the split depends on the clips alone

    retired: ClassVar[dict] = {"task": "transcribe", "label_column": None}  # flags of before speech_commands

    def __post_init__(self) -> None:
        parse_data(self.data, DATA_KINDS)
        parse_source(self.source)
        if self.case is not None:
            check_choice("--case", self.case, CASES)
        check_choice("--outside", self.outside, POLICIES)
        parse_list("--augment", self.augment, AUGMENTATIONS, alone=("none",))
        if self.unfreeze != "encoder":
            parse_policy(self.unfreeze)
        parse_baselines(self.baselines or "zero_shot", BASELINES)
        if self.language_model and not self.beams:
            raise ValueError("--language-model needs beam search: --beams 1 or more.")
        if self.language_model and not Path(self.language_model).expanduser().is_file():
            raise ValueError(f"--language-model {self.language_model!r} is no file. Give a file of sentences.")
        check_range(self, 0, inf, "save_every", "weight_decay", "seed", "head_epochs", "epochs", "learning_rate")
        check_range(self, 0, 1024, "beams")
        check_range(self, 1, inf, "max_seconds", "batch_size", "batch_seconds", "limit", "shots")
        check_range(self, 1e-9, inf, "head_rate")


def load_data(config: Config) -> SpeechSet:
    """Read, check and split the clips."""
    columns = SpeechColumns(
        config.path_column, config.text_column, None, config.speaker_column, config.split_column, config.encoding
    )
    data = load_speech_set(
        config.data, task="transcripts", columns=columns, limit=config.limit, strict=config.strict,
        share_speakers=config.share_speakers, max_seconds=config.max_seconds,
    )  # fmt: skip
    return draw_shots(data, config.shots, config.seed) if config.shots else data


def prepare(data: SpeechSet, source: SpeechSource, config: Config) -> Lesson:
    """Choose the characters (those of the transcripts and of the source), leave out what CTC cannot learn, decode."""
    case = config.case or (source.characters.case if source.characters else "lower")
    characters = build_characters(data.train.texts, case)
    if source.characters:  # what the source can write, stays writable
        characters = with_more(characters, source.characters)
    # A file that cannot be read is reported now, not after the training.
    ngrams = read_language(config.language_model, characters) if config.language_model else None
    frame_lengths = source.backbone.config.frame_lengths
    data, targets = writable_clips(data, characters, frame_lengths, config.outside, strict=config.strict)
    references = {split: [characters.normalise(text) for text in getattr(data, split).texts] for split in PARTS}
    clips = {split: Clips(getattr(data, split).paths, title=f"decoding {split}") for split in PARTS}
    return Lesson(data, clips, targets, characters, references, ngrams)


def build_model(source: SpeechSource, lesson: Lesson) -> keras.Model:
    """Put a CTC head on the pretrained model."""
    return models.build_recogniser(source, lesson.characters)


def train(run: Run, source: SpeechSource, model: keras.Model, lesson: Lesson, stage: str) -> tuple[list[dict], int]:
    """Train one stage: `head`, `finetune`, or for a baseline `frozen` or `scratch`.

    Returns:
        (history rows, number of parameters that were trained).
    """
    config = run.config
    policy = {"head": "frozen", "frozen": "frozen", "scratch": "all"}.get(stage, config.unfreeze)
    counts = freezing.freeze(model, source.backbone, models.ENCODER if policy == "encoder" else policy)
    print(f"{stage}: {counts}")
    seconds, network = lesson.data.train.seconds, source.backbone.config
    steps = batches.steps_per_epoch(seconds, config.batch_seconds, config.seed, config.batch_size)
    epochs = stage_epochs(steps, config.head_epochs, config.epochs)[stage]
    # A clip that is played faster still needs a frame for each character.
    least = [samples_needed(labels, network.frame_lengths) for labels in lesson.targets]

    def batches_from(epoch, step):
        stream = training_stream(lesson, config, first=(epoch, step), least_samples=least)
        return stream.map(models.as_inputs(source.normalises), 2)

    transcribe = transcriber(source, model, lesson)
    history = train_stage(
        source, model, batches_from, lambda: error_rates(lesson.references["val"], transcribe("val").texts),
        stage=stage, epochs=epochs, steps=steps, head_rate=config.head_rate, encoder_rate=config.learning_rate,
        weight_decay=config.weight_decay, rank=best_of, choose=not config.shots, score="wer", **run.saves(stage),
    )  # fmt: skip
    return history, counts.parameters


def main(config: Config) -> dict:
    """Run the whole story: data -> source -> head -> the encoder -> evaluation -> export -> proof -> report."""
    run = Run(config)
    config, out, clock = run.config, run.out, run.clock
    with clock("data"):
        data = load_data(config)
    keras.utils.set_random_seed(config.seed)
    source = load_speech_source(config.source)
    run.remember(data, source)
    with clock("data"):
        lesson = prepare(data, source, config)
    print(f"{config.data}: {lesson.data.counts()}")
    baselines, history = {}, []
    if "zero_shot" in wanted_baselines(config, source):
        with clock("baseline_zero_shot"):
            texts = zero_shot(source, lesson)
        baselines["zero_shot"] = texts, clock.report()["baseline_zero_shot"]

    model = build_model(source, lesson)
    parameters = {"total": model.count_params()}
    for stage in ("head", "finetune"):
        with clock(stage):
            rows, parameters[f"trainable_{stage}"] = train(run, source, model, lesson, stage)
        history += rows
    with clock("evaluate"):
        transcribe = transcriber(source, model, lesson)
        transcripts = transcribe("test", title="test clips", keep_log_probabilities=config.beams > 0)
        decoders = decode_with_beams(transcripts, transcribe, lesson, config) if config.beams else {}
    for name in [name for name in ("frozen", "scratch") if name in wanted_baselines(config, source)]:
        with clock(f"baseline_{name}"):
            texts, rows = train_baseline(name, run, lesson)
        baselines[name], history = (texts, clock.report()[f"baseline_{name}"]), history + rows

    with clock("export"):
        exporting.save_keras_model(model, out / "model.keras")
        models.save_source(out / "preset", model, source, lesson.characters)  # a --source of other runs
        paths = lesson.data.test.paths
        version = export_recogniser(
            recogniser(source, model, lesson), out / "serving" / "speech_wav2vec", example=Path(paths[0]),
            longest_seconds=max(LONGEST_SECONDS, config.max_seconds),
        )  # fmt: skip
        proof = prove_recogniser(version, paths, transcripts.texts, transcripts.confidences)
        example = served_wav(Path(paths[0]))
        write_serving_files(out / "serving", "speech_wav2vec", input_name=INPUT, example=example)

    card, size = {"spec": config.source, **source.card}, exporting.size_report(version, model)
    return results.conclude(
        "speech_wav2vec", config, lesson.data, Outcome(history, clock.report(), parameters, card, proof, size),
        references=lesson.references["test"], hypotheses=transcripts.texts, confidences=transcripts.confidences,
        decoders=decoders, baselines=baselines, titles=BASELINES,
    )  # fmt: skip


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and write a page of samples."""
    data = load_data(config)
    source = load_speech_source(config.source)
    lesson = prepare(data, source, config)
    print(lesson.data.describe(config.data))
    model = build_model(source, lesson)
    print(f"source: {source.card}\n{model.count_params():,} parameters")
    train, val = lesson.data.train, lesson.data.val
    print(
        f"{train.seconds.sum() / 60:.1f} minutes of training clips, {np.median(train.seconds):.1f} s in the median one"
    )
    print(f"characters: {' '.join(lesson.characters.symbols[2:])}")
    page = Path(config.out) / "samples.html"
    write_samples(page, lesson.clips["train"], train.texts, augmentation(config), config.seed)
    print(f"clips as trained on: {page}")

    steps = batches.steps_per_epoch(train.seconds, config.batch_seconds, config.seed, config.batch_size)
    epochs = stage_epochs(steps, config.head_epochs, config.epochs)
    stream = training_stream(lesson, config).map(models.as_inputs(source.normalises))
    an_epoch = seconds_of_training(source, model, stream, train.seconds)
    transcribe = build_transcriber(recogniser(source, model, lesson))
    validation = seconds_of_validation(transcribe, val.paths, val.seconds)
    stages = [epochs[stage] for stage in ("head", "finetune", *(wanted_baselines(config, source) & set(epochs)))]
    whole = sum(stages) * an_epoch + sum(min(count, VALIDATIONS) for count in stages) * validation
    print(f"estimate: {format_seconds(whole)} of computing, then half a minute for export and proof")


# --- helpers of the steps above ------------------------------------------------------------------------------


def training_stream(lesson: Lesson, config: Config, **options):
    """Stream augmented training clips with their transcripts."""
    return batches.training_batches(
        lesson.clips["train"], lesson.data.train.seconds, lesson.targets, config.batch_seconds, seed=config.seed,
        augmentation=augmentation(config), batch_size=config.batch_size, **options,
    )  # fmt: skip


def recogniser(source: SpeechSource, model: keras.Model, lesson: Lesson) -> Recogniser:
    """Return the model with all that turns its logits into text."""
    return Recogniser(model, source.backbone.config, lesson.characters, source.normalises)


def transcriber(source: SpeechSource, model: keras.Model, lesson: Lesson):
    """Return a function: name of a split -> its Transcripts by the model as it is then."""
    transcribe = build_transcriber(recogniser(source, model, lesson))
    return lambda split, **options: transcribe(lesson.clips[split], getattr(lesson.data, split).seconds, **options)


def decode_with_beams(transcripts: Transcripts, transcribe, lesson: Lesson, config: Config) -> dict[str, list[str]]:
    """Return what beam search writes of the test clips, with a language model where there is one."""
    tuned = lesson.ngrams and not config.shots
    val = transcribe("val", keep_log_probabilities=True).log_probabilities if tuned else ()
    return write_with_beams(
        transcripts.log_probabilities, val, lesson.references["val"], lesson.characters, width=config.beams,
        ngrams=lesson.ngrams,
    )  # fmt: skip


def best_of(logs: dict[str, float]) -> tuple[float, float]:
    """Rank an epoch by its word error rate on validation, then by that of characters."""
    if "val_wer" not in logs:  # not validated
        return -inf, -inf
    return -round(logs["val_wer"], 6), -logs["val_cer"]


def augmentation(config: Config) -> Augmentation | None:
    """Return what is done to training clips."""
    return Augmentation.of(parse_list("--augment", config.augment, AUGMENTATIONS, alone=("none",)))


def wanted_baselines(config: Config, source: SpeechSource) -> set[str]:
    """Return the baselines to compare with; a source without characters has no zero_shot."""
    wanted = set(parse_baselines(config.baselines or "zero_shot", BASELINES))
    return wanted if source.characters else wanted - {"zero_shot"}


def zero_shot(source: SpeechSource, lesson: Lesson) -> list[str]:
    """Return the transcripts of the test clips by the source before any training, spelled as the references are."""
    transcripts = build_transcriber(models.as_recogniser(source))(lesson.clips["test"], lesson.data.test.seconds)
    return [lesson.characters.normalise(text) for text in transcripts.texts]


def train_baseline(name: str, run: Run, lesson: Lesson) -> tuple[tuple[str, ...], list[dict]]:
    """Train a baseline for as many epochs, from the same start or from random weights; return its texts and history."""
    keras.utils.set_random_seed(run.config.seed)
    source = load_speech_source(run.config.source, random_weights=name == "scratch")
    model = build_model(source, lesson)
    rows, _ = train(run, source, model, lesson, name)
    return transcriber(source, model, lesson)("test").texts, rows
